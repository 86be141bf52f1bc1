"""LayerNorm of GELU, 512 columns: the middle of Particle Transformer's feed-forward block."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from cases import OPS
from fasttag_kernels.gelu_layer_norm import gelu_layer_norm, reference
from problems import Problem
from timing import check, local, torch_threads

COLUMNS = 512
SHAPES = [pytest.param(64, 48, id="64 jets of 48"), pytest.param(1, 50, id="1 jet of 50")]


def given(jets, constituents):
    """Problem, x, weight, bias and a gradient."""
    n = jets * constituents
    rng = np.random.default_rng(5)
    arrays = [
        rng.normal(size=shape).astype(np.float32) for shape in ((n, COLUMNS), (COLUMNS,), (COLUMNS,), (n, COLUMNS))
    ]
    return Problem(np.empty((4, n), np.float32), np.arange(jets + 1) * constituents), *arrays


def of_torch(x, weight, bias, dropout=0.0):
    z = functional.gelu(x)
    return functional.layer_norm(functional.dropout(z, dropout) if dropout else z, (COLUMNS,), weight, bias)


@pytest.mark.parametrize(("jets", "constituents"), SHAPES)
def test_gelu_layer_norm(compare, jets, constituents):
    p, x, weight, bias, _ = given(jets, constituents)
    arrays = x, weight, bias
    found = gelu_layer_norm(*arrays)
    check("gelu_layer_norm", found, reference.gelu_layer_norm(*arrays), OPS["gelu_layer_norm"].scale(*arrays)[0])
    tensors = [torch.from_numpy(array) for array in arrays]
    np.testing.assert_allclose(of_torch(*tensors), found, atol=2e-5)
    with torch_threads(1):
        compare(
            "gelu_layer_norm",
            f"{jets} x {constituents}",
            f"C = {COLUMNS}, B = {jets}, n = {constituents}",
            p,
            lambda: gelu_layer_norm(*arrays),
            {"torch": local(lambda: of_torch(*tensors), p)},
            bytes=8 * COLUMNS * constituents,
        )


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["", "dropout"])
@pytest.mark.parametrize(("jets", "constituents"), SHAPES)
def test_value_and_gradients(compare, jets, constituents, dropout):
    p, x, weight, bias, gradient = given(jets, constituents)
    tensors = [torch.from_numpy(array).requires_grad_() for array in (x, weight, bias)]
    options = {"dropout": dropout, "seed": 3} if dropout else {}

    def both(function, **options):
        return torch.autograd.grad(function(*tensors, **options), tensors, torch.from_numpy(gradient))

    expected = reference.backward(gradient, x, weight, **options)
    for a, b in zip(both(gelu_layer_norm, **options), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max())
    if not dropout:
        for a, b in zip(both(of_torch), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    with torch_threads(1):
        compare(
            "gelu_layer_norm",
            f"{jets} x {constituents}",
            f"value and gradients, C = {COLUMNS}, B = {jets}, n = {constituents}{', dropout' if dropout else ''}",
            p,
            lambda: both(gelu_layer_norm, **options),
            {"torch": local(lambda: both(of_torch, dropout=dropout), p)},
            bytes=20 * COLUMNS * constituents,
        )
