"""Every kernel compiles for sm_80 and sm_90 without a GPU, within the limits that its README states."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

import emulation
from cases import OPS, arguments_of
from fasttag_kernels import TABLE, _cuda, _dispatch
from test_emulated import ON_GPU, gradient_arguments, run

KERNELS = Path(_cuda.__file__).parent
FILES = sorted(str(path.relative_to(KERNELS)) for path in KERNELS.rglob("*.cu") if path.name != "device.cu")
ROW = re.compile(r"^\| `(?P<function>\w+)` \| (?P<options>[^|]*) \| (?P<threads>\d+) \| (?P<registers>\d+) \|", re.M)


def has_nvrtc() -> bool:
    """Whether CuPy is there and finds a compiler, in a wheel or in a toolkit."""
    if importlib.util.find_spec("cupy") is None:
        return False
    try:
        return bool(importlib.import_module("cupy").cuda.nvrtc.getVersion())
    except Exception:  # whatever CuPy's search for the library ended in
        return False


needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason="no CuPy or no NVRTC")


def stated(name: str) -> list[tuple[str, tuple[str, ...], int, int]]:
    """(function, options, threads per block, registers at most) of each variant, from the README beside the file."""
    rows = []
    folder = (KERNELS / name).parent
    for found in ROW.finditer(((KERNELS.parent if folder == KERNELS else folder) / "README.md").read_text()):
        pairs = dict(re.findall(r"`(\w+)=([\w ]+)`", found["options"]))
        fmad = pairs.pop("fmad", "true") == "true"
        rows.append((found["function"], _cuda.options(fmad, **pairs), int(found["threads"]), int(found["registers"])))
    return [row for row in rows if row[0] in emulation.KERNELS.findall(_cuda.source(name))]


@needs_nvrtc
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("name", FILES)
def test_limits(name, architecture):
    """No stack, no spills, no more registers than stated, and a quarter of the warps that fit on a multiprocessor."""
    rows = stated(name)
    assert {row[0] for row in rows} == set(emulation.KERNELS.findall(_cuda.source(name))), "README lacks a kernel"
    compiled = {options: emulation.compile_source(_cuda.source(name), options, architecture) for _, options, *_ in rows}
    for function, options, threads, registers in rows:
        uses = compiled[options][function]
        assert uses["stack"] == uses["stores"] == uses["loads"] == 0, f"{function} {options}: {uses}"
        assert uses["registers"] <= registers, f"{function} {options}: {uses}, at most {registers} stated"
        share = emulation.occupancy(uses, threads, architecture)
        assert share >= 0.25, f"{function} {options}: {uses}, occupancy {share}"


@needs_nvrtc
def test_a_kernel_that_spills_is_found():
    rows = "; ".join(f"double v{i} = x[{i} * t]" for i in range(64))
    uses = "; ".join(f"v{i} = v{i} * v{(i + 1) % 64} + x[t + {i}]" for i in range(64))
    stores = "; ".join(f"x[{i} * t] = v{i}" for i in range(64))
    text = f"""extern "C" __global__ void __launch_bounds__(1024) wide(double* x, int t) {{
        {rows}; for (int i = 0; i < t; i++) {{ {uses}; }} {stores}; }}"""
    found = emulation.compile_source(text, _cuda.options(), 90)["wide"]
    assert found["stores"] > 0 and found["loads"] > 0 and found["stack"] > 0


@pytest.mark.sanitizer
def test_what_runs_is_what_was_compiled(monkeypatch):
    """The variants that the backends launch, threads per block included, are the rows of the READMEs."""
    emulation.emulated(monkeypatch)
    monkeypatch.setattr(emulation.Settings, "launched", set())
    for op in ON_GPU:
        for dtype in ("float32", "float64"):
            run(op, arguments_of(op, "mixed", dtype))
            if TABLE[op]["backward"]:
                for gradient, arguments, offsets_host, saved in gradient_arguments(op, "massive", dtype):
                    arguments = (*arguments, *saved)
                    _dispatch.execute_backward(op, "cuda", gradient, arguments, offsets_host, 1, emulation.poisoned)
    known = {(name, *row[:3]) for name in FILES for row in stated(name)}
    assert emulation.Settings.launched <= known, sorted(emulation.Settings.launched - known)


def test_the_occupancy_of_known_cases():
    """Against the tables of the CUDA occupancy calculator."""
    kernel = {"registers": 32, "shared": 0}
    assert emulation.occupancy(kernel, 256, 90) == 1.0
    assert emulation.occupancy({**kernel, "registers": 128}, 256, 90) == 0.25
    assert emulation.occupancy({**kernel, "shared": 100 * 1024}, 128, 90) == 0.125


def test_every_gpu_op_has_its_files():
    for op in ON_GPU:
        assert (KERNELS / op / "kernel.cu").exists() and (KERNELS / op / "cupy_cuda.py").exists()
    assert set(ON_GPU) <= set(OPS)
