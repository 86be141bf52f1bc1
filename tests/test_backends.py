"""fasttag.backends and fasttag.warmup."""

from __future__ import annotations

import pytest

import fasttag
from children import python
from fasttag_kernels import TABLE


def test_backends():
    assert fasttag.backends() == {op: {"numba": "cpu"} for op in TABLE}


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
