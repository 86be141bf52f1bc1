"""Ragged four-vectors to a block padded to 200."""

from fasttag import _baselines
from fasttag_kernels.pad import pad, reference
from timing import check, local

LENGTH = 200


def test_pad(compare, problem):
    p = problem("reference")
    expected = reference.pad(p.p4, p.offsets, LENGTH)
    check("pad", pad(p.p4, p.offsets, LENGTH), expected)
    check("pad", _baselines.pad(p.p4, p.offsets, LENGTH), expected)
    others = {"NumPy boolean scatter": local(lambda: _baselines.pad(p.p4, p.offsets, LENGTH), p)}
    compare(
        "pad",
        "reference",
        f"to length {LENGTH}",
        p,
        lambda: pad(p.p4, p.offsets, LENGTH),
        others,
        bytes=16 * p.constituents + 17 * LENGTH,
    )
