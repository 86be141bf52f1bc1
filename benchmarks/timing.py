"""Small parts of the protocol that every benchmark uses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from problems import Problem
from tolerances import TOLERANCES


def seconds_of(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    result = function()
    end = time.perf_counter()
    del result  # giving its memory back is not part of the operation
    return end - begin


def local(function: Callable[[], Any], p: Problem) -> tuple[Callable[[], float], int]:
    """A peer in this process, for `compare`."""
    return (lambda: seconds_of(function)), p.jets


class torch_threads:
    """torch with so many threads, inside."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.threads)

    def __exit__(self, *_: Any) -> None:
        torch.set_num_threads(self.before)


def check(op: str, found: Any, expected: Any, scale: Any = 1.0) -> None:
    """The contract test's rule: |found - expected| <= rtol |expected| + atol scale. Else nothing is timed."""
    rtol, atol = TOLERANCES[op, "float32"]
    found, expected = (x if isinstance(x, tuple) else (x,) for x in (found, expected))
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = np.abs(np.asarray(a, np.float64) - b)
        bound = rtol * np.abs(b) + atol * (scale[i] if isinstance(scale, np.ndarray) and len(found) > 1 else scale)
        assert (error <= bound).all(), f"{op}: output {i} is off by up to {error.max()}: not timed"
