"""Pairs of two broadcast sets: how they broadcast, and what is refused. Numbers: tests/compat/test_weaver.py."""

from __future__ import annotations

import numpy as np
import pytest

from fasttag_kernels.pair_grid import COUNTS, pair_grid, reference
from tolerances import EPS32


def particles(*shape):
    """(A, 7, R, C) float32."""
    rng = np.random.default_rng(shape)
    pt, y, phi = rng.exponential(10, shape) + 0.1, rng.normal(size=shape), rng.uniform(-np.pi, np.pi, shape)
    rows = [pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(y), np.hypot(pt * np.cosh(y), 2), pt, y, phi]
    return np.stack(rows, 1).astype(np.float32)


@pytest.mark.parametrize("features", COUNTS)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((2, 5, 1), (2, 1, 7)),
        ((2, 1, 130), (2, 3, 1)),
        ((1, 3, 4), (6, 3, 4)),
        ((3, 1, 129), (3, 1, 129)),
        ((2, 4, 5), (1, 1, 1)),
        ((0, 2, 1), (0, 1, 2)),
        ((2, 0, 1), (2, 1, 3)),
    ],
)
def test_broadcasts(first, second, features):
    first, second = particles(*first), particles(*second)
    expected = reference.pair_grid(first, second, features)
    for threads in (1, 3):
        found = pair_grid(first, second, features, threads=threads)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=EPS32, atol=EPS32)


ONE = particles(1, 1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ONE[0], ONE), r"first must have shape \(A, 7, R, C\)"),
        ((ONE, ONE[:, :4]), r"second must have shape \(A, 7, R, C\)"),
        ((ONE, particles(1, 1, 2)), "first and second must broadcast"),
        ((ONE, ONE, 2), "features must be 1, 3, 4 or 5, got 2"),
        ((ONE, ONE, True), "features must be 1, 3, 4 or 5, got True"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=f"^pair_grid: {message}"):
        pair_grid(*arguments)


@pytest.mark.parametrize("eps", [0.0, 1e-39, 1.0, float("nan"), "a"])
def test_refuses_eps(eps):
    with pytest.raises(ValueError, match=r"^pair_grid: eps must be 1\.2e-38 or more and below 1, got"):
        pair_grid(ONE, ONE, eps=eps)
