"""Matrix products of NumPy arrays by torch, for tiles that `_threads.over` shares out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

try:
    import torch
except ModuleNotFoundError as error:
    raise ImportError("torch is needed here: install fasttag-hep with the extra torch") from error


def tensors(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Tensors on the memory of arrays; on a contiguous copy of those that cannot be written or are not contiguous."""
    return tuple(torch.from_numpy(np.require(array, requirements=["C", "A", "W"])) for array in arrays)


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Let each product of torch run on the thread that asks for it: then bits do not depend on the number of threads.

    torch has one number for the process: another thread that works with torch meanwhile loses its threads too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
