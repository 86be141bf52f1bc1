"""Neighbours in (eta, phi) and in a space of 64 features."""

import numpy as np
import pytest
import torch

from fasttag import _baselines
from fasttag_kernels.knn import knn, reference
from problems import angles
from timing import check, local, torch_threads

K, LENGTH, BATCH = 16, 128, 512
MIN_MAX = (2 * (63 + 32) + 16) / 16  # minima and maxima of the networks per query and candidate
ORACLE, SLOW = 300, 100  # jets that the oracle and the peers without batches get


def near(p, x, ours, theirs):
    """A peer's neighbours, `theirs` per jet, are as near as ours, to the digits of |a|^2 - 2ab + |b|^2 in float32."""
    x = x.astype(np.float64)
    for a, b, found in zip(p.offsets[:-1], p.offsets[1:], theirs):
        k = min(K, b - a - 1)
        points, (mine, other) = x[a:b], (np.asarray(f)[: b - a, :k] for f in (ours[a:b], found))
        d2 = [((points[:, None] - points[f]) ** 2).sum(-1) for f in (mine, other)]
        bound = 32 * 2.0**-23 * (points**2).sum(1).max()
        assert (np.abs(np.sort(d2[0]) - np.sort(d2[1])) <= bound).all(), "the peer's neighbours are others: not timed"


@pytest.mark.parametrize("columns", [2, 64])
def test_knn(compare, problem, child, columns):
    p = problem("reference")
    if columns == 2:
        x, periodic, name, target = np.stack(angles(p)[1:], 1), 1, "(eta, phi)", 2.5
    else:
        x, periodic, name, target = np.random.default_rng(1).normal(size=(p.p4.shape[1], 64)), None, "C = 64", 10
    x = np.ascontiguousarray(x, np.float32)
    found = knn(x, K, offsets=p.offsets, periodic=periodic)
    some, few, batch = (p.first(min(n, p.jets)) for n in (ORACLE, SLOW, BATCH))
    rows = slice(some.offsets[-1])
    check("knn", found[rows], reference.knn(x[rows], K, offsets=some.offsets, periodic=periodic))
    others = {}
    for peer, task, jets, options in (
        ("weaver, jet by jet", "weaver_knn", few, {"length": None}),
        (f"weaver, padded to {LENGTH}", "weaver_knn", batch, {"length": LENGTH}),
        ("SciPy cKDTree", "scipy_knn", few, {}),
    ):
        others[peer] = None, jets.jets
        if child:
            seconds = child.prepare(task, {"x": x[: jets.offsets[-1]], "offsets": jets.offsets}, k=K, **options)
            seconds()
            near(jets, x, found, child.result())
            others[peer] = seconds, jets.jets
    padded, valid = _baselines.pad(x[: batch.offsets[-1]].T, batch.offsets, LENGTH)
    padded, valid = torch.from_numpy(padded), torch.from_numpy(valid)
    plain = lambda: _baselines.knn(padded, valid, K)
    with torch_threads(1):
        near(batch, x, found, plain())
        others[f"torch cdist + topk, padded to {LENGTH}"] = local(plain, batch)
        n = np.diff(p.offsets)
        pairs = (n * (n - 1) / 2).mean()
        compare(
            "knn",
            "reference",
            f"{name}, k = {K}",
            p,
            lambda: knn(x, K, offsets=p.offsets, periodic=periodic),
            others,
            bytes=4 * (columns + K) * p.constituents,
            flops=3 * columns * pairs + 2 * MIN_MAX * (n * n).mean(),
            target={"us": target, "ceiling": "sgemm_1"},
        )
