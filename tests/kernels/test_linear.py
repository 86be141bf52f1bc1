"""linear beyond the contract: GELU and LayerNorm, sizes, dropout, what is not finite, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cases import BAD_DROPOUT
from fasttag_kernels.linear import linear, reference
from fasttag_kernels.particle_attention import reference as attention_reference

RNG = np.random.default_rng(12)
X = RNG.normal(size=(40, 512))
WEIGHT, BIAS = RNG.normal(size=(2, 512))
ONES, ZEROS = np.ones(512), np.zeros(512)


def gelu_layer_norm(x, weight, bias, **options):
    """What stands before the product, multiplied with 1."""
    identity = np.eye(x.shape[1], dtype=x.dtype)
    return linear(x, identity, 0 * identity[0], norm=(weight, bias), activation="gelu", **options)


def of_torch(x, weight, bias, eps=1e-5):
    tensors = [torch.from_numpy(a.astype(np.float64)) for a in (x, weight, bias)]
    return torch.nn.functional.layer_norm(torch.nn.functional.gelu(tensors[0]), x.shape[1:], *tensors[1:], eps).numpy()


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 4e-7), ("float64", 1e-13)])
def test_agrees_with_torch_in_float64(dtype, bound):
    """Relative to the largest number of a row."""
    arrays = [a.astype(dtype) for a in (X, WEIGHT, BIAS)]
    expected = of_torch(*arrays)
    error = np.abs(gelu_layer_norm(*arrays) - expected).max(1) / np.abs(expected).max(1)
    assert error.max() <= bound


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 1.0, 10])
def test_eps(eps):
    np.testing.assert_allclose(
        gelu_layer_norm(X, WEIGHT, BIAS, eps=eps), of_torch(X, WEIGHT, BIAS, eps), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constant_rows_and_one_column_give_the_bias(dtype):
    x = np.repeat(np.array([0.3, -2.0, 0, -50, 1e4], dtype), 512).reshape(5, 512)
    found = gelu_layer_norm(x, WEIGHT.astype(dtype), BIAS.astype(dtype))
    assert np.array_equal(found, np.repeat(BIAS.astype(dtype)[None], 5, 0))
    assert gelu_layer_norm(x[:, :1], np.ones(1, dtype), np.full(1, 7, dtype)).tolist() == [[7]] * 5


def test_a_small_spread_on_a_large_mean():
    """Mean and variance in two passes: what is left is the rounding of the numbers themselves."""
    x = (1000 + np.linspace(-1, 1, 512))[None]
    np.testing.assert_allclose(gelu_layer_norm(x, ONES, ZEROS), of_torch(x, ONES, ZEROS), atol=1e-11)
    x = x.astype(np.float32)
    found = gelu_layer_norm(x, ONES.astype("f"), ZEROS.astype("f"))
    np.testing.assert_allclose(found, of_torch(x, ONES, ZEROS), atol=1.5e-4)


@pytest.mark.parametrize("columns", [512, 2048])
def test_an_outlier_in_the_first_column(columns):
    """As good as any row in float64, relative to the largest number."""
    x, ones, zeros = np.random.default_rng(3).normal(size=(20, columns)), np.ones(columns), np.zeros(columns)
    x[:, 0] = 1e6
    expected = of_torch(x, ones, zeros)
    error = np.abs(gelu_layer_norm(x, ones, zeros) - expected).max(1) / np.abs(expected).max(1)
    assert error.max() <= 4e-15


def test_numbers_of_numpy_are_as_good():
    options = {"dropout": 0.25, "seed": 7 + (1 << 40), "layer": 3}
    of_numpy = {"dropout": np.float32(0.25), "seed": np.uint64(7 + (1 << 40)), "layer": np.int8(3)}
    found, expected = (gelu_layer_norm(X, WEIGHT, BIAS, **given) for given in (of_numpy, options))
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_not_finite_stays_in_its_row(value, dtype):
    arrays = [a.astype(dtype) for a in (X[:3], WEIGHT, BIAS)]
    expected = gelu_layer_norm(*arrays)
    arrays[0][1, 77] = value
    found = gelu_layer_norm(*arrays)
    assert np.array_equal(found[::2], expected[::2]) and np.isnan(found[1]).all()


@pytest.mark.parametrize("norm", [False, True])
def test_no_rows(norm):
    x, weight = torch.ones(0, 5, dtype=torch.float64), torch.ones(3, 5, dtype=torch.float64)
    tensors = [x, weight, weight[:, 0].clone(), *(weight[:2].clone().unbind() if norm else ())]
    tensors = [tensor.requires_grad_() for tensor in tensors]
    found = linear(*tensors[:3], norm=tensors[3:] or None, activation="gelu", dropout=0.5)
    assert found.shape == (0, 3)
    for tensor, gradient in zip(tensors, torch.autograd.grad(found.sum(), tensors), strict=True):
        assert gradient.shape == tensor.shape and not gradient.any()


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (7, 3, 130), (128, 16, 16), (129, 33, 32), (300, 128, 31), (64, 512, 128)]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_of_any_size(shape, dtype):
    """Rows in tiles of 128, columns in panels of 32: with and without a rest."""
    n, depth, width = shape
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=size).astype(dtype) for size in ((n, depth), (width, depth), (width,))]
    found, expected = linear(*arrays), reference.linear(*arrays)
    terms = np.abs(arrays[0]).astype(np.float64) @ np.abs(arrays[1]).T + np.abs(arrays[2])
    assert found.dtype == dtype
    assert (np.abs(found - expected) <= (depth + 1) / 2 * np.finfo(dtype).eps * terms).all()  # half an ulp each


@pytest.mark.parametrize("columns", [1, 16, 37, 512])
def test_rows_do_not_see_each_other(columns):
    x, weight, norm = X[:, :columns].copy(), X[:9, :columns].copy(), (WEIGHT[:columns], BIAS[:columns])
    run = lambda x: linear(x, weight, BIAS[:9], norm=norm, activation="gelu")
    assert all(run(x[i : i + 1]).tobytes() == row.tobytes() for i, row in enumerate(run(x)))


def dropped(columns=512, **options):
    """Which numbers dropout takes: GELU of a row with one number above the rest is nowhere 0."""
    x = np.full((200, columns), 2.0)
    found = gelu_layer_norm(x, np.ones(columns), np.zeros(columns), **options)
    return found < 0


def test_dropout_takes_its_part_and_scales_the_rest():
    taken = dropped(dropout=0.3, seed=1)
    sigma = np.sqrt(0.3 * 0.7 / taken.size)
    assert abs(taken.mean() - 0.3) < 4 * sigma
    assert abs(taken.mean(0) - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 200)
    x = np.array([[1.0, -1.0, 2.0, 0.5]])
    factors = reference.kept((1, 4), 0.75, 3, 0)
    assert set(factors.ravel()) == {0.0, 4.0}
    z = torch.nn.functional.gelu(torch.from_numpy(x)).numpy() * factors
    expected = (z - z.mean()) / np.sqrt(z.var() + 1e-5)
    np.testing.assert_allclose(gelu_layer_norm(x, np.ones(4), np.zeros(4), dropout=0.75, seed=3), expected, rtol=1e-12)


def test_dropout_is_independent_between_rows_layers_and_seeds():
    first = dropped(dropout=0.5, seed=1)
    others = [
        dropped(dropout=0.5, seed=2),
        dropped(dropout=0.5, seed=1 + (1 << 32)),
        dropped(dropout=0.5, seed=1, layer=1),
        np.roll(first, 1, axis=0),
        np.roll(first, 1, axis=1),
        np.roll(first, 4, axis=1),
    ]
    for other in others:
        assert abs((first == other).mean() - 0.5) < 4 * 0.5 / np.sqrt(first.size)
    assert np.array_equal(first, dropped(dropout=0.5, seed=1))
    assert np.array_equal(first[:, :38], dropped(38, dropout=0.5, seed=1))


def test_dropout_is_independent_of_that_of_attention():
    """With the same seed and layer, jet for row and head 0: words by their place in the counter."""
    n, row = 40, 7
    of_attention = attention_reference.kept(n, 0.5, 1, 0, row, 0)
    i, j = np.indices((n, n))
    word = 4 * (i // 4 * n + j) + i % 4
    taken = dropped(n * n, dropout=0.5, seed=1)[row]
    assert abs((taken[word] == (of_attention == 0)).mean() - 0.5) < 4 * 0.5 / n


W = X[:9]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X[0], W, BIAS[:9]), {}, ValueError, r"x must have shape \(N, K\) with K of 1 or more, got \(512,\); reshape"),
        ((X[:, :0], W, BIAS[:9]), {}, ValueError, r"x must have shape .*, got \(40, 0\); reshape"),
        ((X, W.T, BIAS[:9]), {}, ValueError, r"weight must have shape \(M, 512\) .*, got \(512, 9\); transpose it"),
        ((X, W[:0], BIAS[:0]), {}, ValueError, r"weight must have shape \(M, 512\) .*, got \(0, 512\)"),
        ((X, W, BIAS), {}, ValueError, r"bias must have shape \(9,\), got \(512,\); give one"),
        (
            (X, W, BIAS[:9]),
            {"norm": (WEIGHT[:3], BIAS)},
            ValueError,
            r"gamma must have shape \(512,\), got \(3,\); give",
        ),
        (
            (X, W, BIAS[:9]),
            {"norm": (WEIGHT, BIAS[None])},
            ValueError,
            r"beta must have shape \(512,\), got \(1, 512\)",
        ),
        ((X, W.astype("f"), BIAS[:9]), {}, TypeError, "all floats must share one dtype, got x is float64, weight is"),
        (
            (X, W, BIAS[:9]),
            {"activation": "relu"},
            ValueError,
            "activation must be one of none, gelu, got 'relu'; choose",
        ),
        (
            (X, W, BIAS[:9]),
            {"dropout": 0.1},
            ValueError,
            "dropout must be 0 without activation, got 0.1; it stands behind",
        ),
        ((X, W, BIAS[:9]), {"eps": 0.0}, ValueError, "eps must be above 0 and finite, got 0.0; PyTorch"),
        ((X, W, BIAS[:9]), {"eps": np.nan}, ValueError, "eps must be above 0 and finite, got nan; PyTorch"),
        ((X, W, BIAS[:9]), {"eps": "1"}, TypeError, "eps must be a number, got '1'; PyTorch"),
        *(((X, W, BIAS[:9]), {"activation": "gelu", **bad}, *rest) for bad, *rest in BAD_DROPOUT),
    ],
)
def test_refuses(arguments, options, error, message):
    with pytest.raises(error, match=f"^linear: {message}"):
        linear(*arguments, **options)
