"""Features of all pairs in each jet, value and gradient, and raw Minkowski products."""

import numpy as np
import pytest
import torch

from fasttag import _baselines
from fasttag_kernels.pairwise_features import numba_cpu, pairwise_features, reference
from timing import check, local, torch_threads

FOUR = ("ln_kt", "ln_z", "ln_delta", "ln_m2")
ORACLE, SLOW, FEW = 200, 300, 10  # jets that the oracle, slow peers and the oracle of the gradient get
BATCH, LENGTH = 512, 128  # weaver's padding
FLOPS = 110  # of one pair's four features: 3 logarithms of 22 and 44 before them
FLOPS_DOT, FLOPS_GRADIENT = 15, 100
TARGETS: dict[str, dict] = {"4 features": {"us": 6.0, "ceiling": "sgemm_1"}, "dot": {"us": 1.4}}


def pairs(p, triangle):
    """Mean number per jet."""
    n = np.diff(p.offsets)
    return float((n * n if triangle == "full" else n * (n + 1) // 2).mean())


def checked(p, features, triangle):
    """The first jets against the oracle, and all jets alone as among the others."""
    some = p.first(min(ORACLE, p.jets))
    found = pairwise_features(p.p4, p.offsets, features=features, triangle=triangle)
    start = round(pairs(some, triangle) * some.jets)
    expected = reference.pairwise_features(some.p4, some.offsets, features=features, triangle=triangle)
    scale = reference.rounding_scale(some.p4, some.offsets, features)
    keep = np.concatenate([np.tri(n, dtype=bool).ravel() for n in np.diff(some.offsets)]) | (triangle == "full")
    check("pairwise_features", found[:, :start], expected, scale[:, keep])
    return found


def close(found, peer):
    """As weaver, up to its rounding: directions of close pairs, and for m^2 the order of its operations."""
    difference = np.abs(np.asarray(found, np.float64) - peer)
    assert np.median(difference) < 1e-6 and np.quantile(difference[:3], 0.99) < 1e-4, "not the peer's: not timed"
    assert difference[1].max() < 2e-6


def weaver(child, p):
    """weaver-core jet by jet and as its networks use it, padded and in one batch."""
    if child is None:
        return {"weaver, jet by jet": (None, 1), f"weaver, padded to {LENGTH}": (None, 1)}
    some, batch = p.first(min(SLOW, p.jets)), p.first(min(BATCH, p.jets))
    assert np.diff(batch.offsets).max() <= LENGTH
    alone = child.prepare("weaver_pairs", {"p4": some.p4, "offsets": some.offsets}, length=None)
    alone()
    theirs = np.concatenate([x[0].reshape(4, -1) for x in child.result()], 1)
    close(pairwise_features(some.p4, some.offsets, m2="reference"), theirs)
    padded = child.prepare("weaver_pairs", {"p4": batch.p4, "offsets": batch.offsets}, length=LENGTH, batch=BATCH)
    padded()
    theirs = np.concatenate([x[:, :n, :n].reshape(4, -1) for x, n in zip(child.result()[0], np.diff(batch.offsets))], 1)
    close(pairwise_features(batch.p4, batch.offsets, m2="reference"), theirs)
    return {"weaver, jet by jet": (alone, some.jets), f"weaver, padded to {LENGTH}": (padded, batch.jets)}


@pytest.mark.parametrize("triangle", ["full", "lower"])
def test_four_features(compare, problem, child, triangle):
    p = problem("reference")
    checked(p, FOUR, triangle)
    others = {}
    if triangle == "full":
        some = p.first(min(SLOW, p.jets))
        p4, offsets = torch.from_numpy(some.p4), torch.from_numpy(some.offsets)
        listed = lambda: _baselines.pairwise_features(p4, offsets)
        close(pairwise_features(some.p4, some.offsets, m2="reference"), listed().numpy())
        others = {**weaver(child, p), "torch, list of pairs": local(listed, some)}
    with torch_threads(1):
        compare(
            "pairwise_features",
            "reference",
            f"4 features, {triangle}",
            p,
            lambda: pairwise_features(p.p4, p.offsets, triangle=triangle),
            others,
            bytes=16 * p.constituents + 16 * pairs(p, triangle),
            flops=FLOPS * pairs(p, "lower"),
            target=TARGETS["4 features"] if triangle == "full" else {},
        )


@pytest.mark.parametrize(("features", "name"), [(FOUR, "4 features"), (("dot",), "dot")])
def test_given_memory(compare, problem, features, name):
    """The kernel without the system's part: getting, zeroing and giving back the memory of the result."""
    p = problem("reference")
    expected = checked(p, features, "full")
    out = np.empty_like(expected)
    arguments = (p.p4, p.offsets, out.shape[1], list(features), "full", "stable", out)
    numba_cpu.run(*arguments, threads=1)
    assert np.array_equal(out, expected)
    compare(
        "pairwise_features",
        "reference",
        f"{name}, full, into memory at hand",
        p,
        lambda: numba_cpu.run(*arguments, threads=1),
        {},
        bytes=16 * p.constituents + 4 * len(features) * pairs(p, "full"),
        flops=(FLOPS if features == FOUR else FLOPS_DOT) * pairs(p, "lower"),
        target=TARGETS[name],
    )


def test_dot(compare, problem):
    p = problem("reference")
    checked(p, ("dot",), "full")
    metric = torch.tensor([-1.0, -1.0, -1.0, 1.0])
    jets = [torch.from_numpy(p.p4[:, a:b]) for a, b in zip(p.offsets[:-1], p.offsets[1:])]
    einsum = lambda: [torch.einsum("m,mi,mj->ij", metric, x, x) for x in jets]
    product = lambda: [(x.T * metric) @ x for x in jets]
    ours = pairwise_features(p.p4, p.offsets, features=("dot",))[0]
    energies = np.concatenate([np.outer(e, e).ravel() for e in np.split(p.p4[3], p.offsets[1:-1])])
    for way in (einsum, product):
        theirs = np.concatenate([x.numpy().ravel() for x in way()])
        assert (np.abs(ours - theirs) <= 1e-6 * energies).all(), "not the peer's: not timed"
    with torch_threads(1):
        compare(
            "pairwise_features",
            "reference",
            "dot, full",
            p,
            lambda: pairwise_features(p.p4, p.offsets, features=("dot",)),
            {
                "torch einsum, jet by jet": local(einsum, p),
                "torch matmul, jet by jet": local(product, p),
            },
            bytes=16 * p.constituents + 4 * pairs(p, "full"),
            flops=FLOPS_DOT * pairs(p, "lower"),
            target=TARGETS["dot"],
        )


def test_gradient(compare, problem, child):
    """Of the sum over the pairs i > j."""
    p = problem("reference").first(min(2000, problem("reference").jets))
    some, few = p.first(min(SLOW, p.jets)), p.first(min(FEW, p.jets))

    def ours(p, dtype):
        p4, offsets = torch.from_numpy(p.p4.astype(dtype)).requires_grad_(), torch.from_numpy(p.offsets)
        different = torch.cat([torch.tril_indices(n, n).diff(dim=0)[0] < 0 for n in np.diff(p.offsets)])
        weights = different.to(p4.dtype).repeat(4, 1)
        return lambda: torch.autograd.grad(pairwise_features(p4, offsets, triangle="lower"), p4, weights)[0]

    found, single = ours(few, "float64")().numpy(), ours(few, "float32")().numpy()
    for a, b in zip(few.offsets[:-1], few.offsets[1:]):
        expected = reference.jet_gradient({name: np.tri(b - a, k=-1) for name in FOUR}, few.p4[:, a:b])
        largest = np.abs(expected).max()
        assert np.abs(found[:, a:b] - expected).max() <= 1e-7 * largest, "wrong: not timed"
        assert np.abs(single[:, a:b] - expected).max() <= 1e-6 * largest, "wrong: not timed"
    weaver = None
    if child:
        child.prepare(
            "weaver_pairs", {"p4": some.p4.astype(np.float64), "offsets": some.offsets}, length=None, gradient=True
        )()
        theirs = np.concatenate([x[0] for x in child.result()], 1)
        difference = np.abs(ours(some, "float64")().numpy() - theirs) / np.abs(theirs).max(0)
        assert np.quantile(difference, 0.99) < 1e-6, "not the peer's: not timed"
        weaver = child.prepare("weaver_pairs", {"p4": some.p4}, length=None, gradient=True)
    with torch_threads(1):
        compare(
            "pairwise_features",
            "reference",
            "4 features, lower, value and gradient",
            p,
            ours(p, "float32"),
            {"weaver, jet by jet": (weaver, some.jets)},
            bytes=48 * p.constituents + 3 * 16 * pairs(p, "lower"),
            flops=(FLOPS + FLOPS_GRADIENT) * pairs(p, "lower"),
        )
