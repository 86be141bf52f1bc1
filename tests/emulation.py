"""The GPU backends without a GPU: the same .cu files through g++ (cuda_on_host.hpp), the same Python around them.

`emulated(monkeypatch)` sends NumPy arrays to the CUDA backends. `compile_source` says what the machine code for a GPU
takes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fasttag_kernels import _cuda, _dispatch

HERE = Path(__file__).resolve().parent
FLAGS = ("-std=c++20", "-O2", "-g", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing", "-w")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fsanitize-sections=cuda_shared")
KERNELS = re.compile(r"^KERNEL (?:__launch_bounds__\([^)]*\) )?(\w+)\(", re.MULTILINE)


class Settings:
    """How kernels run: with sanitizers or not, threads in rising or falling order; and what has been launched."""

    sanitize = False
    falling = False
    launched: ClassVar[set[tuple]] = set()


class HostKernel:
    """What `_cuda.kernel` gives back, on the host."""

    def __init__(self, name: str, function: str, options: tuple[str, ...]) -> None:
        self.key = (name, function, options)
        library = _library(name, options, Settings.sanitize)
        self.run = getattr(library, f"launch_{function}")
        text = ctypes.create_string_buffer(4096)
        getattr(library, f"signature_{function}")(text)
        self.signature = text.value.decode().split()

    def __call__(self, blocks: tuple[int], threads: tuple[int], arguments: tuple) -> None:
        assert 1 <= blocks[0] < 2**31 and 1 <= threads[0] <= 1024
        assert len(arguments) == len(self.signature), f"{self.key}: {len(self.signature)} arguments"
        Settings.launched.add((*self.key, threads[0]))
        pairs = zip(self.signature, arguments)
        values = [_value(kind, argument, f"{self.key}, argument {i}") for i, (kind, argument) in enumerate(pairs)]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self.run(ctypes.c_uint(blocks[0]), ctypes.c_uint(threads[0]), ctypes.c_bool(Settings.falling), pointers)


def _value(kind: str, argument: Any, where: str) -> Any:
    """An argument as C takes it; fails where CuPy would pass other bytes than the kernel reads."""
    if isinstance(argument, np.ndarray):
        assert kind[0] == "p" and argument.flags.c_contiguous, f"{where}: an array for {kind}"
        if kind[1] != "v":  # of a vector type only the alignment counts, which the sanitizer checks
            assert kind[1:] == f"{'f' if argument.dtype.kind == 'f' else 'i'}{argument.itemsize}", (
                f"{where}: {argument.dtype} for {kind}"
            )
        return ctypes.c_void_p(argument.ctypes.data)
    if kind[0] == "p":
        assert argument is _cuda.NULL, f"{where}: {argument!r} for a pointer"
        return ctypes.c_void_p(0)
    assert argument is not _cuda.NULL, f"{where}: a null pointer for {kind}"
    scalar = argument if isinstance(argument, np.generic) else np.asarray(argument)[()]
    letter = "f" if scalar.dtype.kind == "f" else "i"
    assert kind == f"{letter}{letter}{scalar.itemsize}", f"{where}: {scalar.dtype} for {kind}"
    return (ctypes.c_char * scalar.itemsize).from_buffer_copy(scalar.tobytes())


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="fasttag-emulation-")


@functools.cache
def _library(name: str, options: tuple[str, ...], sanitize: bool) -> ctypes.CDLL:
    text = _cuda.source(name)
    lines = ['#include "cuda_on_host.hpp"', text, '#line 1 "launchers"', 'extern "C" {']
    for function in KERNELS.findall(text):
        lines.append(
            f"void launch_{function}(unsigned b, unsigned t, bool f, void** a) {{ launch<&{function}>(b, t, f, a); }}"
        )
        lines.append(f"void signature_{function}(char* text) {{ signature(&{function}, text); }}")
    source = "\n".join([*lines, "}", ""])
    macros = [option for option in options if option.startswith("-D")]
    command = ["g++", *FLAGS, *(SANITIZERS if sanitize else ()), *macros, f"-I{HERE}"]
    digest = hashlib.sha256("\n".join([source, *command]).encode()).hexdigest()[:20]
    at = Path(_folder().name) / f"{digest}.so"
    at.with_suffix(".cpp").write_text(source)
    done = subprocess.run(
        [*command, str(at.with_suffix(".cpp")), "-o", str(at)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(at))


def poisoned(shape: Any, dtype: Any) -> np.ndarray:
    """Memory in which nothing may be taken for a result."""
    out = np.empty(shape, dtype)
    out.reshape(-1).view(np.uint8)[:] = 0xFF
    return out


@functools.cache
def _host_kernel(name: str, function: str, options: tuple[str, ...], sanitize: bool) -> HostKernel:
    return HostKernel(name, function, options)


def emulated(monkeypatch: Any) -> None:
    """From here on NumPy arrays run on the CUDA backends, which are compiled for the host."""

    def kernel(name: str, function: str, **macros: Any) -> HostKernel:
        return _host_kernel(name, function, _cuda.options(**macros), Settings.sanitize)

    def call(op: str, *arguments: Any, threads: int | None = None, offsets_host: Any = None) -> Any:
        offsets = dict(zip(_dispatch.TABLE[op]["arguments"], arguments)).get("offsets")
        offsets_host = _dispatch._on_host(op, offsets, offsets_host)
        saved = "saved" in _dispatch.TABLE[op]
        if saved:
            arguments = (*arguments, [False] * len(_dispatch.TABLE[op]["gradients"]))
        found = _dispatch.execute(op, "cuda", arguments, offsets_host, 1, poisoned)
        return found[0] if saved else found

    monkeypatch.setattr(_cuda, "kernel", kernel)
    monkeypatch.setattr(_cuda, "empty", poisoned)
    monkeypatch.setattr(_cuda, "zeros", np.zeros)
    monkeypatch.setattr(_cuda, "on", lambda array: contextlib.nullcontext())
    monkeypatch.setattr(_cuda, "view", lambda array: array)
    monkeypatch.setattr(_dispatch, "call", call)


def sanitizer_environment() -> dict[str, str]:
    """What a Python needs in its environment to load libraries with sanitizers in them."""
    run = lambda name: subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return {
        "LD_PRELOAD": f"{run('libasan.so')} {run('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "OPENBLAS_NUM_THREADS": "1",
    }


USES = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


def compile_source(text: str, options: tuple[str, ...], architecture: int) -> dict[str, dict[str, int]]:
    """For each kernel its stack, spills, registers and shared memory, compiled as for a GPU."""
    _, log = _cuda.compiled(text, ("--ptxas-options=-v", *options), architecture)
    return {
        found["name"]: {key: int(found[key] or 0) for key in ("stack", "stores", "loads", "registers", "shared")}
        for found in USES.finditer(log)
    }


# per multiprocessor: bytes of shared memory, and at most 64 warps, 32 blocks and 65,536 registers, on both
SHARED_MEMORY = {80: 164 * 1024, 90: 228 * 1024}


def occupancy(uses: dict[str, int], threads: int, architecture: int) -> float:
    """The share of a multiprocessor's 64 warps that can be resident, as the occupancy calculator has it."""
    warps = -(threads // -32)
    per_warp = -(max(uses["registers"], 1) * 32 // -256) * 256
    by_registers = 65536 // per_warp // warps
    by_shared = SHARED_MEMORY[architecture] // (uses["shared"] + 1024)
    return min(by_registers, by_shared, 64 // warps, 32) * warps / 64
