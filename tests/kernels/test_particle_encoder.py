"""What only particle_encoder promises: sizes, pairs left out, NaN, tiles, errors."""

import numpy as np
import pytest

import cases
from fasttag_kernels.particle_encoder import numba_cpu, particle_encoder, reference

SIZES = [
    {"embed_dims": (8,), "heads": 1, "layers": 0, "cls_layers": 0},
    {"embed_dims": (24, 16), "heads": 16, "layers": 1, "cls_layers": 1},
    {"embed_dims": (16, 96), "heads": 32, "layers": 1, "cls_layers": 1},
    {"embed_dims": (40, 24), "heads": 2, "layers": 3, "cls_layers": 0},
    {"embed_dims": (8, 64), "heads": 4, "layers": 0, "cls_layers": 3},
]


def arguments(counts, sizes, dtype="float64", columns=3):
    rng = np.random.default_rng(1)
    counts = np.array(counts)
    x, bias = rng.normal(size=(counts.sum(), columns)), rng.normal(size=(sizes["heads"], (counts**2).sum()))
    arrays = x.astype(dtype), np.concatenate([[0], np.cumsum(counts)]), bias.astype(dtype)
    return *arrays, cases.encoder_weights(columns, sizes, dtype)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sizes(sizes, dtype):
    given = arguments([17, 0, 65, 1, 300, 32, 33], sizes, dtype)
    found, expected = particle_encoder(*given, **sizes), reference.particle_encoder(*given, **sizes)
    assert found.dtype == dtype
    assert (np.abs(found - expected) <= np.finfo(dtype).eps * reference.rounding_scale(*given, **sizes)).all()


def test_a_tile_holds_many_jets():
    """More than the lanes of class tokens, and more constituents than a tile has."""
    given = arguments([0] * 40 + [2] * 70 + [0] * 33 + [90] * 6, cases.ENCODER)
    found, expected = particle_encoder(*given, **cases.ENCODER), reference.particle_encoder(*given, **cases.ENCODER)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


def test_queries_without_any_pair():
    """Attention of 0, as in `particle_attention`."""
    given = arguments([20, 20], cases.ENCODER)
    given[2][:, 3 * 20 : 5 * 20] = -np.inf
    found, expected = particle_encoder(*given, **cases.ENCODER), reference.particle_encoder(*given, **cases.ENCODER)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("array", "at"), [(0, (30, 1)), (2, (1, 20 * 20 + 7))])
def test_not_a_number_stays_in_its_jet(array, at, value):
    given = arguments([20, 20, 20], cases.ENCODER)
    before = particle_encoder(*given, **cases.ENCODER)
    given[array][at] = value
    after = particle_encoder(*given, **cases.ENCODER)
    assert np.isnan(after[1]).all() and np.array_equal(after[::2], before[::2])


def test_size_of_tiles_does_not_matter(monkeypatch):
    given = arguments([20, 3, 50, 64, 7] * 3, cases.ENCODER, "float32")
    expected = particle_encoder(*given, **cases.ENCODER)
    monkeypatch.setattr(numba_cpu, "TILE", 1)
    assert np.array_equal(particle_encoder(*given, **cases.ENCODER), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.ones(40)}, ValueError, r"x must have shape \(N, F\), got \(40,\); one row per constituent"),
        ({"bias": np.ones((3, 800))}, ValueError, r"bias must have shape \(H, M\) with H = 2, got \(3, 800\)"),
        ({"bias": np.ones((2, 801))}, ValueError, r"bias must have shape \(H, M\) with M = 800 here, the sum of n\^2"),
        ({"weights": np.ones(7)}, ValueError, r"weights must have shape \(4102,\) here, got \(7,\); the docstring has"),
        ({"weights": np.ones(4102, np.float32)}, TypeError, "all floats must share one dtype"),
        ({"embed_dims": ()}, ValueError, "embed_dims must be one width or more, got none"),
        ({"embed_dims": (16, 12)}, ValueError, r"embed_dims\[1\] must be a multiple of 8, got 12; pad the weights"),
        ({"embed_dims": (16.0, 8)}, TypeError, r"embed_dims\[0\] must be an integer, got 16.0"),
        ({"heads": 3}, ValueError, "heads must divide the width 8 and be at most 32, got 3; take fewer"),
        ({"heads": True}, TypeError, "heads must be an integer, got True"),
        ({"layers": -1}, ValueError, "layers must be 0 or more, got -1"),
        ({"cls_layers": 1.5}, TypeError, "cls_layers must be an integer, got 1.5"),
    ],
)
def test_errors(change, error, message):
    named = dict(zip(("x", "offsets", "bias", "weights"), arguments([20, 20], cases.ENCODER)))
    with pytest.raises(error, match=f"^particle_encoder: {message}"):
        particle_encoder(**{**named, **cases.ENCODER, **change})
