"""CUDA C through CuPy: compiled on first use, once per source, options and architecture; run on the caller's stream."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ._dispatch import library_of

LEAST_ARCHITECTURE = 80
NULL = np.uintp(0)  # in place of an array that is not given
REAL = {"float32": "float", "float64": "double"}  # dtype -> type in C, for the macro of this name


def source(name: str) -> str:
    """The text of a .cu file of this package behind that of device.cu: CuPy's cache does not look into includes."""
    folder = Path(__file__).parent
    return "".join(f'#line 1 "{part}"\n{(folder / part).read_text()}' for part in ("device.cu", name))


def options(fmad: bool = True, **macros: Any) -> tuple[str, ...]:
    """The compiler's options; fmad=False where every product and sum must be rounded by itself."""
    return ("--std=c++17", f"--fmad={str(fmad).lower()}", *(f"-D{name}={value}" for name, value in macros.items()))


@functools.cache
def kernel(name: str, function: str, *, fmad: bool = True, **macros: Any) -> Any:
    """The kernel `function` of a .cu file, to be called with (blocks,), (threads,), arguments.

    CuPy compiles it at its first launch on a device and keeps the machine code on disk.
    """
    return _cupy().RawKernel(source(name), function, options(fmad, **macros))


def inputs(*arrays: Any) -> tuple[Any, ...]:
    """The arrays, copied where they are not contiguous."""
    return tuple(array if array.flags.c_contiguous else array.copy(order="C") for array in arrays)


def launch(kernel: Any, blocks: int, threads: int, *arguments: Any) -> None:
    """Run a kernel on the current stream. An int arrives as long long, a float as double, an array as a pointer."""
    if blocks:
        kernel((blocks,), (threads,), arguments)


def empty(shape: Any, dtype: Any) -> Any:
    """Scratch memory of the current stream, not initialised."""
    return _cupy().empty(shape, dtype)


def zeros(shape: Any, dtype: Any) -> Any:
    """Scratch memory of the current stream, all zero."""
    return _cupy().zeros(shape, dtype)


def work_list(offsets: Any, offsets_host: np.ndarray, tile: int) -> Any:
    """Items (jet, tile), (W, 2) int32: every `tile` constituents of each jet one item. Host and device agree on W."""
    jets = len(offsets_host) - 1
    items = empty((int((-(np.diff(offsets_host) // -tile)).sum()), 2), np.int32)
    used = zeros(1, np.uint64)
    launch(kernel("work_list.cu", "work_list"), -(jets // -256), 256, offsets, jets, tile, items, used)
    return items


@contextlib.contextmanager
def on(array: Any) -> Iterator[None]:
    """The device of an array and, for torch, torch's current stream as CuPy's."""
    cupy = _cupy()
    device = array.device.index if library_of(array) == "torch" else array.device.id
    _check(device)
    with cupy.cuda.Device(device):
        if library_of(array) == "torch":
            torch = importlib.import_module("torch")
            with cupy.cuda.ExternalStream(torch.cuda.current_stream(array.device).cuda_stream, device):
                yield
        else:
            yield


def view(array: Any) -> Any:
    """A CuPy array on the memory of a CuPy array or a CUDA tensor."""
    return _cupy().from_dlpack(array.detach()) if library_of(array) == "torch" else array


@functools.cache
def _cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise
        raise ImportError(
            "cupy is needed for arrays on a GPU: install fasttag-hep with the extra cuda13 or cuda12"
        ) from error


@functools.cache
def _check(device: int) -> None:
    """A driver, a compiler and an architecture that the kernels run on; else RuntimeError or NotImplementedError."""
    cupy = _cupy()
    try:
        architecture = int(cupy.cuda.Device(device).compute_capability)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(f"a GPU needs a CUDA driver that CuPy can use, got {error}; update the driver") from error
    if architecture < LEAST_ARCHITECTURE:
        raise NotImplementedError(
            f"the kernels need compute capability {LEAST_ARCHITECTURE / 10} or more, got {architecture / 10}; "
            "use the CPU"
        )
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # CuPy raises whatever its search for the library ended in
        raise RuntimeError(
            f"the kernels are compiled by NVRTC, got {error}; install the CUDA toolkit or fasttag-hep with the extra "
            "cuda13 or cuda12"
        ) from error
