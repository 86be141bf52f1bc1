"""Toy jets of two classes that a tagger can tell apart: one core, or three cores in a wide jet."""

from __future__ import annotations

import numpy as np

from fasttag import Jets


def toy_jets(jets: int, seed: int) -> Jets:
    """`jets` jets of 10 to 40 massless constituents, float32, half of them signal (label 1)."""
    rng = np.random.default_rng(seed)
    label = np.arange(jets) % 2
    counts = rng.integers(10, 41, jets)
    jet = np.repeat(np.arange(jets), counts)
    n = jet.size
    cores = rng.normal(0, 0.25, (2, jets, 3))
    core = rng.integers(0, 3, n) * label[jet]
    axis = rng.uniform([[-2.0], [-np.pi]], [[2.0], [np.pi]], (2, jets))
    eta, phi = axis[:, jet] + cores[:, jet, core] + rng.normal(0, 0.08, (2, n))
    pt = rng.exponential(12.0, n) + 0.5
    p4 = np.array([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)], np.float32)
    return Jets(p4, np.concatenate([[0], np.cumsum(counts)]), {}, {"label": label.astype(np.int64)})
