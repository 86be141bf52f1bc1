"""Real shapes by name, the same on every machine: massless jets around random axes, leading constituent first."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np


class Problem(NamedTuple):
    """p4 (4, N) float32, rows px, py, pz, E in GeV, and offsets (J+1,) int64."""

    p4: np.ndarray
    offsets: np.ndarray

    @property
    def jets(self) -> int:
        return len(self.offsets) - 1

    @property
    def constituents(self) -> float:
        """Mean number per jet."""
        return self.p4.shape[1] / self.jets

    def first(self, jets: int) -> Problem:
        """The first jets only."""
        return Problem(self.p4[:, : self.offsets[jets]], self.offsets[: jets + 1])


# name -> jets, mean constituents, spread, longest, seed
SHAPES = {
    "reference": (10_000, 48, 18, 200, 1),  # the one that targets are stated for
    "gpu": (100_000, 48, 18, 200, 1),  # the same ten times over: its arrays are larger than a GPU's cache
    "jets46": (512, 46, 18, 128, 6),  # one batch of a tagger; fits a padded length of 128
    "small": (200, 48, 18, 128, 3),  # what --smoke uses in place of every other
}


@functools.cache
def problem(name: str) -> Problem:
    jets, mean, spread, longest, seed = SHAPES[name]
    rng = np.random.default_rng(seed)
    counts = np.clip(np.rint(rng.normal(mean, spread, jets)), 5, longest).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    jet = np.repeat(np.arange(jets), counts)
    pt = rng.pareto(1.2, jet.size) + 1.0  # a few hard constituents, many soft ones
    pt *= (rng.uniform(550, 650, jets) / np.add.reduceat(pt, offsets[:-1]))[jet]
    pt = pt[np.lexsort((-pt, jet))]
    radius = np.minimum(rng.exponential(0.25, jet.size), 0.8) * np.exp(-pt / 300)  # the hard ones near the axis
    angle = rng.uniform(0, 2 * np.pi, jet.size)
    eta = rng.uniform(-2, 2, jets)[jet] + radius * np.cos(angle)
    phi = rng.uniform(-np.pi, np.pi, jets)[jet] + radius * np.sin(angle)
    p4 = np.array([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)], np.float32)
    return Problem(p4, offsets)


def angles(p: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """pt, eta and phi in float32; phi unwrapped around the leading constituent, as EnergyFlow needs it."""
    px, py, pz, _ = p.p4.astype(np.float64)
    pt, phi = np.hypot(px, py), np.arctan2(py, px)
    leading = np.repeat(phi[p.offsets[:-1]], np.diff(p.offsets))
    phi = leading + (phi - leading + np.pi) % (2 * np.pi) - np.pi
    return pt.astype(np.float32), np.arcsinh(pz / pt).astype(np.float32), phi.astype(np.float32)
