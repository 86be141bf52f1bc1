"""Ragged attention against a padded one of torch, dropout, masked pairs, what is refused and what is kept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from cases import BAD_DROPOUT
from fasttag_kernels import _torch
from fasttag_kernels.particle_attention import particle_attention, reference
from tolerances import EPS32

COUNTS = [1, 0, 16, 17, 64, 65, 2, 200]


def problem(counts, heads=2, head_dim=16, dtype=torch.float64, seed=1, before=2, after=3):
    """qkv, offsets and bias."""
    rng = np.random.default_rng(seed)
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]) + before)
    qkv = rng.normal(size=(int(offsets[-1]) + after, 3, heads, head_dim))
    bias = rng.normal(0, 2, (heads, int(np.square(counts).sum())))
    return torch.from_numpy(qkv).to(dtype), offsets, torch.from_numpy(bias).to(dtype)


def padded(qkv, offsets, bias=None):
    """torch's attention of jets padded to the longest, with -inf for keys that are not there."""
    counts = offsets.diff().tolist()
    heads, longest = qkv.shape[2], max(counts)
    dense = qkv.new_zeros(len(counts), longest, *qkv.shape[1:])
    mask = qkv.new_zeros(len(counts), heads, longest, longest)
    bias = qkv.new_zeros(heads, sum(n * n for n in counts)) if bias is None else bias
    blocks = bias.split([n * n for n in counts], 1)
    out = torch.zeros_like(qkv[:, 0])
    for j, (a, n) in enumerate(zip(offsets.tolist(), counts)):
        if n:
            dense[j, :n] = qkv[a : a + n]
            mask[j, :, :n, :n] = blocks[j].reshape(heads, n, n)
            mask[j, :, :, n:] = -torch.inf
    q, k, v = dense.permute(2, 0, 3, 1, 4)
    found = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    for j, (a, n) in enumerate(zip(offsets.tolist(), counts)):
        out[a : a + n] = found[j, :n]
    return out


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("head_dim", [1, 5, 16, 17, 32, 128])
def test_equals_padded(head_dim, biased):
    qkv, offsets, bias = problem(COUNTS, head_dim=head_dim)
    given = [qkv.requires_grad_()] + ([bias.requires_grad_()] if biased else [])
    expected = padded(qkv, offsets, bias if biased else None)
    found = particle_attention(qkv, offsets, bias=bias if biased else None)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    gradient = torch.from_numpy(np.random.default_rng(2).normal(size=found.shape))
    for a, b in zip(*(torch.autograd.grad(out, given, gradient) for out in (found, expected))):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_the_reference(dtype, monkeypatch):
    """Every element is written, whatever was in memory, the same with any number of threads; dropout included."""
    poison = lambda shape, dtype: np.full(shape, np.nan, dtype)
    monkeypatch.setattr(_torch, "_memory", poison)
    qkv, offsets, bias = problem(COUNTS, heads=3, dtype=dtype)
    settings = {"dropout": 0.3, "seed": (7 << 40) + 5, "layer": 3}
    gradient = torch.from_numpy(np.random.default_rng(3).normal(size=qkv[:, 0].shape)).to(dtype)
    expected = reference.particle_attention_backward(
        gradient.numpy(), qkv.numpy(), offsets.numpy(), bias.numpy(), *settings.values()
    )
    given = qkv.requires_grad_(), bias.requires_grad_()
    found, others = (
        torch.autograd.grad(particle_attention(qkv, offsets, bias=bias, threads=threads, **settings), given, gradient)
        for threads in (1, 3)
    )
    # n roundings in sums of up to 200 terms of order one
    tolerance = 1e-10 if dtype == torch.float64 else 200 * EPS32
    for a, b, other in zip(found, expected, others):
        assert torch.equal(a, other)
        np.testing.assert_allclose(a.numpy(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradcheck(dropout):
    qkv, offsets, bias = problem([3, 0, 5, 1], head_dim=3)
    run = lambda qkv, bias: particle_attention(qkv, offsets, bias=bias, dropout=dropout, seed=9, layer=2)
    assert torch.autograd.gradcheck(run, (qkv.requires_grad_(), bias.requires_grad_()))
    assert torch.autograd.gradcheck(lambda bias: run(qkv.detach(), bias), bias)
    assert torch.autograd.gradcheck(lambda qkv: run(qkv, bias.detach()), qkv)
    assert torch.autograd.gradcheck(lambda qkv: run(qkv, None), qkv)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_longer_than_any_block(dtype):
    qkv, offsets, _ = problem([3, 5000], heads=1, dtype=dtype)
    qkv = qkv.clone().requires_grad_()
    found = particle_attention(qkv, offsets, dropout=0.5, seed=4)
    expected = reference.particle_attention(qkv.detach().numpy(), offsets.numpy(), None, 0.5, 4)
    tolerance = 1e-10 if dtype == torch.float64 else 100 * EPS32
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=tolerance, atol=tolerance)
    (by_value,) = torch.autograd.grad(found.sum(), qkv)
    # values enter linearly: Euler
    torch.testing.assert_close((qkv * by_value)[:, 2].detach().sum(), found.detach().sum(), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_a_long_jet(dtype):
    given = [x.requires_grad_() for x in problem([3, 600], dtype=dtype)[::2]]
    doubles = [x.detach().double().requires_grad_() for x in given]
    offsets = problem([3, 600])[1]
    gradient = torch.from_numpy(np.random.default_rng(2).normal(size=given[0][:, 0].shape)).to(dtype)
    found = torch.autograd.grad(particle_attention(given[0], offsets, bias=given[1]), given, gradient)
    expected = torch.autograd.grad(padded(doubles[0], offsets, doubles[1]), doubles, gradient.double())
    tolerance = 1e-10 if dtype == torch.float64 else 100 * EPS32
    for a, b in zip(found, expected):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


def test_permutation():
    qkv, offsets, bias = problem([20], before=0, after=0)
    order = torch.from_numpy(np.random.default_rng(4).permutation(20))
    blocks = bias.reshape(2, 20, 20)[:, order][:, :, order].reshape(2, -1)
    found = particle_attention(qkv[order], offsets, bias=blocks)
    torch.testing.assert_close(found, particle_attention(qkv, offsets, bias=bias)[order], rtol=1e-13, atol=1e-13)


def masks(counts, dropout, **options):
    """Which weights are kept, per jet (heads, n, n): values are unit vectors, scores equal, so the output is Z / n."""
    n = max(counts)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    qkv = np.zeros((offsets[-1], 3, 2, n), np.float32)
    for a, b in itertools.pairwise(offsets):
        qkv[a:b, 2] = np.eye(n, dtype=np.float32)[: b - a, None]
    out = particle_attention(qkv, offsets, dropout=dropout, **options)
    return [out[a:b, :, : b - a].transpose(1, 0, 2) * (b - a) for a, b in itertools.pairwise(offsets)]


def test_dropout_is_the_definition():
    found = masks([5, 0, 33, 70], 0.3, seed=(3 << 32) + 11, layer=6)
    for jet, head in itertools.product((0, 2, 3), (0, 1)):
        expected = reference.kept(len(found[jet][0]), 0.3, (3 << 32) + 11, 6, jet, head)
        np.testing.assert_allclose(found[jet][head], expected, rtol=1e-6)


def test_dropout_statistics():
    """Means, and no correlation between heads, layers, seeds, jets, nor between neighbours: 5 standard errors."""
    options = [{"seed": 1}, {"seed": 2}, {"seed": 1 + (1 << 32)}, {"seed": 1, "layer": 1}]
    kept = [mask[head] > 0 for given in options for mask in masks([128, 128], 0.25, **given) for head in (0, 1)]
    error = np.sqrt(0.25 * 0.75 / 128**2)
    assert all(abs(mask.mean() - 0.75) < 5 * error for mask in kept)
    for a, b in itertools.combinations(kept, 2):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / 128
    for mask in kept:
        for a, b in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1]), (mask, mask.T)):
            if a is mask:
                a, b = mask[np.triu_indices(128, 1)], mask.T[np.triu_indices(128, 1)]
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 7 / 128


def test_dropout_depends_on_the_place_in_the_batch_only():
    first, second = masks([40, 7, 21], 0.5, seed=8), masks([3, 64, 21], 0.5, seed=8)
    assert np.array_equal(first[2], second[2]) and not np.array_equal(first[1][0, :7, :7], second[1][0, :7, :7])
    assert all(np.array_equal(a, b) for a, b in zip(first, masks([40, 7, 21], 0.5, seed=8, threads=3)))
    assert np.array_equal(masks([40], 0.0)[0] > 0, np.ones((2, 40, 40), bool))
    qkv, offsets, bias = problem(COUNTS)
    plain = particle_attention(qkv, offsets, bias=bias)
    assert torch.equal(plain, particle_attention(qkv, offsets, bias=bias, dropout=0, seed=77, layer=5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_pairs(dtype):
    """A key left out by all might not be there; a query without any key gives 0 and takes no gradient."""
    qkv, offsets, bias = problem([21], dtype=dtype, before=0, after=0)
    blocks = bias.reshape(2, 21, 21)
    blocks[:, :, 20] = -torch.inf
    blocks[:, 4] = -torch.inf
    qkv, bias = qkv.requires_grad_(), bias.requires_grad_()
    found = particle_attention(qkv, offsets, bias=bias)
    fewer = particle_attention(
        qkv[:20], torch.tensor([0, 20]), bias=bias.reshape(2, 21, 21)[:, :20, :20].reshape(2, -1)
    )
    torch.testing.assert_close(found[:20], fewer, rtol=1e-5, atol=1e-6)
    assert not found[4].any() and found[5].all()
    by_qkv, by_bias = torch.autograd.grad(found.square().sum(), (qkv, bias))
    by_bias = by_bias.reshape(2, 21, 21)
    assert by_qkv.isfinite().all() and by_bias.isfinite().all()
    assert not by_qkv[4, 0].any() and not by_qkv[20, 1:].any() and by_qkv[20, 0].all()
    assert not by_bias[:, 4].any() and not by_bias[:, :, 20].any() and by_bias[:, 3, :20].all()


def test_far_scores():
    """The largest is taken off exactly: weights stay finite, whatever the scores."""
    qkv, offsets, bias = problem([30], dtype=torch.float32, before=0, after=0)
    shifted = bias + torch.tensor([[1e30], [-1e30]])
    assert particle_attention(qkv, offsets, bias=shifted).isfinite().all()
    torch.testing.assert_close(
        particle_attention(qkv, offsets, bias=(bias * 64).round() / 64 + 4096),
        particle_attention(qkv, offsets, bias=(bias * 64).round() / 64),
        rtol=0,
        atol=1e-2,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_far_scores(dtype):
    """The same weights in both passes: of a row of nothing but the same large score they are 1 / n."""
    qkv, offsets, bias = problem([30], dtype=dtype, before=0, after=0)
    qkv = qkv * 0.5
    rows = bias.reshape(2, 30, 30)
    for i, shift in enumerate((-1e9, 1e8, -1e30, 1e30, torch.finfo(dtype).min)):
        rows[:, i] = shift
    rows[:, :, 7] -= 1e9
    given = qkv.requires_grad_(), bias.requires_grad_()
    gradient = torch.from_numpy(np.random.default_rng(2).normal(size=qkv[:, 0].shape)).to(dtype)
    found, expected = (f(qkv, offsets, bias=bias) for f in (particle_attention, padded))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-6  # 1e9 + q . k is rounded, in float64 by 1e-7
    for a, b in zip(
        (found, *torch.autograd.grad(found, given, gradient)),
        (expected, *torch.autograd.grad(expected, given, gradient)),
    ):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_reaches_what_it_must(value):
    qkv, offsets, bias = (x.numpy() for x in problem([20, 30], dtype=torch.float32, before=0, after=0))
    everywhere = np.zeros((50, 2, 16), bool)

    def reached(part, place):
        arrays = {"qkv": qkv.copy(), "bias": bias.copy()}
        arrays[part][place] = value
        return ~np.isfinite(particle_attention(arrays["qkv"], offsets, bias=arrays["bias"]))

    row = everywhere.copy()
    row[7, 1] = True
    assert np.array_equal(reached("qkv", (7, 0, 1, 3)), row)
    assert np.array_equal(reached("bias", (1, 7 * 20 + 11)), row)
    channel = everywhere.copy()
    channel[:20, 1, 3] = True
    assert np.array_equal(reached("qkv", (7, 2, 1, 3)), channel)
    found = reached("qkv", (7, 1, 1, 3))
    rising = qkv[:20, 0, 1, 3] > 0 if value == np.inf else np.ones(20, bool)  # else the score is -inf: left out
    head = everywhere.copy()
    head[:20, 1] = rising[:, None]
    assert np.array_equal(found, head)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_nothing_per_pair_is_saved(dropout):
    """But for the bias itself, which is the caller's."""
    qkv, offsets, bias = problem([100, 100], dtype=torch.float32)
    qkv, bias, kept = qkv.requires_grad_(), bias.requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        particle_attention(qkv, offsets, bias=bias, dropout=dropout)
    inside = {x.data_ptr() for x in (qkv, bias, offsets)}
    assert sum(x.numel() for x in kept if x.data_ptr() not in inside) == qkv.shape[0] * 2
    assert torch.ops.fasttag.particle_attention(qkv.detach(), offsets, bias.detach(), 0.0, 0, 0, [False] * 2, None, 1)[
        1
    ].shape == (0, 2)


ONE = np.ones((3, 3, 2, 4), np.float32)
AT = np.array([0, 3])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((ONE[:, :2], AT), {}, ValueError, r"qkv must have shape \(N, 3, H, D\) with D of 1 to 128"),
        ((ONE[:, 0], AT), {}, ValueError, "qkv must have shape"),
        ((ONE[..., :0], AT), {}, ValueError, "qkv must have shape"),
        ((ONE[:, :, :0], AT), {}, ValueError, "qkv must have shape"),
        ((ONE.repeat(33, 3), AT), {}, ValueError, "qkv must have shape"),
        ((ONE, AT), {"bias": np.ones((3, 9), np.float32)}, ValueError, r"bias must have shape \(H, M\) with H = 2"),
        ((ONE, AT), {"bias": np.ones((2, 8), np.float32)}, ValueError, r"bias must have .* M = 9 here"),
        ((ONE, AT), {"bias": np.ones((2, 9))}, TypeError, "all floats must share one dtype"),
        *(((ONE, AT), *bad) for bad in BAD_DROPOUT),
    ],
)
def test_refuses(arguments, options, error, message):
    with pytest.raises(error, match=f"^particle_attention: {message}"):
        particle_attention(*arguments, **options)
