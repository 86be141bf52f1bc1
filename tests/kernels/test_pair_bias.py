"""The attention bias: weaver's stored buffers, an independent torch network, batch statistics, and what it refuses."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import fasttag
from cases import CASES, pair_network, same_bits
from fasttag_kernels import _dispatch
from fasttag_kernels.pair_bias import TILE, pair_bias, reference, widths_of
from fasttag_kernels.pairwise_features import pairwise_features
from toys import toy_jets

every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
every_way = pytest.mark.parametrize("statistics", ["running", "batch"])
OPTIONS = [
    {},
    {"last_activation": True},
    {"remove_self_pair": True},
    {"ordered": True},
    {"ordered": True, "remove_self_pair": True, "last_activation": True},
]
WIDTHS = (64, 64, 64, 8)


def mixed(dtype="float64"):
    p4, offsets = CASES["mixed"]()
    return p4.astype(dtype), offsets


def as_torch(p4, offsets, weights, running):
    tensors = [torch.from_numpy(np.array(x)).requires_grad_() for x in (p4, *weights)]
    return tensors[0], torch.from_numpy(offsets), tensors[1:], [torch.from_numpy(r) for r in running]


def plain(p4, offsets, weights, running, statistics, last_activation=False, ordered=False, remove_self_pair=False):
    """The network of torch's own modules on weaver's list of pairs; the features are those of `pairwise_features`."""
    features = pairwise_features(p4, offsets, m2="reference")
    places, start = [], 0
    for n in offsets.diff().tolist():
        i, j = torch.tril_indices(n, n, -1 if remove_self_pair else 0)
        both = torch.cat([i, j[i != j]]), torch.cat([j, i[i != j]])
        i, j = both if ordered else (i, j)
        places.append(start + torch.stack([i * n + j, j * n + i]))
        start += n * n
    places = torch.cat(places, 1)
    x, moments = features[:, places[0]].T, []
    for layer in range(-1, len(weights) // 4):
        matrix, bias, gamma, beta = (None, None, *weights[:2]) if layer < 0 else weights[4 * layer + 2 : 4 * layer + 6]
        x = x if layer < 0 else torch.nn.functional.linear(x, matrix, bias)
        mean, variance = running[2 * layer + 2 : 2 * layer + 4]
        moments.append(torch.stack([x.mean(0), x.var(0, correction=0)]).detach())
        x = torch.nn.functional.batch_norm(x, mean.clone(), variance.clone(), gamma, beta, statistics == "batch")
        if 0 <= layer < len(weights) // 4 - 1 or (layer >= 0 and last_activation):
            x = torch.nn.functional.gelu(x)
    out = torch.zeros(x.shape[1], start, dtype=p4.dtype).index_copy(1, places[0], x.T)
    return out if ordered else out.index_copy(1, places[1], x.T), torch.cat(moments, 1)


@every_way
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("widths", [WIDTHS, (5, 33, 3), (4, 1)])
def test_an_independent_network_and_its_gradients(widths, options, statistics):
    p4, offsets = CASES["massive"]()
    p4, offsets, weights, running = as_torch(p4, offsets, *pair_network(widths))
    found = pair_bias(p4, offsets, weights, running, statistics=statistics, **options)
    expected, moments = plain(p4, offsets, weights, running, statistics, **options)
    if statistics == "batch":
        found, of_batch = found
        assert of_batch.dtype == torch.float64 and not of_batch.requires_grad
        torch.testing.assert_close(of_batch, moments, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    gradient = torch.from_numpy(np.random.default_rng(5).normal(size=found.shape))
    ours, theirs = (torch.autograd.grad(x, [p4, *weights], gradient) for x in (found, expected))
    scale = max(x.abs().max() for x in theirs[1:])
    for a, b in zip(ours[1:], theirs[1:]):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=float(1e-10 * scale))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-8, atol=float(1e-9 * theirs[0].abs().max()))
    if statistics == "batch":
        assert not any(x.any() for x in ours[4::4]), "a bias before a BatchNorm of the batch has no gradient"


@pytest.mark.parametrize("options", [*OPTIONS, {"m2": "stable"}])
def test_batch_statistics_are_those_of_the_reference(options):
    p4, offsets = mixed()
    network = pair_network((20, 17, 3))
    found = pair_bias(p4, offsets, *network, statistics="batch", **options)
    expected = reference.pair_bias(p4, offsets, *network, statistics="batch", **options)
    rtol = 1e-8 if "m2" in options else 1e-10  # the reference's m^2 cancels
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def test_statistics_of_a_batch_in_float32():
    """Sums are in float64: what is left is the rounding of the features and of each layer."""
    p4, offsets = mixed("float32")
    network = pair_network(WIDTHS, dtype="float32")
    (bias, moments), (expected, of_reference) = (
        f(p4, offsets, *network, statistics="batch") for f in (pair_bias, reference.pair_bias)
    )
    np.testing.assert_allclose(moments, of_reference, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bias, expected, rtol=1e-4, atol=5e-5)


def test_offset_statistics_do_not_cancel():
    """Biases of 1e4 before a BatchNorm change nothing but its mean."""
    p4, offsets = mixed()
    weights, running = pair_network((20, 17, 3))
    bias, moments = pair_bias(p4, offsets, weights, running, statistics="batch")
    for k in (3, 7, 11):
        weights[k] = weights[k] + 1e4
    shifted, of_shifted = pair_bias(p4, offsets, weights, running, statistics="batch")
    np.testing.assert_allclose(shifted, bias, rtol=0, atol=1e-9)
    np.testing.assert_allclose(of_shifted[1], moments[1], rtol=1e-9)


@every_dtype
@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_do_not_depend_on_threads(options, dtype):
    for statistics in ("running", "batch"):
        p4, offsets, weights, running = as_torch(*mixed(dtype), *pair_network(WIDTHS, dtype=dtype))
        results = []
        for threads in (1, 3):
            out = pair_bias(p4, offsets, weights, running, statistics=statistics, threads=threads, **options)
            out = out if statistics == "running" else out[0]
            gradients = torch.autograd.grad((out * out).sum(), [p4, *weights])
            results.append(tuple(x.detach().numpy() for x in (out, *gradients)))
        assert same_bits(*results)


@every_dtype
def test_with_and_without_a_gradient_the_bits_are_the_same(dtype):
    p4, offsets, weights, running = as_torch(*mixed(dtype), *pair_network(WIDTHS, dtype=dtype))
    for statistics in ("running", "batch"):
        with_gradient = pair_bias(p4, offsets, weights, running, statistics=statistics)
        with torch.no_grad():
            without = pair_bias(p4, offsets, weights, running, statistics=statistics)
        parts = lambda found: tuple(x.detach().numpy() for x in (found if isinstance(found, tuple) else (found,)))
        assert same_bits(parts(with_gradient), parts(without))


def test_evaluation_in_float32_is_that_of_float64():
    p4, offsets = mixed("float32")
    network = pair_network(WIDTHS, dtype="float32")
    found, expected = (f(p4, offsets, *network) for f in (pair_bias, reference.pair_bias))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_float32_gradients_are_those_of_float64():
    p4, offsets = CASES["massive"]()
    p4 = p4.astype(np.float32).astype(np.float64)
    network = pair_network(WIDTHS, dtype="float32")
    for statistics in ("running", "batch"):
        found = []
        for dtype in ("float32", "float64"):
            lists = ([x.astype(dtype) for x in part] for part in network)
            p, o, weights, running = as_torch(p4.astype(dtype), offsets, *lists)
            out = pair_bias(p, o, weights, running, statistics=statistics, m2="stable")
            out = out if statistics == "running" else out[0]
            weight = torch.from_numpy(np.random.default_rng(3).normal(size=out.shape).astype(dtype))
            found.append(torch.autograd.grad(out, [p, *weights], weight))
        for single, double in zip(*found):
            assert single.dtype == torch.float32
            torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-5 * float(double.abs().max() + 1))


@pytest.mark.parametrize("outside", [0, 1_000_000])
def test_what_is_kept_for_the_gradient(outside):
    """At most 640 bytes of each pair i >= j, beyond a part of a tile; nothing where no gradient is asked for."""
    jets = toy_jets(50, 2)
    weights, running = pair_network(WIDTHS, dtype="float32")
    p4, offsets = jets.p4.astype(np.float32), jets.offsets
    p4 = np.concatenate([p4, np.ones((4, outside), np.float32)], 1)
    pairs = int((np.diff(offsets) ** 2).sum())
    lower = (pairs + min(pairs, p4.shape[1])) // 2
    for needed, most in (([False, True], 640), ([False, False], 0)):
        made = []

        def empty(shape, dtype, made=made):
            made.append(np.empty(shape, dtype))
            return made[-1]

        arguments = p4, offsets, pairs, weights, running, "batch", False, False, False, "reference", needed
        _dispatch.execute("pair_bias", "numba", arguments, None, 1, empty)
        assert made[3].nbytes <= most * (lower + TILE)


def test_extremes_of_a_batch():
    """No pairs; one pair, all of whose deviations are 0; NaN spreads through the statistics, a jet alone keeps it."""
    weights, running = pair_network((5, 3))
    for counts in ([], [0, 0]):
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        bias, moments = pair_bias(np.zeros((4, 0)), offsets, weights, running, statistics="batch")
        assert bias.shape == (3, 0) and not moments.any()
    one = np.array([[3.0, 0, 4, 6]]).T
    bias, moments = pair_bias(one, np.array([0, 1]), weights, running, statistics="batch")
    np.testing.assert_allclose(bias[:, 0], weights[-1], atol=1e-9)
    np.testing.assert_allclose(moments[1], 0, atol=1e-25)
    removed, moments = pair_bias(one, np.array([0, 1]), weights, running, statistics="batch", remove_self_pair=True)
    assert not removed.any() and not moments.any()
    p4, offsets = mixed()
    p4[2, 5] = np.nan
    assert np.isnan(pair_bias(p4, offsets, weights, running, statistics="batch")[0]).all()
    known = np.isnan(pair_bias(p4, offsets, weights, running)[0])
    assert known.sum() == 2 * 46 - 1


def test_jets_and_pairs():
    jets = toy_jets(9, 3)
    network = pair_network((5, 3), dtype=jets.p4.dtype.name)
    found = fasttag.pair_bias(jets, *network)
    assert same_bits(found, pair_bias(jets.p4, jets.offsets, *network))
    start = 0
    for a, b in pairwise(jets.offsets):
        n = b - a
        square = found[:, start : start + n * n].reshape(3, n, n)
        assert (square == square.transpose(0, 2, 1)).all()
        start += n * n


@pytest.mark.shared
def test_buffers_of_weaver_after_a_step(shared):
    """The running statistics after one training step in float64: 0.9 old + 0.1 of all real pairs, variance unbiased."""
    golden = shared / "golden"
    with np.load(golden / "part_weaver.npz") as f, np.load(golden / "part_weaver_float64.npz") as after:
        name = "pair_embed.embed."
        state = {k.removeprefix("state/" + name): f[k].astype(np.float64) for k in f if name in k and "state/" in k}
        after = {k.split(name)[1]: after[k] for k in after if k.startswith("buffer_after_float64/" + name)}
    with np.load(golden / "model_inputs.npz") as f:
        mask = f["mask"][:, 0]
        p4 = f["vectors_pxpypze"].astype(np.float64).transpose(1, 0, 2)[:, mask]
    offsets = np.concatenate([[0], np.cumsum(mask.sum(1))])
    weights, running = [state["0.weight"], state["0.bias"]], []
    for conv in (1, 4, 7, 10):
        weights += [state[f"{conv}.weight"][..., 0], state[f"{conv}.bias"]]
        weights += [state[f"{conv + 1}.weight"], state[f"{conv + 1}.bias"]]
    norms = (0, 2, 5, 8, 11)
    for norm in norms:
        running += [state[f"{norm}.running_mean"], state[f"{norm}.running_var"]]
    _, moments = pair_bias(np.ascontiguousarray(p4), offsets, weights, running, statistics="batch")
    counts = np.diff(offsets)
    pairs, start = (counts * (counts + 1) // 2).sum(), 0
    for norm, width in zip(norms, [4, *widths_of(weights)]):
        mean, variance = moments[:, start : start + width]
        start += width
        for found, key in ((mean, "running_mean"), (variance * pairs / (pairs - 1), "running_var")):
            expected = after[f"{norm}.{key}"]
            found = 0.9 * state[f"{norm}.{key}"] + 0.1 * found
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda w, r: (w[0], r), TypeError, "weights must be a list of arrays, got ndarray"),
        (lambda w, r: (w[:6], r), ValueError, "weights must be 2 arrays and 4 of each of at least 2 layers, got 6"),
        (lambda w, r: (w, r[:-1]), ValueError, "running must be 6 arrays, two of each BatchNorm, got 5"),
        (
            lambda w, r: ([*w[:6], w[6].T, *w[7:]], r),
            ValueError,
            r"weights\[6\] must have shape \(5, 5\), got \(5, 3\)",
        ),
        (lambda w, r: (w, [*r[:2], r[0], *r[3:]]), ValueError, r"running\[2\] must have shape \(5,\), got \(4,\)"),
        (lambda w, r: (w, [r[0].astype(np.float32), *r[1:]]), TypeError, "all floats must share one dtype"),
        (lambda w, r: ([torch.ones(4), *w[1:]], r), TypeError, "all arrays must share one library and device"),
    ],
)
def test_wrong_networks(change, error, message):
    with pytest.raises(error, match=f"^pair_bias: {message}"):
        pair_bias(*mixed(), *change(*pair_network((5, 3))))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"statistics": "frozen"}, ValueError, 'statistics must be "running" or "batch", got \'frozen\''),
        ({"m2": "weaver"}, ValueError, 'm2 must be "reference" or "stable", got'),
        ({"pairs": 7}, ValueError, "pairs must be [0-9]+ here, got 7"),
        ({"pairs": 7.0}, TypeError, "pairs must be an integer, got 7.0"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=f"^pair_bias: {message}"):
        pair_bias(*mixed(), *pair_network((5, 3)), **options)
