"""What only particlenet_encoder promises: the bits of its steps, NaN, weights, errors."""

import numpy as np
import pytest

import cases
from fasttag_kernels.edge_conv import edge_conv
from fasttag_kernels.knn import knn
from fasttag_kernels.particlenet_encoder import pack, particlenet_encoder
from fasttag_kernels.segment import segment

CONVS = [
    [(16, (64, 64, 64)), (16, (128, 128, 128)), (16, (256, 256, 256))],
    [(7, (32, 32, 32)), (7, (64, 64, 64))],
    [(3, (5, 6)), (20, (6, 40, 6)), (2, (7, 9, 33, 1))],
    [(32, (8, 7))],
    [(1, (33, 2)), (9, (2, 300))],
]
COUNTS = (0, 1, 2, 16, 17, 65, 0, 200, 3, *[1] * 70, 64, 50, 14, 300)


def arguments(convs, dtype="float64", counts=COUNTS, columns=7):
    """x, points, offsets above zero, and the weights as `pack` takes them."""
    rng = np.random.default_rng(6)
    offsets = np.concatenate([[0], np.cumsum(counts)]) + 4
    x, points = (rng.normal(size=(offsets[-1] + 3, many)).astype(dtype) for many in (columns, 2))
    return x, points, offsets, *cases.particlenet_lists(columns, convs, dtype)


def steps(x, points, offsets, norm, lists, convs, missing="real", reduce="mean"):
    """One operation after the other."""
    x = (x - norm[0]) * norm[1] + norm[2]
    for (k, _), (weights, running) in zip(convs, lists):
        points = x = edge_conv(x, knn(points, k, offsets=offsets), offsets, weights, running, missing=missing)
    return segment(x, offsets, reduce=reduce)


@pytest.mark.parametrize("convs", CONVS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("missing", "reduce"), [("real", "mean"), ("ghost", "sum")])
def test_has_the_bits_of_its_steps(convs, dtype, missing, reduce):
    *arrays, norm, lists = arguments(convs, dtype)
    options = {"convs": convs, "missing": missing, "reduce": reduce}
    expected = steps(*arrays, norm, lists, **options)
    assert expected.any() and np.isfinite(expected).all()
    for threads in (1, 2, 5):
        assert np.array_equal(particlenet_encoder(*arrays, pack(norm, lists), threads=threads, **options), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("array", "at"), [(0, (30, 1)), (1, (30, 0))])
def test_not_a_number_stays_in_its_jet(array, at, value):
    *arrays, norm, lists = arguments(CONVS[1], counts=[20, 20, 20])
    weights = pack(norm, lists)
    before = particlenet_encoder(*arrays, weights, convs=CONVS[1])
    arrays[array][at] = value
    after = particlenet_encoder(*arrays, weights, convs=CONVS[1])
    assert np.array_equal(after[::2], before[::2])
    assert np.isfinite(after[1]).all() if array else not np.isfinite(after[1]).any()


def test_weights_begin_at_a_line_of_the_cache():
    for dtype in ("float32", "float64"):
        *_, norm, lists = arguments(CONVS[2], dtype)
        assert pack(norm, lists).ctypes.data % 64 == 0 and pack(norm, lists).dtype == dtype


def test_weights_of_other_shapes_are_not_packed():
    *_, norm, lists = arguments(CONVS[2])
    with pytest.raises(ValueError, match=r"weights\[0\] must have shape \(5, 12\), got \(5, 14\)"):
        pack([part[1:] for part in norm], lists)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.ones(40)}, ValueError, r"x must have shape \(N, F\), got \(40,\); one row per constituent"),
        ({"points": np.ones((40, 3))}, ValueError, r"points must have shape \(40, 2\), got \(40, 3\)"),
        ({"points": np.ones((40, 2), "f4")}, TypeError, "all floats must share one dtype"),
        (
            {"weights": np.ones(7)},
            ValueError,
            r"weights must have shape \(1909,\) here, got \(7,\); take those of pack",
        ),
        ({"missing": "none"}, ValueError, "missing must be one of real, ghost, got 'none'"),
        ({"reduce": "max"}, ValueError, "reduce must be one of mean, sum, got 'max'"),
        ({"convs": []}, ValueError, "convs must be one convolution or more, got none"),
        ({"convs": [(0, (8, 8))]}, ValueError, r"k of convs\[0\] must be 1 or more, got 0"),
        ({"convs": [(33, (8, 8))]}, ValueError, r"convs\[0\] must have at most 32 neighbours and two widths"),
        ({"convs": [(3, (8,))]}, ValueError, r"convs\[0\] must have .* two widths or more, got 3 and \(8,\)"),
        ({"convs": [(3, (8, 8.0))]}, TypeError, r"a width of convs\[0\] must be an integer, got 8.0"),
        ({"convs": [(3, (8, 1)), (3, (8, 8))]}, ValueError, r"the last width of convs\[0\] must lie in 2..256, got 1"),
        ({"convs": [(3, (8, 257)), (3, (8, 8))]}, ValueError, r"the last width of convs\[0\] .* got 257"),
    ],
)
def test_errors(change, error, message):
    convs = [(3, (8, 8))]
    x, points, offsets, norm, lists = arguments(convs, counts=[20, 13])
    named = {"x": x, "points": points, "offsets": offsets, "weights": pack(norm, lists), "convs": convs}
    with pytest.raises(error, match=f"^particlenet_encoder: {message}"):
        particlenet_encoder(**{**named, **change})
