"""Seventeen ragged columns to standardised, clipped inputs (J, 17, 128)."""

import numpy as np
import pytest

from fasttag import _baselines
from fasttag_kernels.standardize import numba_cpu, reference, standardize
from timing import check, local

CHANNELS, LENGTH = 17, 128


def given(p):
    """values, center, scale, low, high: what a weaver data configuration holds."""
    rng = np.random.default_rng(5)
    values = rng.normal(size=(CHANNELS, p.p4.shape[1])).astype(np.float32)
    number = lambda low, high: rng.uniform(low, high, CHANNELS).astype(np.float32)
    return values, number(-1, 1), number(0.3, 3), number(-2, -1), number(1, 2)


@pytest.mark.parametrize("wrap", [False, True], ids=["constant", "repeated"])
@pytest.mark.parametrize(("shape", "fresh"), [("reference", True), ("reference", False), ("jets46", False)])
def test_standardize(compare, problem, child, shape, fresh, wrap):
    """Weaver's loader makes the memory anew; the kernels are compared on memory at hand."""
    p = problem(shape)
    values, *settings = given(p)
    options = dict(zip(("center", "scale", "low", "high"), settings))
    found, some = standardize(values, p.offsets, LENGTH, wrap=wrap, **options), p.first(min(500, p.jets))
    pads, starts = np.zeros(CHANNELS, np.float32), np.arange(CHANNELS) * values.shape[1]
    expected = reference.standardize(values[:, : some.offsets[-1]], some.offsets, *settings, pads, LENGTH, wrap)
    check("standardize", found[: some.jets], expected, np.abs(settings[0] * settings[1])[:, None])
    out = np.empty_like(found)

    def ours():
        if fresh:
            return standardize(values, p.offsets, LENGTH, wrap=wrap, **options)
        numba_cpu.fill(values.ravel(), starts, p.offsets, (*settings, pads), wrap, out, threads=1)
        return out

    assert np.array_equal(ours(), found)
    others = {"weaver-core": (None, p.jets)}
    if child:
        arrays = {"content": values.ravel(), "starts": starts, "offsets": p.offsets, **options}
        function = "_batched_fused_repeat_pad" if wrap else "_batched_fused_constant_pad"
        seconds = child.prepare("weaver", arrays, function=function, fresh=fresh)
        seconds()
        assert child.result()[0].tobytes() == found.tobytes(), "the peer's inputs are others: not timed"
        others["weaver-core"] = seconds, p.jets
    if fresh and not wrap:
        plain = lambda: _baselines.standardize(values, p.offsets, LENGTH, *settings)
        assert np.array_equal(plain(), found)
        others["NumPy, one scatter"] = local(plain, p)
    how = "fresh memory" if fresh else f"B = {p.jets} into memory at hand"
    compare(
        "standardize",
        shape,
        f"C = {CHANNELS} to {LENGTH}, {'repeated' if wrap else 'constant'}, {how}",
        p,
        ours,
        others,
        bytes=4 * CHANNELS * (np.minimum(np.diff(p.offsets), LENGTH).mean() + LENGTH),
        target={} if fresh else {"ratio": 3.0},
    )
