"""Jets for tests: two classes that a tagger can tell apart (one core, three cores in a wide jet), and numbered ones."""

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


def make(counts: tuple = (2, 0, 4, 1), before: int = 1, after: int = 2, dtype: str = "float64") -> Jets:
    """Jets whose px is the number of the constituent; offsets start at `before`."""
    n = sum(counts) + before + after
    p4 = np.array([np.arange(n), np.arange(n) - 3.0, np.full(n, 0.5), np.arange(n) + 100.0], dtype)
    offsets = before + np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    columns = {"kind": (np.arange(n) % 5).astype(np.int8)}
    return Jets(p4, offsets, columns, {"label": np.arange(len(counts))})


def listed(jets: Jets) -> list:
    """Every jet as plain Python: (label, [(kind, px, py, pz, E), ...])."""
    jets = jets.to("cpu", library="numpy")
    rows = np.concatenate([jets.columns["kind"][None], jets.p4]).T
    slices = zip(jets.offsets_host[:-1], jets.offsets_host[1:])
    return [(label, [tuple(row) for row in rows[a:b]]) for label, (a, b) in zip(jets.labels["label"], slices)]
