"""Triton on tensors: the device and stream of a tensor, and jets listed by length."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ._cuda import LEAST_ARCHITECTURE

try:
    import triton  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
    raise ImportError(
        "triton is needed for this operation on a GPU: install fasttag-hep with the extra cuda13 or cuda12"
    ) from error


@contextlib.contextmanager
def on(tensor: Any) -> Iterator[None]:
    """The device of a tensor; what is launched there goes to torch's current stream of it."""
    _check(tensor.device)
    with torch.cuda.device(tensor.device):
        yield


@functools.cache
def _check(device: torch.device) -> None:
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < LEAST_ARCHITECTURE:
        raise NotImplementedError(
            f"the kernels need compute capability {LEAST_ARCHITECTURE / 10} or more, got {major}.{minor}; use the CPU"
        )


def sent(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy on the device that nobody waits for."""
    return torch.from_numpy(array).pin_memory().to(device, non_blocking=True)


def by_length(offsets: np.ndarray, ends: tuple[int, ...], device: torch.device) -> list[torch.Tensor]:
    """Lists of jets of 1 to ends[0] constituents, of up to ends[1] ..., and of the longer ones.

    A jet is a row (place in the batch, first constituent, constituents, pairs of all jets before), int64. So what a jet
    gets depends on its own length alone, and one launch has jets of about one size.
    """
    counts = np.diff(offsets)
    pairs = counts * counts
    rows = np.stack([np.arange(len(counts)), offsets[:-1], counts, np.cumsum(pairs) - pairs], 1)
    kinds = np.searchsorted(ends, counts)
    kinds[counts == 0] = -1
    lists = [np.flatnonzero(kinds == kind) for kind in range(len(ends) + 1)]
    every = sent(rows[np.concatenate(lists)], device)
    return list(every.split([len(some) for some in lists]))
