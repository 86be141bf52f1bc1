"""Sums, means, maxima and softmax over the constituents of each jet."""

import numpy as np
import pytest
import torch

from cases import OPS
from fasttag import _baselines
from fasttag_kernels.segment import REDUCTIONS, reference, segment
from fasttag_kernels.segment_softmax import reference as softmax_reference
from fasttag_kernels.segment_softmax import segment_softmax
from timing import check, local, torch_threads

CHANNELS, HEADS = 64, 8
TORCH = {"mean": "mean", "max": "amax"}


def rows(p, channels):
    values = np.random.default_rng(4).normal(size=(p.p4.shape[1], channels)).astype(np.float32)
    jet = torch.from_numpy(np.repeat(np.arange(p.jets), np.diff(p.offsets)))
    return values, torch.from_numpy(values), jet


@pytest.mark.filterwarnings("ignore:index_reduce")  # that it is in beta
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_segment(compare, problem, reduce):
    p = problem("reference")
    values, tensor, jet = rows(p, CHANNELS)
    scale = OPS["segment"].scale(values, p.offsets)[REDUCTIONS.index(reduce)]
    found = segment(values, p.offsets, reduce=reduce)
    check("segment", found, reference.segment(values, p.offsets, reduce), scale)
    if reduce == "sum":
        others = {
            "np.add.reduceat": lambda: _baselines.segment(values, p.offsets),
            "torch index_add_": lambda: torch.zeros(p.jets, CHANNELS).index_add_(0, jet, tensor),
        }
    else:
        empty = lambda: torch.zeros(p.jets, CHANNELS)
        index, how = jet[:, None].expand(tensor.shape), {"reduce": TORCH[reduce], "include_self": False}
        others = {
            "torch index_reduce_": lambda: empty().index_reduce_(0, jet, tensor, **how),
            "torch scatter_reduce_": lambda: empty().scatter_reduce_(0, index, tensor, **how),
        }
    for other in others.values():
        np.testing.assert_allclose(other(), found, rtol=1e-5, atol=1e-5)
    with torch_threads(1):
        compare(
            "segment",
            "reference",
            f"{CHANNELS} channels" if reduce == "sum" else f"{reduce}, {CHANNELS} channels",
            p,
            lambda: segment(values, p.offsets, reduce=reduce),
            {name: local(other, p) for name, other in others.items()},
            bytes=4 * CHANNELS * (p.constituents + 1),
        )


def test_segment_softmax(compare, problem):
    """torch gets the rows padded with -inf to the longest jet, and a list without padding."""
    p = problem("reference")
    values, tensor, jet = rows(p, HEADS)
    scale = OPS["segment_softmax"].scale(values, p.offsets)
    found = segment_softmax(values, p.offsets)
    check("segment_softmax", found, softmax_reference.segment_softmax(values, p.offsets), scale)
    counts = np.diff(p.offsets)
    valid = torch.from_numpy(np.arange(counts.max()) < counts[:, None])
    padded = torch.full((*valid.shape, HEADS), -torch.inf)
    padded[valid] = tensor
    index = jet[:, None].expand(tensor.shape)

    def of_list():
        empty = torch.zeros(p.jets, HEADS)
        e = torch.exp_(tensor - empty.scatter_reduce(0, index, tensor, "amax", include_self=False)[jet])
        return e / empty.index_add_(0, jet, e)[jet]

    np.testing.assert_allclose(torch.softmax(padded, 1)[valid], found, rtol=1e-5)
    np.testing.assert_allclose(of_list(), found, rtol=1e-5)
    others = {f"torch, padded to {counts.max()}": lambda: torch.softmax(padded, 1), "torch, list": of_list}
    with torch_threads(1):
        compare(
            "segment_softmax",
            "reference",
            f"{HEADS} channels",
            p,
            lambda: segment_softmax(values, p.offsets),
            {name: local(other, p) for name, other in others.items()},
            bytes=8 * HEADS * p.constituents,
        )
