"""The vectorised log and atan2: their error bounds, and that LLVM does pack the loops that use them."""

from __future__ import annotations

import platform
import re

import mpmath
import numpy as np
import pytest

from children import python
from fasttag_kernels import _math
from fasttag_kernels._numba import kernel


@kernel
def _log(first, last, x, out):
    for i in range(first, last):
        out[i] = _math.log(x[i])


@kernel
def _atan2(first, last, y, x, out):
    for i in range(first, last):
        out[i] = _math.atan2(y[i], x[i])


def errors(loop, exact, *arrays):
    """Kernel minus 40-digit result, rounded to float64, and that result."""
    out = np.full(len(arrays[0]), np.nan)
    loop(0, len(out), *arrays, out)
    with mpmath.workdps(40):
        truth = [exact(*map(mpmath.mpf, map(float, row))) for row in zip(*arrays)]
        return np.array([float(mpmath.mpf(found) - t) for found, t in zip(out, truth)]), np.array(truth, float)


TINY, HUGE = np.finfo(float).tiny, np.finfo(float).max
RNG = np.random.default_rng(3)
LOGS = {
    "every exponent": np.exp(RNG.uniform(np.log(TINY), np.log(HUGE), 10_000)),
    "around one": 1 + RNG.uniform(-0.5, 1, 10_000),
    "next to one": 1 + RNG.uniform(-1, 1, 3000) * 10.0 ** RNG.uniform(-16, -2, 3000),
    "reduction": np.sqrt([0.5, 2.0, 8.0, 2.0**-1001])[:, None].repeat(100, 1).ravel()
    * (1 + RNG.normal(size=400) * 1e-15),
    "ends": np.array([TINY, np.nextafter(TINY, 1), HUGE, 0.5, 2.0, np.e, np.nextafter(1, 0), np.nextafter(1, 2)]),
}


@pytest.mark.parametrize("region", LOGS)
def test_log_to_one_ulp(region):
    error, truth = errors(_log, mpmath.log, LOGS[region])
    assert (np.abs(error) <= np.spacing(np.abs(truth))).all(), np.max(np.abs(error) / np.spacing(np.abs(truth)))


def test_log_of_one():
    assert _math.log(1.0) == 0.0


ANGLES = RNG.uniform(-np.pi, np.pi, 10_000)
OCTANTS = [np.sqrt(2) - 1, np.sqrt(2) + 1, 1, -1]
ATANS = {
    "all around": (np.sin(ANGLES), np.cos(ANGLES)),
    "every exponent": tuple(RNG.choice([-1, 1], (2, 5000)) * 10.0 ** RNG.uniform(-290, 290, (2, 5000))),
    "close to the axes": (RNG.normal(size=3000), RNG.normal(size=3000) * 10.0 ** RNG.uniform(-20, 20, 3000)),
    "octants": (np.repeat([1, -1], 500), np.tile(OCTANTS, 250) + RNG.normal(size=1000) * 1e-15),
}


@pytest.mark.parametrize("region", ATANS)
def test_atan2_to_two_ulp_of_pi(region):
    y, x = ATANS[region]
    error, _ = errors(_atan2, mpmath.atan2, np.asarray(y, float), np.asarray(x, float))
    assert np.abs(error).max() <= 2 * np.spacing(np.pi), np.abs(error).max() / np.spacing(np.pi)


@pytest.mark.parametrize(
    ("y", "x", "angle"),
    [
        (0.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (0.0, -1.0, np.pi),
        (-0.0, -1.0, -np.pi),
        (1.0, 0.0, np.pi / 2),
        (-1.0, 0.0, -np.pi / 2),
        (1.0, 1.0, np.pi / 4),
        (0.0, -0.0, 0.0),
    ],
)
def test_atan2_on_the_axes(y, x, angle):
    found = _math.atan2(y, x)
    assert found == angle and np.signbit(found) == np.signbit(angle)


ASSEMBLY = """
import numpy as np
from numba import typeof, types
from fasttag_kernels._numba import inputs
from fasttag_kernels.kinematics import numba_cpu
p4 = np.ones((4, 1), np.float32)
signature = (types.int64, types.int64, *map(typeof, inputs(*p4)), typeof(np.ones((5, 1), np.float32)))
numba_cpu._kinematics.compile(signature)
print(*numba_cpu._kinematics.inspect_asm().values())
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks at x86-64 instructions")
def test_kinematics_is_packed(tmp_path):
    """For a CPU with AVX2: logarithms, atan2, roots and divisions in ymm registers, and no call to a scalar one."""
    assembly = python(ASSEMBLY, NUMBA_CPU_NAME="znver3", NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=tmp_path)
    packed = re.findall(r"^\s+(v\w+pd)\s.*%ymm", assembly, re.MULTILINE)
    assert {"vdivpd", "vsqrtpd", "vmulpd"} <= set(packed)
    assert sum(name.startswith("vfmadd") for name in packed) >= 24, "two logarithms of 7 terms and an atan2 of 11"
    scalar = re.findall(r"^\s+(vdivsd|vsqrtsd|vfmadd\w+sd)\s", assembly, re.MULTILINE)
    assert not scalar, f"{len(scalar)} scalar instructions"
    symbols = set(re.findall(r"(?:call\w*|jmp|movabsq)\s+\$?(\w+)", assembly))
    assert "NRT_decref" in symbols
    assert not symbols & {"log", "log2", "log1p", "atan", "atan2", "asinh", "sqrt", "hypot"}
