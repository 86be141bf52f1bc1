"""fasttag.backends and fasttag.warmup."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest

import fasttag
from children import python
from fasttag_kernels import TABLE, _cuda

CUPY = importlib.util.find_spec("cupy") is not None
needs_cupy = pytest.mark.skipif(not CUPY, reason="no CuPy")


def test_backends():
    found = fasttag.backends()
    assert set(found) == set(TABLE) and all("cpu" in (found[op].get("numba"), found[op].get("torch")) for op in TABLE)
    for op, row in TABLE.items():
        assert list(found[op]) == list(row["backends"])
        assert found[op].get("cuda", NOT_RUN) == NOT_RUN
        assert found[op].get("triton", "compiled and interpreted") in NOT_RUN.replace("emulated", "interpreted")


@pytest.mark.parametrize("cupy", ["there", "missing"])
def test_without_a_gpu(cupy):
    """With CuPy and without: nothing is imported or asked of a driver before there is an array on a GPU."""
    hide = "sys.modules['cupy'] = None; " if cupy == "missing" else ""
    code = f"import sys; {hide}import fasttag; print(len(fasttag.backends()), sys.modules.get('cupy'))"
    assert python(code) == f"{len(TABLE)} None"


def test_without_cupy(monkeypatch):
    _cuda._cupy.cache_clear()
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r"cupy is needed for arrays on a GPU: .* extra cuda13 or cuda12"):
        _cuda.kernel("segment/kernel.cu", "segment_sum", REAL="float")


@needs_cupy
@pytest.mark.skipif(CUPY and importlib.import_module("cupy").cuda.is_available(), reason="there is a GPU")
def test_without_a_driver():
    with pytest.raises(RuntimeError, match="a GPU needs a CUDA driver that CuPy can use, got cudaError"):
        _cuda._check(0)


@needs_cupy
def test_the_missing_part_is_named(monkeypatch):
    cupy = importlib.import_module("cupy")
    capability = lambda number: types.SimpleNamespace(compute_capability=number)
    _cuda._check.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(cupy.cuda, "Device", lambda device: capability("75"))
        with pytest.raises(NotImplementedError, match=r"the kernels need compute capability 8.0 or more, got 7.5"):
            _cuda._check(0)
        patch.setattr(cupy.cuda, "Device", lambda device: capability("90"))

        def lost():
            raise RuntimeError("libnvrtc.so.13 not found")

        patch.setattr(cupy.cuda.nvrtc, "getVersion", lost)
        with pytest.raises(RuntimeError, match=r"compiled by NVRTC, got libnvrtc.so.13 not found; install the CUDA"):
            _cuda._check(0)
    _cuda._check.cache_clear()


@needs_cupy
def test_machine_code_is_kept(tmp_path, monkeypatch):
    """On disk by source, options and architecture; where nothing can be written, for the life of the process."""
    _cuda._folder.cache_clear()
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "kernels"))
    name, options = "segment/kernel.cu", _cuda.options(REAL="float")
    file = _cuda.machine_code(name, options, 90)
    with monkeypatch.context() as patch:
        patch.setattr(_cuda, "compiled", None)  # nothing is compiled again
        assert _cuda.machine_code(name, options, 90) == file and file.parent == tmp_path / "kernels"
    others = [(name, _cuda.options(REAL="double"), 90), (name, options, 80), ("pad/kernel.cu", options, 90)]
    assert len({file, *(_cuda.machine_code(*other) for other in others)}) == 4
    assert {path.suffix for path in file.parent.iterdir()} == {".cubin"}, "something unfinished was left"
    _cuda._folder.cache_clear()
    (tmp_path / "a file").touch()
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "a file" / "kernels"))
    assert _cuda.machine_code(name, options, 90).read_bytes() == file.read_bytes()
    _cuda._folder.cache_clear()


@needs_cupy
def test_compile_errors_are_shown():
    with pytest.raises(RuntimeError, match=r"cannot compile for sm_90, got .*expected a"):
        _cuda.compiled("int", (), 90)
    with pytest.raises(RuntimeError, match=r"cannot compile for sm_45, got .*invalid value for --gpu-architecture"):
        _cuda.compiled("", (), 45)


@needs_cupy
def test_tensors_run_on_the_current_stream_of_torch(monkeypatch):
    """The real `_cuda.on`, with a device and a stream that are not there."""
    cupy, torch = importlib.import_module("cupy"), importlib.import_module("torch")
    entered = []
    monkeypatch.setattr(_cuda, "_check", entered.append)
    monkeypatch.setattr(cupy.cuda, "Device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=4096))
    monkeypatch.setattr(cupy.cuda.Stream, "__enter__", lambda stream: entered.append(stream.ptr))
    monkeypatch.setattr(cupy.cuda.Stream, "__exit__", lambda *_: None)
    monkeypatch.setattr(_cuda, "library_of", lambda array: "torch")
    with _cuda.on(types.SimpleNamespace(device=torch.device("cuda", 3))):
        assert entered == [3, 4096]


NOT_RUN = "compiled and emulated, not yet run on a GPU"


@pytest.mark.parametrize("order", ["backends warmup backends", "warmup backends"])
def test_either_can_come_first(order):
    calls = "; ".join(f"fasttag.{name}({'[]' if name == 'warmup' else ''})" for name in order.split())
    assert python(f"import fasttag; {calls}; print('numba' in fasttag.backends()['segment'])") == "True"


def test_warmup_compiles_for_both_dtypes():
    fasttag.warmup(["segment"])
    from fasttag_kernels.segment.numba_cpu import sum_rows

    assert {str(signature[2].dtype) for signature in sum_rows.signatures} >= {"float32", "float64"}
    with pytest.raises(ValueError, match=r"warmup: ops must be some of kinematics, .*, got nonsense"):
        fasttag.warmup(["segment", "nonsense"])


EVERY_OP = """
import gc, json, sys
sys.path.insert(0, TESTS)
import numpy as np
from numba.core.registry import CPUDispatcher
from cases import CASES, OPS
for dtype in (np.float32, np.float64):
    for case in ("mixed", "not finite", "longer than any block"):
        p4, offsets = CASES[case]()
        for op in OPS.values():
            op.run(*op.arguments(np.ascontiguousarray(p4, dtype), offsets))
found = [x for x in gc.get_objects() if issubclass(type(x), CPUDispatcher) and x.stats.cache_path]
kernels = {f"{value.__module__}.{value.__qualname__} {id(value)}": value for value in found}
compiled = [name for name, value in kernels.items() if sum(value.stats.cache_misses.values())]
loaded = [name for name, value in kernels.items() if sum(value.stats.cache_hits.values())]
print(json.dumps([compiled, len(loaded)]))
"""


@pytest.mark.slow
def test_nothing_is_compiled_after_warmup(tmp_path):
    """Into an empty cache; then another process runs every op, in both dtypes, and only loads."""
    python("import fasttag; fasttag.warmup()", timeout=600, NUMBA_CACHE_DIR=tmp_path)
    code = EVERY_OP.replace("TESTS", repr(str(Path(__file__).parent)))
    compiled, loaded = json.loads(python(code, NUMBA_CACHE_DIR=tmp_path))
    assert compiled == [] and loaded >= len(TABLE)
