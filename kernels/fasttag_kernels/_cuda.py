"""CUDA C through CuPy: compiled on first use, once per source, options and architecture; run on the caller's stream."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ._dispatch import library_of

LEAST_ARCHITECTURE = 80
NULL = np.uintp(0)  # in place of an array that is not given
REAL = {"float32": "float", "float64": "double"}  # dtype -> type in C, for the macro of this name


def source(name: str) -> str:
    """The text of a .cu file of this package behind that of device.cu."""
    folder = Path(__file__).parent
    return "".join(f'#line 1 "{part}"\n{(folder / part).read_text()}' for part in ("device.cu", name))


def options(fmad: bool = True, **macros: Any) -> tuple[str, ...]:
    """The compiler's options; fmad=False where every product and sum must be rounded by itself."""
    return ("--std=c++17", f"--fmad={str(fmad).lower()}", *(f"-D{name}={value}" for name, value in macros.items()))


def kernel(name: str, function: str, *, fmad: bool = True, **macros: Any) -> Any:
    """The kernel `function` of a .cu file on the current device, to be called with (blocks,), (threads,), arguments."""
    architecture = int(_cupy().cuda.Device().compute_capability)
    return _kernel(name, function, options(fmad, **macros), architecture)


@functools.cache
def _kernel(name: str, function: str, options: tuple[str, ...], architecture: int) -> Any:
    return _cupy().RawModule(path=str(machine_code(name, options, architecture))).get_function(function)


def machine_code(name: str, options: tuple[str, ...], architecture: int) -> Path:
    """The file that holds the machine code of a .cu file, compiled now where it is not there yet.

    By NVRTC alone, not by CuPy: that appends -ftz=true, which would make float32 below 1.2e-38 zero.
    """
    text = source(name)
    parts = (text, *options, str(architecture), str(_cupy().cuda.nvrtc.getVersion()))
    file = _folder() / f"fasttag-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.cubin"
    if not file.exists():
        handle, unfinished = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "wb") as opened:
            opened.write(compiled(text, options, architecture)[0])
        os.replace(unfinished, file)  # whole or not at all, whoever else compiles the same
    return file


def compiled(text: str, options: tuple[str, ...], architecture: int) -> tuple[bytes, str]:
    """Machine code for an architecture (90: sm_90), and what the compiler says. Needs no driver."""
    nvrtc = _cupy().cuda.nvrtc
    program = nvrtc.createProgram(text, "kernel.cu", [], [])
    try:
        nvrtc.compileProgram(program, [f"--gpu-architecture=sm_{architecture}", *options])
        return nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as error:
        raise RuntimeError(
            f"NVRTC {nvrtc.getVersion()} cannot compile for sm_{architecture}, got {error}: "
            f"{nvrtc.getProgramLog(program)}"
        ) from error
    finally:
        nvrtc.destroyProgram(program)


@functools.cache
def _folder() -> Path:
    """Where CuPy keeps its own machine code; a folder of this process where nothing can be written there."""
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="fasttag-"))


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


class _Stream:
    """torch's current stream by the protocol that CuPy asks for (torch itself has it in newer versions only)."""

    def __init__(self, device: Any) -> None:
        self.pointer = importlib.import_module("torch").cuda.current_stream(device).cuda_stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


@contextlib.contextmanager
def on(array: Any) -> Iterator[None]:
    """The device of an array and, for torch, torch's current stream as CuPy's."""
    cupy = _cupy()
    torch = library_of(array) == "torch"
    device = array.device.index if torch else array.device.id
    _check(device)
    stream = cupy.cuda.Stream.from_external(_Stream(array.device)) if torch else contextlib.nullcontext()
    with cupy.cuda.Device(device), stream:
        yield


def view(array: Any) -> Any:
    """A CuPy array on the memory of a CuPy array or a CUDA tensor. -1: both are on the stream of `on` already."""
    if library_of(array) != "torch":
        return array
    return _cupy().from_dlpack(array.detach().__dlpack__(stream=-1))


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
