"""What only edge_conv promises: statistics, padding, missing neighbours, gradients, errors."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from cases import edge_conv_weights
from fasttag_kernels.edge_conv import edge_conv, reference
from fasttag_kernels.knn import knn
from tolerances import EPS32

COUNTS = [3, 0, 20, 1, 17, 25, 2, 300]  # the last of several tiles
SHAPES = [(5, (6, 7, 8), 4), (8, (6, 8), 3), (4, (9, 5, 9, 3), 16), (3, (32, 4), 1)]
every_shape = pytest.mark.parametrize(("columns", "widths", "k"), SHAPES, ids=str)
every_way = pytest.mark.parametrize(
    ("statistics", "padded"), [("running", 0), ("batch", 0), ("batch", 301)], ids=["running", "batch", "padded"]
)
every_missing = pytest.mark.parametrize("missing", ["real", "ghost"])


def problem(columns, widths, k, counts=COUNTS, before=2, after=3):
    """x, neighbours, offsets, weights, running in float64; some neighbours are left out."""
    rng = np.random.default_rng(7)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64) + before
    x = rng.normal(size=(offsets[-1] + after, columns))
    neighbours = knn(x, k, offsets=offsets)
    neighbours[rng.random(neighbours.shape) < 0.1] = -1
    arrays = edge_conv_weights(columns, widths)
    many = 3 * (len(widths) + (columns != widths[-1]))
    return x, neighbours, offsets, arrays[:many], arrays[many:]


def plain(x, neighbours, offsets, weights, running, statistics, padded, missing):
    """The definition in torch, for its gradients."""
    k, rows, columns = neighbours.shape[1], *x.shape
    start = np.repeat(offsets[:-1], np.diff(offsets))
    inside = np.arange(offsets[0], offsets[-1])
    near = neighbours[inside]
    other = torch.from_numpy(np.where(near < 0, rows, near + start[:, None]))
    here = torch.from_numpy((near >= 0) | (missing == "ghost"))
    zeros = padded * (len(offsets) - 1) - len(inside) if padded else 0
    own = x[inside][:, None].expand(-1, k, -1)
    e = torch.cat([own, torch.cat([x, x.new_zeros(1, columns)])[other] - own], 2)[here]
    e = torch.cat([e, e.new_zeros(zeros * k, 2 * columns)])

    def norm(z, layer):
        given = (None, None) if statistics == "batch" else running[2 * layer : 2 * layer + 2]
        return torch.nn.functional.batch_norm(z, *given, *weights[3 * layer + 1 : 3 * layer + 3], statistics == "batch")

    layers = len(weights) // 3 - (weights[-3].shape[0] != columns)
    for layer in range(layers):
        e = torch.relu(norm(e @ weights[3 * layer].T, layer))
    total = e.new_zeros(len(inside), k, e.shape[1]).masked_scatter(here[..., None], e[: int(here.sum())])
    mean = total.sum(1) / here.sum(1).clamp(min=1)[:, None]
    added = x[inside]
    if len(weights) > 3 * layers:
        added = norm(torch.cat([added, e.new_zeros(zeros, columns)]) @ weights[-3].T, layers)[: len(inside)]
    return torch.nn.functional.pad(torch.relu(added + mean), (0, 0, int(offsets[0]), rows - int(offsets[-1])))


@every_shape
@every_way
@every_missing
def test_agrees_with_the_oracle(columns, widths, k, statistics, padded, missing):
    options = {"statistics": statistics, "padded": padded, "missing": missing}
    arguments = problem(columns, widths, k)
    found, expected = (f(*arguments, **options) for f in (edge_conv, reference.edge_conv))
    if statistics == "batch":
        (found, moments), (expected, expected_moments) = found, expected
        np.testing.assert_allclose(moments, expected_moments, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


@every_shape
@every_way
@every_missing
def test_gradients_are_those_of_plain_torch(columns, widths, k, statistics, padded, missing):
    x, neighbours, offsets, weights, running = problem(columns, widths, k)
    weights = [torch.from_numpy(w).requires_grad_() for w in weights]
    running = [torch.from_numpy(r) for r in running]
    x = torch.from_numpy(x).requires_grad_()
    options = {"statistics": statistics, "padded": padded, "missing": missing}
    expected = plain(x, neighbours, offsets, weights, running, **options)
    gradient = torch.from_numpy(np.random.default_rng(8).normal(size=expected.shape))
    gradients = torch.autograd.grad(expected, [x, *weights], gradient)
    given = x, torch.from_numpy(neighbours), torch.from_numpy(offsets)
    for threads in (1, 3):
        found = edge_conv(*given, weights, running, threads=threads, **options)
        found = found if statistics == "running" else found[0]
        mine = torch.autograd.grad(found, [x, *weights], gradient)
        if threads == 1:
            first = mine
        largest = max(float(g.abs().max()) for g in gradients)
        for a, b in zip(mine, gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12 * largest)
        assert all(torch.equal(a, b) for a, b in zip(mine, first, strict=True)), "threads change bits"


@every_way
def test_float32_gradients(statistics, padded):
    """As far from those of float64 as plain torch's, at most twice."""
    x, neighbours, offsets, weights, running = problem(7, (16, 16, 16), 16)
    gradient = np.random.default_rng(8).normal(size=(len(x), 16)).astype(np.float32)

    def gradients(function, dtype):
        arrays = [torch.from_numpy(a.astype(np.float32)).to(dtype) for a in (x, *weights)]
        leaves = [a.requires_grad_() for a in arrays]
        given = [torch.from_numpy(r.astype(np.float32)).to(dtype) for r in running]
        found = function(leaves[0], leaves[1:], given)
        return torch.autograd.grad(found, leaves, torch.from_numpy(gradient).to(dtype))

    def ours(x, weights, running):
        found = edge_conv(
            x,
            torch.from_numpy(neighbours),
            torch.from_numpy(offsets),
            weights,
            running,
            statistics=statistics,
            padded=padded,
        )
        return found if statistics == "running" else found[0]

    theirs = lambda x, weights, running: plain(
        x, neighbours, offsets, weights, running, statistics, padded, missing="real"
    )
    exact = gradients(theirs, torch.float64)
    for mine, other, expected in zip(gradients(ours, torch.float32), gradients(theirs, torch.float32), exact):
        error, allowed = ((g.double() - expected).abs().max() for g in (mine, other))
        assert error <= 2 * allowed + 4 * EPS32 * expected.abs().max()


def test_gradcheck():
    x, neighbours, offsets, weights, running = problem(3, (4, 5), 2, counts=[3, 1, 4], before=1, after=1)
    tensors = [torch.from_numpy(a) for a in (neighbours, offsets)]
    for statistics in ("running", "batch"):

        def run(x, *weights, statistics=statistics):
            found = edge_conv(x, *tensors, list(weights), list(map(torch.from_numpy, running)), statistics=statistics)
            return found if statistics == "running" else found[0]

        assert torch.autograd.gradcheck(run, [torch.from_numpy(a).requires_grad_() for a in (x, *weights)])


def test_moments_carry_no_gradient():
    x, neighbours, offsets, weights, _ = problem(3, (4, 5), 2)
    x = torch.from_numpy(x).requires_grad_()
    given = torch.from_numpy(neighbours), torch.from_numpy(offsets), [torch.from_numpy(w) for w in weights]
    out, moments = edge_conv(x, *given, [], statistics="batch")
    assert out.requires_grad and not moments.requires_grad and moments.shape == (3, 14)
    assert moments[2].tolist() == [float((neighbours[2:-3] >= 0).sum())] * 9 + [float(sum(COUNTS))] * 5


def test_without_any_edge():
    """Jets of one constituent: the shortcut alone; statistics of nothing are 0 and harmless."""
    x, neighbours, offsets, weights, running = problem(3, (4, 5), 2, counts=[1, 1, 1])
    assert (neighbours == -1).all()
    out = edge_conv(x, neighbours, offsets, weights, running)
    z = (x[2:5] @ weights[6].T - running[4]) / np.sqrt(running[5] + 1e-5) * weights[7] + weights[8]
    np.testing.assert_allclose(out[2:5], np.maximum(z, 0), rtol=1e-12, atol=1e-12)
    leaf = torch.from_numpy(x).requires_grad_()
    found, moments = edge_conv(
        leaf,
        *map(torch.from_numpy, (neighbours, offsets)),
        [torch.from_numpy(w).requires_grad_() for w in weights],
        [],
        statistics="batch",
    )
    assert not moments[:, :9].any() and moments[2, 9:].tolist() == [3] * 5
    assert torch.autograd.grad(found.sum(), leaf)[0].isfinite().all()


def test_tile_rows_have_the_same_bits_anywhere():
    """Products of few rows: here jets of every size by themselves and behind one another."""
    x, neighbours, offsets, *arrays = problem(7, (64, 64, 64), 7, counts=range(1, 90))
    for dtype in (np.float32, np.float64):
        given = [[a.astype(dtype) for a in arrays_] for arrays_ in arrays]
        whole = edge_conv(x.astype(dtype), neighbours, offsets, *given)
        for a, b in pairwise(offsets):
            part = edge_conv(x[a:b].astype(dtype), neighbours[a:b], np.array([0, b - a]), *given)
            assert np.array_equal(part, whole[a:b])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.zeros((9, 0))}, ValueError, r"x must have shape \(N, C\)"),
        ({"neighbours": np.zeros((9, 2))}, TypeError, "neighbours must be int32, got float64"),
        ({"neighbours": np.zeros((8, 2), np.int32)}, ValueError, r"neighbours must have shape \(9, k\), got \(8, 2\)"),
        ({"neighbours": np.full((9, 2), 4, np.int32)}, ValueError, "got 4 for constituent 1; knn gives such"),
        ({"neighbours": np.full((9, 2), -2, np.int32)}, ValueError, "got -2 for constituent 1"),
        ({"statistics": "real"}, ValueError, "statistics must be one of running, batch, got 'real'"),
        ({"missing": None}, ValueError, "missing must be one of real, ghost, got None"),
        ({"padded": 5}, ValueError, "padded must be 0 with running statistics, got 5"),
        ({"padded": 3, "statistics": "batch"}, ValueError, "padded must be 4 or more, got 3"),
        ({"padded": -1}, ValueError, "padded must be 0 or more, got -1"),
        ({"weights": lambda w: w[:3]}, ValueError, "weights must be three per layer, of two layers or more"),
        ({"weights": lambda w: w[:-1]}, ValueError, "weights must be three per layer"),
        (
            {"weights": lambda w: [w[0][:, 1:], *w[1:]]},
            ValueError,
            r"weights\[0\] must have shape \(4, 6\), got \(4, 5\)",
        ),
        (
            {"weights": lambda w: [*w[:4], w[5][1:], *w[5:]]},
            ValueError,
            r"weights\[4\] must have shape \(5,\), got \(4,\)",
        ),
        (
            {"weights": lambda w: [*w[:6], w[6][1:], w[7][1:], w[8][1:]]},
            ValueError,
            r"weights\[6\] must have the width of the last layer, 5, got 4",
        ),
        ({"running": []}, ValueError, r"running must have shapes \[\(4,\), \(4,\), .*, got \[\]"),
        ({"weights": lambda w: [w[0].astype("f4"), *w[1:]]}, TypeError, r"x is float64, weights\[0\] is float32"),
    ],
)
def test_errors(change, error, message):
    names = ("x", "neighbours", "offsets", "weights", "running")
    arguments = dict(zip(names, problem(3, (4, 5), 2, counts=[2, 4], before=1, after=2)))
    change = {name: value(arguments[name]) if callable(value) else value for name, value in change.items()}
    with pytest.raises(error, match=f"edge_conv: .*{message}"):
        edge_conv(**{**arguments, **change})
