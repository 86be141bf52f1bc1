"""Distance correlation of a mass and a score with weights: microseconds per point (a point is a jet)."""

import numpy as np
import pytest
import torch

from cases import OPS
from fasttag import _baselines
from fasttag_kernels.distance_correlation import distance_correlation, numba_cpu, reference
from problems import Problem
from timing import check, seconds_of, torch_threads

TEXTBOOK = 4096  # points that the n x n matrices get
TARGETS = {10_000: 0.15, 100_000: 0.18}  # us per point: 1.5 and 18 ms


def variables(n):
    """A falling mass, a saturated score that depends on it, and weights, float32."""
    rng = np.random.default_rng(5)
    mass = 30 + rng.exponential(60, n)
    score = 1 / (1 + np.exp(np.clip(rng.normal(3 - 0.02 * mass, 2), -9, 5)))
    return tuple(x.astype(np.float32) for x in (mass, score, rng.exponential(1, n)))


def gradient_of(function, mass, score, weights):
    mass, score, weights = map(torch.from_numpy, (mass, score.copy(), weights))
    score.requires_grad_()

    def step():
        score.grad = None
        function(mass, score, weights=weights).backward()
        return score.grad

    return step


def check_gradient(found, mass, score, weights):
    """Against the sums over all pairs in float64, which the tests compare with the definition."""
    points, place = np.empty((len(mass), 4)), np.empty(len(mass), np.uint32)
    numba_cpu._centre(mass, score, weights, place, points)
    expected = np.empty(len(mass))
    value = numba_cpu.pairs(mass, score, place, points, False, False, expected[:0], expected)
    check("distance_correlation", distance_correlation(mass, score, weights=weights), value, 1e4)
    error = np.abs(found.numpy() - expected)
    assert (error <= 2.0**-23 * np.abs(expected) + 1e-10 * np.abs(expected).max()).all(), f"off by {error.max()}"


@pytest.mark.parametrize("n", TARGETS)
@pytest.mark.parametrize("what", ["value and gradient", "value and both gradients", "value"])
def test_distance_correlation(compare, child, smoke, what, n):
    size, textbook = (1000, 200) if smoke else (n, TEXTBOOK)
    arrays, some = variables(size), variables(textbook)
    check(
        "distance_correlation",
        distance_correlation(*some[:2], weights=some[2]),
        reference.distance_correlation(*some),
        OPS["distance_correlation"].scale(*some),
    )
    others = {}
    if what == "value":
        ours = lambda: distance_correlation(*arrays[:2], weights=arrays[2])
        if child:
            child.prepare("dcor", {"x": arrays[0], "y": arrays[1]})
            child.round()
            np.testing.assert_allclose(distance_correlation(*arrays[:2]), child.result()[0], rtol=1e-5)
        others = {"dcor, no weights": (child.round if child else None, size)}
    else:
        ours = gradient_of(distance_correlation, *arrays)
        check_gradient(ours(), *arrays)
        if what == "value and gradient":
            dense = gradient_of(_baselines.distance_correlation, *some)
            np.testing.assert_allclose(dense(), gradient_of(distance_correlation, *some)(), rtol=1e-2, atol=1e-7)
            others = {f"torch, n = {textbook}": (lambda: seconds_of(dense), textbook)}
        else:
            mass, score, weights = map(torch.from_numpy, arrays)
            both = (mass.clone().requires_grad_(), score.clone().requires_grad_())
            ours = lambda: torch.autograd.grad(distance_correlation(*both, weights=weights), both)
    with torch_threads(1):
        compare(
            "distance_correlation",
            f"n = {n}",
            f"{what}, weights, n = {n:,}",
            Problem(np.empty((4, size), np.float32), np.arange(size + 1)),
            ours,
            others,
            bytes=572,
            target={"us": TARGETS[n], "ceiling": "sgemm_1"} if what == "value and gradient" else {},
        )
