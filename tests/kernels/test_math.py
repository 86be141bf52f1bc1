"""The vectorised log, exp, atan2 and GELU: their error bounds, and that LLVM does pack the loops that use them."""

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
def _exp(first, last, x, out):
    for i in range(first, last):
        out[i] = _math.exp(x[i])


@kernel
def _gelu(first, last, x, out):
    for i in range(first, last):
        out[i] = _math.gelu(x[i])


@kernel
def _gelu_of_both(first, last, x, out):
    for i in range(first, last):
        out[i], _ = _math.gelu_and_slope(x[i])


@kernel
def _slope(first, last, x, out):
    for i in range(first, last):
        _, out[i] = _math.gelu_and_slope(x[i])


@kernel
def _atan2(first, last, y, x, out):
    for i in range(first, last):
        out[i] = _math.atan2(y[i], x[i])


def evaluated(loop, *arrays):
    out = np.full_like(arrays[0], np.nan)
    loop(0, len(out), *arrays, out)
    return out


def errors(loop, exact, *arrays):
    """Kernel minus 40-digit result, rounded to float64, and that result."""
    out = evaluated(loop, *arrays)
    with mpmath.workdps(40):
        truth = [exact(*map(mpmath.mpf, map(float, row))) for row in zip(*arrays)]
        return np.array([float(mpmath.mpf(float(found)) - t) for found, t in zip(out, truth)]), np.array(truth, float)


def ulps(error, truth, dtype=np.float64):
    return np.max(np.abs(error) / np.spacing(np.abs(truth).astype(dtype)).astype(np.float64))


def gelu(x):
    return x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2


def slope(x):
    return mpmath.erfc(-x / mpmath.sqrt(2)) / 2 + x * mpmath.npdf(x)


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
    assert ulps(*errors(_log, mpmath.log, LOGS[region])) <= 1


EVERY = np.arange(1 << 23, dtype=np.int32)  # all fractions of a float32


@pytest.mark.parametrize("exponent", [-126, -40, -1, 0, 1, 30, 127])
def test_log_of_every_float32_of_a_binade(exponent):
    x = (EVERY + ((exponent + 127) << 23)).view(np.float32)
    truth = np.log(x.astype(np.float64))
    assert ulps(evaluated(_log, x) - truth, truth, np.float32) <= 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_of_one(dtype):
    assert evaluated(_log, np.ones(1, dtype)).tolist() == [0.0]


def test_exp_in_float64():
    x = np.concatenate([RNG.uniform(-708, 709.4, 10_000), RNG.uniform(-1, 1, 10_000), [0.0, -708.0, 709.4]])
    assert ulps(*errors(_exp, mpmath.exp, x)) <= 1.2
    assert evaluated(_exp, np.array([0.0, -1e9, 1e9])).tolist() == [1.0, *evaluated(_exp, np.array([-708.0, 709.4]))]


@pytest.mark.parametrize("sign", [1, -1])
def test_exp_in_float32(sign):
    """Every eleventh float32 up to the ends of the range."""
    bits = np.arange(np.float32(1e-9).view(np.int32), np.float32(87.3).view(np.int32), 11, dtype=np.int32)
    x = np.float32(sign) * bits.view(np.float32)
    truth = np.exp(x.astype(np.float64))
    assert ulps(evaluated(_exp, x) - truth, truth, np.float32) <= 1.1
    ends = np.array([-1e9, -87.3, 0, 88.37, 1e9], np.float32)
    found = evaluated(_exp, ends)
    assert found[2] == 1 and found[0] == found[1] > 0 and found[3] == found[4] < np.inf


def test_gelu_in_float32():
    x = np.concatenate([RNG.uniform(-13, 13, 20_000), RNG.normal(size=20_000), 10.0 ** RNG.uniform(-30, 0, 1000)])
    x = np.concatenate([x, -x]).astype(np.float32)
    error, truth = errors(_gelu, gelu, x)
    assert ulps(error, truth, np.float32) <= 6
    assert evaluated(_gelu, np.array([0, 20, 1e30, -20, -1e30], np.float32)).tolist()[:3] == [0, 20, np.float32(1e30)]
    assert np.abs(evaluated(_gelu, np.array([-13.5, -20, -37], np.float32))).max() < 1e-37


def test_gelu_in_float64():
    """x / sqrt 2 is off by an ulp, constant and product half each, and erfc(t) magnifies it 2 t^2 times."""
    x = np.concatenate([RNG.uniform(-36, 36, 5000), RNG.normal(size=5000)])
    error, truth = errors(_gelu, gelu, x)
    assert ulps(error / (4 + 2 * x * x), truth) <= 1


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2e-7), ("float64", 1e-15)])
def test_slope_of_gelu(dtype, bound):
    x = np.concatenate([RNG.uniform(-36, 36, 4000), RNG.normal(size=8000)]).astype(dtype)
    assert np.abs(errors(_slope, slope, x)[0]).max() <= bound
    assert evaluated(_slope, np.array([0, 40, -40, 1e30, -1e30], dtype)).tolist() == pytest.approx(
        [0.5, 1, 0, 1, 0], abs=1e-7
    )
    of_both, alone = evaluated(_gelu_of_both, x), evaluated(_gelu, x)
    assert np.array_equal(of_both, alone) if dtype == "float32" else np.abs(of_both / alone - 1).max() <= 3e-16


ANGLES = RNG.uniform(-np.pi, np.pi, 10_000)
OCTANTS = [np.sqrt(2) - 1, np.sqrt(2) + 1, 1, -1]
ATANS = {
    "all around": (np.sin(ANGLES), np.cos(ANGLES)),
    "every exponent": tuple(RNG.choice([-1, 1], (2, 5000)) * 10.0 ** RNG.uniform(-290, 290, (2, 5000))),
    "close to the axes": (RNG.normal(size=3000), RNG.normal(size=3000) * 10.0 ** RNG.uniform(-20, 20, 3000)),
    "octants": (np.repeat([1, -1], 500), np.tile(OCTANTS, 250) + RNG.normal(size=1000) * 1e-15),
}


@pytest.mark.parametrize("region", ATANS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_atan2_to_two_ulp_of_pi(region, dtype):
    power = 0.1 if dtype == "float32" and region == "every exponent" else 1  # to the exponents that float32 has
    y, x = (np.sign(v) * np.abs(np.asarray(v, float)) ** power for v in ATANS[region])
    error, _ = errors(_atan2, mpmath.atan2, y.astype(dtype), x.astype(dtype))
    assert np.abs(error).max() <= 2 * np.spacing(np.dtype(dtype).type(np.pi))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
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
def test_atan2_on_the_axes(y, x, angle, dtype):
    (found,) = evaluated(_atan2, np.array([y], dtype), np.array([x], dtype))
    assert found == np.dtype(dtype).type(angle) and np.signbit(found) == np.signbit(angle)


FUNCTIONS = """
import numba, numpy as np
from numba import typeof, types
from fasttag_kernels import _math, _numba
function = _math.NAME
@numba.njit(nogil=True, error_model="numpy", fastmath=_numba.FASTMATH)
def loop(first, last, x, out):
    for i in range(first, last):
        out[i] = RESULT
x = typeof(np.ones(1, np.float32))
loop.compile((types.int64, types.int64, x, x))
print(*loop.inspect_asm().values())
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks at x86-64 instructions")
@pytest.mark.parametrize(
    ("name", "terms"), [("log", 8), ("exp", 4), ("gelu", 12), ("gelu_and_slope", 14), ("atan2", 5)]
)
def test_float32_is_packed(name, terms, tmp_path):
    """For a CPU with AVX2: eight at a time, every multiplication of the polynomial fused, no call."""
    result = {"atan2": "function(x[i], x[i])", "gelu_and_slope": "sum(function(x[i]))"}.get(name, "function(x[i])")
    code = FUNCTIONS.replace("NAME", name).replace("RESULT", result)
    assembly = python(code, NUMBA_CPU_NAME="znver3", NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=tmp_path)
    assert len(re.findall(r"^\s+vfn?m(?:add|sub)\w+ps\s.*%ymm", assembly, re.MULTILINE)) >= terms
    assert not re.search(r"(?:call\w*|jmp|movabsq)\s+\$?(?:log|exp|erf|fma|atan2?)\w*", assembly)


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
