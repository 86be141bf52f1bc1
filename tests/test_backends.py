"""fasttag.backends and fasttag.warmup."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fasttag
from children import python
from fasttag_kernels import TABLE


def test_backends():
    found = fasttag.backends()
    assert set(found) == set(TABLE) and all(found[op]["numba"] == "cpu" for op in TABLE)
    for op, row in TABLE.items():
        assert list(found[op]) == list(row["backends"])
        assert found[op].get("cuda", NOT_RUN) == NOT_RUN


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
