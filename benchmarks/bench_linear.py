"""Linear layers of a Particle Transformer block, with the LayerNorm, GELU and dropout before them."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from cases import OPS
from fasttag_kernels.linear import linear, reference
from problems import Problem
from timing import check, local, torch_threads

LAYERS = {
    "queries, keys and values": (128, 384, True, {}),
    "after attention": (128, 128, False, {}),
    "first of the feed-forward": (128, 512, True, {}),
    "second of the feed-forward": (512, 128, True, {"activation": "gelu"}),
    "second, dropout": (512, 128, True, {"activation": "gelu", "dropout": 0.1, "seed": 3}),
}


def given(name, jets, constituents):
    """Problem, arguments, options, and a gradient."""
    depth, width, norm, options = LAYERS[name]
    n, rng = jets * constituents, np.random.default_rng(5)
    shapes = (n, depth), (width, depth), (width,), *[(depth,)] * (2 * norm), (n, width)
    *arguments, gradient = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return Problem(np.empty((4, n), np.float32), np.arange(jets + 1) * constituents), arguments, options, gradient


def ours(x, weight, bias, *norm, **options):
    return linear(x, weight, bias, norm=norm or None, **options)


def of_torch(x, weight, bias, *norm, activation="none", dropout=0.0, seed=0):
    z = functional.gelu(x) if activation == "gelu" else x
    z = functional.dropout(z, dropout) if dropout else z
    return functional.linear(functional.layer_norm(z, z.shape[1:], *norm) if norm else z, weight, bias)


@pytest.mark.parametrize("name", LAYERS)
def test_value_and_gradients(compare, name, smoke):
    p, arguments, options, gradient = given(name, 8 if smoke else 64, 48)
    tensors = [torch.from_numpy(array).requires_grad_() for array in arguments]
    depth, width = LAYERS[name][:2]

    def both(function):
        return torch.autograd.grad(function(*tensors, **options), tensors, torch.from_numpy(gradient))

    norm = arguments[3:] or None
    for a, b in zip(both(ours), reference.backward(gradient, *arguments[:2], norm, **options)):
        np.testing.assert_allclose(a, b, atol=3e-6 * np.abs(b).max())
    if not options.get("dropout"):
        for a, b in zip(both(ours), both(of_torch), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-5 * b.abs().max())
    with torch_threads(1):
        compare(
            "linear",
            "64 x 48",
            f"{depth} -> {width}, value and gradients, {name}",
            p,
            lambda: both(ours),
            {"torch": local(lambda: both(of_torch), p)},
            flops=6 * depth * width * 48,
        )


@pytest.mark.parametrize(("jets", "constituents"), [(64, 48), (1, 50)])
def test_value(compare, jets, constituents):
    p, arguments, options, _ = given("second of the feed-forward", jets, constituents)
    found = ours(*arguments, **options)
    check("linear", OPS["linear"].run(*arguments), OPS["linear"].oracle(*arguments), OPS["linear"].scale(*arguments))
    tensors = [torch.from_numpy(array) for array in arguments]
    np.testing.assert_allclose(of_torch(*tensors, **options), found, atol=1e-3)
    with torch_threads(1):
        compare(
            "linear",
            f"{jets} x {constituents}",
            f"512 -> 128, value, B = {jets}, n = {constituents}",
            p,
            lambda: ours(*tensors, **options),
            {"torch": local(lambda: of_torch(*tensors, **options), p)},
            flops=2 * 512 * 128 * constituents,
        )
