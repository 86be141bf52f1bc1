"""The attention bias of the Particle Transformer: evaluation of a batch and of one jet, and a training step."""

import numpy as np
import pytest
import torch

from cases import pair_network
from fasttag_kernels.pair_bias import pair_bias, reference
from problems import Problem
from timing import check, torch_threads

WIDTHS = (64, 64, 64, 8)
BATCH, ALONE, FEW = 64, 50, 3  # jets of a batch; constituents of a jet alone; jets that the oracle gets
MACS = 4 * 64 + 2 * 64 * 64 + 64 * 8  # of a pair
GELU = 35  # flops of one, of which a pair has 200


def lower(p):
    """Mean number of pairs i >= j per jet."""
    n = np.diff(p.offsets)
    return float((n * (n + 1) // 2).mean())


def alone(p):
    """The first jet with so many constituents."""
    j = int(np.argmin(np.abs(np.diff(p.offsets) - ALONE)))
    a, b = p.offsets[j : j + 2]
    return Problem(np.ascontiguousarray(p.p4[:, a:b]), np.array([0, b - a]))


def weaver(child, p, dtype="float32", train=False):
    if child is None:
        return None
    weights, running = pair_network(WIDTHS, dtype=dtype)
    arrays = {"p4": p.p4.astype(dtype), "offsets": p.offsets}
    arrays |= {f"weights{i}": w for i, w in enumerate(weights)} | {f"running{i}": r for i, r in enumerate(running)}
    return child.prepare("weaver_pair_embed", arrays, weights=len(weights), train=train)


@pytest.mark.parametrize("batch", [BATCH, 1])
def test_evaluation(compare, problem, child, batch):
    every = problem("reference")
    p = alone(every) if batch == 1 else every.first(min(BATCH, every.jets))
    network = pair_network(WIDTHS, dtype="float32")
    run = lambda p: pair_bias(p.p4, p.offsets, *network, last_activation=True)
    some = p.first(min(FEW, p.jets))
    expected = reference.pair_bias(some.p4, some.offsets, *network, last_activation=True)
    check("pair_bias", run(some), expected, reference.rounding_scale(some.p4, some.offsets, *network))
    peer = weaver(child, p)
    if peer:
        peer()
        theirs = child.result()[0]
        theirs = np.concatenate([x[:, :n, :n].reshape(len(x), -1) for x, n in zip(theirs, np.diff(p.offsets))], 1)
        difference = np.abs(run(p) - theirs)
        # Delta of close pairs is better here, see pairwise_features
        assert np.median(difference) < 1e-5 and np.quantile(difference, 0.99) < 1e-3, "not the peer's: not timed"
    with torch_threads(1):
        compare(
            "pair_bias",
            "reference",
            f"evaluation, batch {batch}" + (f" of {ALONE} constituents" if batch == 1 else ""),
            p,
            lambda: run(p),
            {"weaver PairEmbed": (peer, p.jets)},
            bytes=16 * p.constituents + 32 * float((np.diff(p.offsets) ** 2).mean()),
            flops=(2 * MACS + 200 * GELU) * lower(p),
            target={"us": 700, "ceiling": "sgemm_1"},
        )


def test_training_step(compare, problem, child):
    """Statistics of the batch, value and the gradients of sum y^2 in all weights."""
    p = problem("reference").first(min(BATCH, problem("reference").jets))

    def step(p, dtype, m2="reference"):
        weights, running = ([torch.from_numpy(x) for x in part] for part in pair_network(WIDTHS, dtype=dtype))
        weights = [w.requires_grad_() for w in weights]
        p4, offsets = torch.from_numpy(p.p4.astype(dtype)), torch.from_numpy(p.offsets)
        options = {"statistics": "batch", "last_activation": True, "m2": m2}
        bias = lambda: pair_bias(p4, offsets, weights, running, **options)[0]
        return lambda: torch.autograd.grad(bias().square().sum(), weights)

    peer = None
    if child:
        weaver(child, p.first(min(FEW, p.jets)), "float64", train=True)()
        ours, theirs = step(p.first(min(FEW, p.jets)), "float64")(), child.result()
        largest = max(np.abs(b).max() for b in theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert np.abs(a.numpy().ravel() - b.ravel()).max() <= 1e-9 * largest, "not the peer's: not timed"
        peer = weaver(child, p, train=True)
    single, double = step(p, "float32", "stable")(), step(p, "float64", "stable")()  # "reference" has the dtype's noise
    largest = max(b.abs().max() for b in double)
    assert all((a - b).abs().max() <= 1e-4 * largest for a, b in zip(single, double)), "wrong: not timed"
    with torch_threads(1):
        compare(
            "pair_bias",
            "reference",
            f"training step, batch {BATCH}",
            p,
            step(p, "float32"),
            {"weaver PairEmbed": (peer, p.jets)},
            bytes=32 * p.constituents + 64 * float((np.diff(p.offsets) ** 2).mean()) + 2 * 816 * lower(p),
            flops=(6 * MACS + 400 * GELU) * lower(p),
        )
