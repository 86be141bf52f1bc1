"""residual beyond the contract: against torch, dropout, what is not finite, refusals."""

import numpy as np
import pytest
import torch

from cases import BAD_DROPOUT
from fasttag_kernels.linear import linear
from fasttag_kernels.residual import residual

RNG = np.random.default_rng(13)
X, BRANCH = RNG.normal(size=(2, 150, 128))
GAMMA, BETA, SCALE = RNG.normal(size=(3, 128))


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("float64", 1e-14)])
def test_against_torch(dtype, bound):
    x, branch, gamma, beta, scale = (a.astype(dtype) for a in (X, BRANCH, GAMMA, BETA, SCALE))
    normal = torch.nn.functional.layer_norm(*(torch.from_numpy(a).double() for a in (branch,)), (128,)).numpy()
    found = residual(x, branch, norm=(gamma, beta), scale=scale)
    assert np.abs(found - (scale * x.astype("f8") + gamma * normal + beta)).max() <= 10 * bound
    assert residual(x, branch).tobytes() == (x + branch).tobytes()


def test_no_rows():
    x, branch = torch.ones(2, 0, 5).unbind()
    gamma, beta, scale = torch.ones(3, 5).requires_grad_().unbind()
    found = residual(x, branch, norm=(gamma, beta), scale=scale, dropout=0.5)
    assert found.shape == (0, 5)
    assert not any(gradient.any() for gradient in torch.autograd.grad(found.sum(), (gamma, beta, scale)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("of_branch", [False, True])
def test_what_is_not_finite_stays_in_its_row(of_branch, dtype):
    x, branch, *norm = (a.astype(dtype) for a in (X, BRANCH, GAMMA, BETA))
    expected = residual(x, branch, norm=norm)
    (branch if of_branch else x)[70, 3] = np.nan
    found = residual(x, branch, norm=norm)
    bad = np.isnan(found)
    assert bad[70].sum() == (128 if of_branch else 1) and not np.delete(bad, 70, 0).any()
    assert np.array_equal(np.delete(found, 70, 0), np.delete(expected, 70, 0))


def dropped(columns=128, **options):
    """Which numbers dropout takes."""
    return residual(np.zeros((150, columns)), np.ones((150, columns)), **options) == 0


def test_dropout_takes_its_part_and_scales_the_rest():
    taken = dropped(dropout=0.3, seed=1)
    assert abs(taken.mean() - 0.3) < 4 * np.sqrt(0.21 / taken.size)
    found = residual(X, BRANCH, scale=SCALE, dropout=0.3, seed=1)
    np.testing.assert_allclose(found, SCALE * X + np.where(taken, 0, BRANCH / 0.7), rtol=1e-12)


def test_dropout_is_independent_between_rows_layers_seeds_and_operations():
    first = dropped(dropout=0.5, seed=1)
    of_linear = linear(np.ones((150, 128)), np.eye(128), np.zeros(128), activation="gelu", dropout=0.5, seed=1) == 0
    others = [
        of_linear,
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
        ((X[0], X[0]), {}, ValueError, r"x must have shape \(N, C\) with C of 1 or more, got \(128,\); reshape"),
        ((X, X[:3]), {}, ValueError, r"branch must have shape \(150, 128\), got \(3, 128\); they are added"),
        ((X, BRANCH), {"norm": (GAMMA[:3], BETA)}, ValueError, r"gamma must have shape \(128,\), got \(3,\); give one"),
        ((X, BRANCH), {"norm": (GAMMA, BETA[None])}, ValueError, r"beta must have shape \(128,\), got \(1, 128\)"),
        ((X, BRANCH), {"scale": SCALE[:1]}, ValueError, r"scale must have shape \(128,\), got \(1,\); give one"),
        ((X, BRANCH.astype("f")), {}, TypeError, "all floats must share one dtype, got x is float64, branch is"),
        ((X, BRANCH), {"eps": 0.0}, ValueError, "eps must be above 0 and finite, got 0.0; PyTorch"),
        *(((X, BRANCH), *bad) for bad in BAD_DROPOUT),
    ],
)
def test_refuses(arguments, options, error, message):
    with pytest.raises(error, match=f"^residual: {message}"):
        residual(*arguments, **options)
