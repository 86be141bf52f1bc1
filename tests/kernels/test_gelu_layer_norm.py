"""LayerNorm of dropout of GELU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fasttag_kernels.gelu_layer_norm import gelu_layer_norm, reference

RNG = np.random.default_rng(12)
X = RNG.normal(size=(40, 512))
WEIGHT, BIAS = RNG.normal(size=(2, 512))
ONES, ZEROS = np.ones(512), np.zeros(512)


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
    np.testing.assert_allclose(found, np.repeat(BIAS.astype(dtype)[None], 5, 0), atol=1e-3)
    assert gelu_layer_norm(x[:, :1], np.ones(1, dtype), np.full(1, 7, dtype)).tolist() == [[7]] * 5


def test_a_small_spread_on_a_large_mean():
    """Mean and variance in two passes: what is left is the rounding of the numbers themselves."""
    x = (1000 + np.linspace(-1, 1, 512))[None]
    np.testing.assert_allclose(gelu_layer_norm(x, ONES, ZEROS), of_torch(x, ONES, ZEROS), atol=1e-11)
    x = x.astype(np.float32)
    found = gelu_layer_norm(x, ONES.astype("f"), ZEROS.astype("f"))
    np.testing.assert_allclose(found, of_torch(x, ONES, ZEROS), atol=1.5e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_not_finite_stays_in_its_row(value, dtype):
    arrays = [a.astype(dtype) for a in (X[:3], WEIGHT, BIAS)]
    expected = gelu_layer_norm(*arrays)
    arrays[0][1, 77] = value
    found = gelu_layer_norm(*arrays)
    assert np.array_equal(found[::2], expected[::2]) and np.isnan(found[1]).all()


@pytest.mark.parametrize("shape", [(0, 512), (0, 0), (3, 0)])
def test_empty(shape):
    x = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.ones(2, shape[1], dtype=torch.float64).unbind()
    found = gelu_layer_norm(x, weight.requires_grad_(), bias.requires_grad_(), dropout=0.5)
    assert found.shape == shape
    of_x, *rest = torch.autograd.grad(found.sum(), (x, weight, bias))
    assert of_x.shape == shape and [gradient.tolist() for gradient in rest] == [[0.0] * shape[1]] * 2


@pytest.mark.parametrize("columns", [1, 16, 37, 512])
def test_rows_do_not_see_each_other(columns):
    x, weight, bias = X[:, :columns].copy(), WEIGHT[:columns].copy(), BIAS[:columns].copy()
    whole = gelu_layer_norm(x, weight, bias)
    assert all(gelu_layer_norm(x[i : i + 1], weight, bias).tobytes() == row.tobytes() for i, row in enumerate(whole))


def test_generator_is_philox():
    """The known answers that its authors publish with Random123."""
    ones = 0xFFFFFFFF
    known = [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ones, ones, ones, ones), (ones, ones), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for counter, key, words in known:
        assert " ".join(f"{word:08x}" for word in reference.philox(counter, key)) == words


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


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X[0], WEIGHT, BIAS), {}, ValueError, r"x must have shape \(N, C\), got \(512,\); reshape"),
        ((X, WEIGHT[:3], BIAS), {}, ValueError, r"weight must have shape \(512,\), got \(3,\); give one"),
        ((X, WEIGHT, BIAS[None]), {}, ValueError, r"bias must have shape \(512,\), got \(1, 512\); give one"),
        ((X, WEIGHT.astype("f"), BIAS), {}, TypeError, "all floats must share one dtype, got x is float64, weight is"),
        ((X, WEIGHT, BIAS), {"eps": 0.0}, ValueError, "eps must be above 0 and finite, got 0.0; PyTorch"),
        ((X, WEIGHT, BIAS), {"eps": np.nan}, ValueError, "eps must be above 0 and finite, got nan; PyTorch"),
        ((X, WEIGHT, BIAS), {"eps": "1"}, TypeError, "eps must be a number, got '1'; PyTorch"),
        ((X, WEIGHT, BIAS), {"dropout": 1.0}, ValueError, "dropout must lie in 0..1, 1 left out, got 1.0; it is"),
        ((X, WEIGHT, BIAS), {"dropout": True}, TypeError, "dropout must be a number, got True; 0.0 is none"),
        ((X, WEIGHT, BIAS), {"seed": -1}, ValueError, "seed must lie in 0..9223372036854775807, got -1; take it"),
        ((X, WEIGHT, BIAS), {"seed": 0.5}, TypeError, "seed must be an integer, got 0.5; convert it"),
        ((X, WEIGHT, BIAS), {"layer": 1 << 32}, ValueError, "layer must lie in 0..4294967295, got 4294967296; take"),
    ],
)
def test_refuses(arguments, options, error, message):
    with pytest.raises(error, match=f"^gelu_layer_norm: {message}"):
        gelu_layer_norm(*arguments, **options)
