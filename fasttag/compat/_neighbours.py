"""What weaver's and torch_cluster's graphs have in common: the kernel's neighbours, and a point as its own."""

from __future__ import annotations

import math

import torch

from fasttag_kernels.knn import knn


def nearest(
    x: torch.Tensor, k: int, offsets: torch.Tensor, *, periodic: int | None = None, itself: bool = False
) -> torch.Tensor:
    """The kernel's (N, k); with `itself` each point is a neighbour too, in the place that (d^2, index) gives it."""
    others = knn(x, k, offsets=offsets, periodic=periodic)
    if not itself:
        return others
    start = offsets[:-1].repeat_interleave(offsets.diff(), output_size=len(x))
    own = (torch.arange(len(x)) - start).unsqueeze(1)
    difference = x[others.clamp(min=0) + start.unsqueeze(1)] - x.unsqueeze(1)
    if periodic is not None:
        turn = 2 * math.pi
        difference[..., periodic] -= turn * (difference[..., periodic] / turn).round()
    ahead = (others >= 0) & (others < own) & (difference.square().sum(2) == 0)
    place, column = ahead.sum(1, keepdim=True), torch.arange(k)
    behind = torch.cat((others[:, :1], others[:, :-1]), 1)
    return torch.where(column < place, others, torch.where(column == place, own, behind)).int()
