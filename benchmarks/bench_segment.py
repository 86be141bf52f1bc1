"""Sums over the constituents of each jet, 64 channels."""

import numpy as np
import torch

from cases import OPS
from fasttag import _baselines
from fasttag_kernels.segment import reference, segment
from timing import check, local, torch_threads

CHANNELS = 64


def test_segment(compare, problem):
    p = problem("reference")
    values = np.random.default_rng(4).normal(size=(p.p4.shape[1], CHANNELS)).astype(np.float32)
    scale = OPS["segment"].scale(values, p.offsets)
    check("segment", segment(values, p.offsets), reference.segment(values, p.offsets), scale)
    tensor, jet = torch.from_numpy(values), torch.from_numpy(np.repeat(np.arange(p.jets), np.diff(p.offsets)))
    others = {
        "np.add.reduceat": local(lambda: _baselines.segment(values, p.offsets), p),
        "torch index_add_": local(lambda: torch.zeros(p.jets, CHANNELS).index_add_(0, jet, tensor), p),
    }
    with torch_threads(1):
        compare(
            "segment",
            "reference",
            f"{CHANNELS} channels",
            p,
            lambda: segment(values, p.offsets),
            others,
            bytes=4 * CHANNELS * (p.constituents + 1),
        )
