"""fasttag.backends and fasttag.warmup."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

import fasttag
from children import python
from fasttag_kernels import TABLE, _cuda


def test_backends():
    found = fasttag.backends()
    assert set(found) == set(TABLE) and all(found[op]["numba"] == "cpu" for op in TABLE)
    for op, row in TABLE.items():
        assert list(found[op]) == list(row["backends"])
        assert found[op].get("cuda", NOT_RUN) == NOT_RUN


@pytest.mark.parametrize("cupy", ["there", "missing"])
def test_without_a_gpu(cupy):
    """With CuPy and without: nothing is imported or asked of a driver before there is an array on a GPU."""
    hide = "sys.modules['cupy'] = None; " if cupy == "missing" else ""
    code = f"import sys; {hide}import fasttag; print(len(fasttag.backends()), sys.modules.get('cupy'))"
    assert python(code) == f"{len(TABLE)} None"


def test_the_missing_part_is_named(monkeypatch):
    for found in (_cuda._cupy, _cuda._check, _cuda.kernel):
        found.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cupy", None)
        with pytest.raises(ImportError, match=r"cupy is needed for arrays on a GPU: .* extra cuda13 or cuda12"):
            _cuda.kernel("segment/kernel.cu", "segment_sum", REAL="float")
    cupy = pytest.importorskip("cupy")
    if not cupy.cuda.is_available():
        with pytest.raises(RuntimeError, match="a GPU needs a CUDA driver that CuPy can use, got cudaError"):
            _cuda._check(0)
    with monkeypatch.context() as patch:
        patch.setattr(cupy.cuda, "Device", lambda number: types.SimpleNamespace(compute_capability="75"))
        with pytest.raises(NotImplementedError, match=r"the kernels need compute capability 8.0 or more, got 7.5"):
            _cuda._check(0)
        patch.setattr(cupy.cuda, "Device", lambda number: types.SimpleNamespace(compute_capability="90"))

        def lost():
            raise RuntimeError("libnvrtc.so.13 not found")

        patch.setattr(cupy.cuda.nvrtc, "getVersion", lost)
        with pytest.raises(RuntimeError, match=r"compiled by NVRTC, got libnvrtc.so.13 not found; install the CUDA"):
            _cuda._check(0)
    _cuda._check.cache_clear()


NOT_RUN = "cuda: compiled and emulated, not yet run on a GPU"


@pytest.mark.parametrize("order", ["backends warmup backends", "warmup backends"])
def test_either_can_come_first(order):
    calls = "; ".join(f"fasttag.{name}({'[]' if name == 'warmup' else ''})" for name in order.split())
    python(f"import fasttag; {calls}")


def test_warmup_compiles_for_both_dtypes():
    fasttag.warmup(["segment"])
    from fasttag_kernels.segment.numba_cpu import _sum

    assert {str(signature[2].dtype) for signature in _sum.signatures} >= {"float32", "float64"}
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
found = [value for value in gc.get_objects() if isinstance(value, CPUDispatcher) and value.stats.cache_path]
kernels = {f"{value.__module__}.{value.__qualname__} {id(value)}": value for value in found}
compiled = [name for name, value in kernels.items() if sum(value.stats.cache_misses.values())]
loaded = [name for name, value in kernels.items() if sum(value.stats.cache_hits.values())]
print(json.dumps([compiled, len(loaded)]))
"""


@pytest.mark.slow
def test_nothing_is_compiled_after_warmup(tmp_path):
    """Into an empty cache; then another process runs every op, in both dtypes, and only loads."""
    python("import fasttag; fasttag.warmup()", NUMBA_CACHE_DIR=tmp_path)
    code = EVERY_OP.replace("TESTS", repr(str(Path(__file__).parent)))
    compiled, loaded = json.loads(python(code, NUMBA_CACHE_DIR=tmp_path))
    assert compiled == [] and loaded >= len(TABLE)
