"""Residual connections of a Particle Transformer block: with LayerNorm and dropout, and with scales."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fasttag_kernels.residual import reference, residual
from problems import Problem
from timing import local, torch_threads

COLUMNS = 128


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["", "dropout"])
def test_value_and_gradients(compare, dropout, smoke):
    jets, constituents = 8 if smoke else 64, 48
    n, rng = jets * constituents, np.random.default_rng(5)
    shapes = (n, COLUMNS), (n, COLUMNS), (COLUMNS,), (COLUMNS,), (n, COLUMNS)
    *arguments, gradient = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    tensors = [torch.from_numpy(array).requires_grad_() for array in arguments]
    options = {"dropout": dropout, "seed": 3}

    def both(function):
        return torch.autograd.grad(function(*tensors), tensors, torch.from_numpy(gradient))

    def ours(x, branch, *norm):
        return residual(x, branch, norm=norm, **options)

    def of_torch(x, branch, *norm):
        return x + functional.dropout(functional.layer_norm(branch, (COLUMNS,), *norm), dropout)

    expected = reference.backward(gradient, *arguments[:2], arguments[2:], **options)
    for a, b in zip(both(ours), expected):
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max())
    if not dropout:
        for a, b in zip(both(of_torch), both(ours), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * b.abs().max())
    p = Problem(np.empty((4, n), np.float32), np.arange(jets + 1) * constituents)
    with torch_threads(1):
        compare(
            "residual",
            f"{jets} x {constituents}",
            f"LayerNorm, C = {COLUMNS}, value and gradients{', dropout' if dropout else ''}",
            p,
            lambda: both(ours),
            {"torch": local(lambda: both(of_torch), p)},
            bytes=32 * COLUMNS * constituents,
        )
