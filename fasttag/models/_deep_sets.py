"""The sum over constituents that PFN and EFN share, without padding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..features import Inputs
from ..ops import segment

# Constituents per block in inference: 2048 x 256 floats are 2 MB, so that activations stay in the second-level cache.
# Measured on the PFN: 58 us per jet in one block of 512 jets, 36 us in blocks (1 thread).
BLOCK = 2048


def sum_latent(inputs: Inputs, latent: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Sum latent(x) (N, C) over each jet: (J, C)."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or inputs.x.is_cuda:
        return segment(latent(inputs.x), inputs.offsets)
    host = inputs.offsets_host
    parts = []
    first = 0
    while first < host.size - 1:
        last = max(first + 1, int(np.searchsorted(host, host[first] + BLOCK, side="right")) - 1)
        rows = inputs.x[host[first] : host[last]]
        parts.append(segment(latent(rows), inputs.offsets[first : last + 1] - int(host[first])))
        first = last
    return torch.cat(parts) if parts else segment(latent(inputs.x), inputs.offsets)
