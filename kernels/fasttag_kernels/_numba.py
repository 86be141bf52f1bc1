"""The one njit decorator: serial, without the GIL, cached on disk in a folder named after the sources."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.misc.appdirs import AppDirs

# Reductions may be reordered and multiplications fused; NaN and inf keep their meaning (no nnan, no ninf), divisions
# and square roots their accuracy (no arcp, no afn). But reordering makes x - x zero, so that math.isfinite, which Numba
# writes with it, is always true: ask abs(x) < math.inf.
FASTMATH = {"contract", "reassoc", "nsz"}


def _cache_folder() -> str | None:
    """Where compiled kernels are kept; None where nothing can be written.

    Numba looks at the time stamp of the file that holds the kernel, not at helpers in other files: hence the hash of
    all sources in the folder's name.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    base = numba.config.CACHE_DIR or AppDirs(appname="fasttag", appauthor=False).user_cache_dir
    folder = Path(base) / f"fasttag-kernels-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


CACHE_FOLDER = _cache_folder()


def _njit(function: Callable, **options: Any) -> Any:
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = CACHE_FOLDER or before
    try:
        decorate = numba.njit(nogil=True, cache=CACHE_FOLDER is not None, error_model="numpy", **options)
        return decorate(function)
    finally:
        numba.config.CACHE_DIR = before


def kernel(function: Callable) -> Any:
    """Compile a kernel(first, last, ...) that works on jets (or elements) first..last."""
    return _njit(function, fastmath=FASTMATH)


def helper(function: Callable) -> Any:
    """Compile a function that LLVM inlines into kernels' loops and whose operations stay in the order written.

    Not `inline="always"`: that pastes the source into the kernel, where reassociation undoes compensated sums.
    """
    return numba.njit(nogil=True, forceinline=True, error_model="numpy", fastmath={"contract"})(function)


def exact(function: Callable) -> Any:
    """Compile a kernel, or a function for one, whose floating-point operations are all rounded in the order written.

    With an empty set, not without one: what a caller makes Numba compile inherits the options it has not set. Not
    inlined by force: that gives operations without flags those of the caller.
    """
    return _njit(function, fastmath=set())


def inputs(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Contiguous, aligned, read-only views: one compiled version serves writeable and read-only arrays."""
    views = []
    for array in arrays:
        flags = array.flags
        fits = flags.c_contiguous and flags.aligned  # np.require takes 1 us to see that
        view = array.view() if fits else np.require(array, requirements=["C", "A"]).view()
        view.setflags(write=False)
        views.append(view)
    return tuple(views)
