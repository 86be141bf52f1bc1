"""Products of matrices in registers."""

from __future__ import annotations

import platform

import numpy as np
import pytest

from children import python
from fasttag_kernels._numba import kernel
from fasttag_kernels._simd import multiply


@kernel
def _multiply(a, b, start, out, rows, columns, depth):
    multiply(a, b, start, out, rows, columns, depth)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("rows", "columns", "depth"), [(64, 128, 64), (8, 32, 4), (5, 40, 0), (64, 64, 128), (17, 33, 7)]
)
def test_multiply(rows, columns, depth, dtype):
    """Within depth roundings of the sum of absolute values; rows and columns beyond those rounded up are left alone."""
    rng = np.random.default_rng(1)
    a, b, start = (rng.normal(size=shape).astype(dtype) for shape in ((72, 130), (130, 160), 72))
    out = np.full((72, 160), np.nan, dtype)
    _multiply(a, b, start, out, rows, columns, depth)
    wide = [x.astype(np.float64) for x in (a[:, :depth], b[:depth], start[:, None])]
    expected, size = wide[0] @ wide[1] + wide[2], np.abs(wide[0]) @ np.abs(wide[1]) + np.abs(wide[2])
    error = np.abs(out - expected) / size
    assert error[:rows, :columns].max() <= (depth + 1) * np.finfo(dtype).eps / 2
    assert np.isnan(out[-(-rows // 8) * 8 :]).all()
    assert np.isnan(out[:, -(-columns // (128 // out.itemsize)) * (128 // out.itemsize) :]).all()


# with the block of this CPU, and with that of one without AVX-512
CPUS = {"this": {}, "avx2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}}

BITS = """
import hashlib
import numba, numpy as np
from fasttag_kernels._simd import multiply

@numba.njit
def _multiply(a, b, start, out):
    multiply(a, b, start, out, 64, 128, 64)

rng = np.random.default_rng(1)
a, b, start = (rng.normal(size=shape).astype(np.float32) for shape in ((64, 64), (64, 128), 64))
out = np.empty((64, 128), np.float32)
_multiply(a, b, start, out)
print(hashlib.sha256(out).hexdigest())
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86-64 processors")
def test_bits_do_not_depend_on_the_registers(tmp_path):
    found = {python(BITS, NUMBA_CACHE_DIR=tmp_path / name, **cpu) for name, cpu in CPUS.items()}
    assert len(found) == 1
