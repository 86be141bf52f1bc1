"""log, exp, atan2 and erf-GELU that LLVM turns into packed instructions, for float32 and float64.

The wheels of llvmlite have no vector maths library, so `math.log` inside a loop stays a scalar call (15-20 ns). These
are branch-free: range reduction and one polynomial, fitted in 50-digit arithmetic. Which precision runs is decided by
the dtype of the arguments when Numba compiles a caller. Bounds, asserted in tests/kernels/test_math.py:

| | float32 | float64 |
|---|---|---|
| log | 1 ulp | 1 ulp |
| exp | 1.1 ulp | 1.2 ulp |
| atan2 | 2 ulp of pi | 2 ulp of pi |
| gelu | 6 ulp (torch: 1000 ulp at -3, where 1 + erf cancels) | 4 + 2 x^2 ulp, and a scalar call |
| its derivative | 2e-7 | 1e-15 |
"""

import math

from llvmlite import ir
from numba import float32, float64, int32, types, uint64
from numba.extending import intrinsic, overload

from ._numba import helper

LN2_HI, LN2_LO = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # 2^k * LN2_HI is exact for |k| < 2^11
LN2_HI32, LN2_LO32 = float32(0.693359375), float32(-2.12194440e-4)  # the same for |k| < 2^14
LOWEST32, LOWEST = float32(-87.3), -708.0  # what exp is clamped to from below: e^x is normal
PI, HALF_PI, QUARTER_PI, TAN_PI_8 = 3.141592653589793, 1.5707963267948966, 0.7853981633974483, 0.41421356237309503
SIGN, EXPONENT = uint64(0x8000000000000000), uint64(0xFFF0000000000000)
ONE, ONE_OVER_SQRT2 = uint64(0x3FF0000000000000), uint64(0x3FE6A09E667F3BCD)
TWO52 = uint64(0x4330000000000000)  # as a float: 2^52; or-ing in a small integer adds it
ROUND, ROUND32 = 6755399441055744.0, float32(12582912.0)  # 1.5 * 2^52 and 1.5 * 2^23: adding one leaves an integer


def _bitcast(source, target, llvm):
    @intrinsic
    def cast(context, x):
        return target(source), lambda c, b, s, a: b.bitcast(a[0], llvm)

    return cast


_bits, _float = _bitcast(float64, uint64, ir.IntType(64)), _bitcast(uint64, float64, ir.DoubleType())
_bits32, _float32 = _bitcast(float32, int32, ir.IntType(32)), _bitcast(int32, float32, ir.FloatType())


@intrinsic
def _fma32(context, x, y, z):
    return float32(float32, float32, float32), lambda c, b, s, a: b.fma(*a)


@intrinsic
def fma(context, x, y, z):
    """x y + z of float64, rounded once."""
    return float64(float64, float64, float64), lambda c, b, s, a: b.fma(*a)


def _by_dtype(single, double):
    """A function for kernels that is `single` for float32 and `double` for float64 arguments."""

    def generic(*arguments):
        raise NotImplementedError("for compiled callers only")

    @overload(generic, strict=False, jit_options={"nogil": True, "error_model": "numpy"})
    def choose(*arguments):
        chosen = single if all(a == types.float32 for a in arguments) else double
        return lambda *arguments: chosen(*arguments)

    return generic


@helper
def _log64(x):
    shifted = uint64(_bits(x) + uint64(ONE - ONE_OVER_SQRT2))
    k = _float(uint64(TWO52 | uint64(shifted >> uint64(52)))) - 4503599627371519.0  # 2^52 + 1023
    f = _float(uint64(_bits(x) - uint64(uint64(shifted & EXPONENT) - ONE))) - 1.0  # mantissa in [sqrt(1/2), sqrt(2))
    s = f / (2.0 + f)
    z = s * s
    p = 0.14616449685088906
    p = p * z + 0.1533172160055169
    p = p * z + 0.1818288912526188
    p = p * z + 0.22222211134795078
    p = p * z + 0.28571428625975487
    p = p * z + 0.39999999999899505
    p = p * z + 0.666666666666667
    half = 0.5 * f * f
    return k * LN2_HI - ((half - (s * (half + p * z) + k * LN2_LO)) - f)


@helper
def _log32(x):
    shifted = int32(_bits32(x) - int32(0x3F3504F3))  # the bits of sqrt(1/2)
    k = int32(shifted >> int32(23))
    f = _float32(int32(_bits32(x) - int32(k << int32(23)))) - float32(1.0)
    k = float32(k)
    p = float32(-0.07634496688842773)
    p = p * f + float32(0.1276157647371292)
    p = p * f + float32(-0.13160182535648346)
    p = p * f + float32(0.14201757311820984)
    p = p * f + float32(-0.16623356938362122)
    p = p * f + float32(0.20001226663589478)
    p = p * f + float32(-0.2500081956386566)
    p = p * f + float32(0.3333333134651184)
    z = f * f
    return (f + ((k * LN2_LO32 + f * z * p) - float32(0.5) * z)) + k * LN2_HI32


@helper
def _exp64(x):
    x = min(max(x, LOWEST), 709.4)
    shifted = x * 1.4426950408889634 + ROUND
    k = shifted - ROUND
    r = (x - k * LN2_HI) - k * LN2_LO
    p = 2.5100375832561234e-08
    p = p * r + 2.7620075879983367e-07
    p = p * r + 2.7557268480310024e-06
    p = p * r + 2.4801521322368692e-05
    p = p * r + 0.00019841269863040545
    p = p * r + 0.0013888888917196719
    p = p * r + 0.008333333333330065
    p = p * r + 0.041666666666624164
    p = p * r + 0.16666666666666669
    p = p * r + 0.5
    p = 1.0 + (r + r * r * p)
    return p * _float(uint64(uint64(_bits(shifted) + uint64(1023)) << uint64(52)))


@helper
def _exp32(x):
    return _exp32_sum(min(max(x, LOWEST32), float32(88.37)), float32(0.0))


@helper
def _exp32_sum(x, low):
    """exp(x + low) for |low| of a rounding of x, which exp would magnify |x| times."""
    shifted = x * float32(1.44269504) + ROUND32
    k = shifted - ROUND32
    r = (x - k * LN2_HI32) - (k * LN2_LO32 - low)
    p = float32(0.0013950478751212358)
    p = p * r + float32(0.008368882350623608)
    p = p * r + float32(0.04166620597243309)
    p = p * r + float32(0.1666651964187622)
    p = p * r + float32(0.5)
    p = float32(1.0) + (r + r * r * p)
    return p * _float32(int32(int32(_bits32(shifted) + int32(127)) << int32(23)))


@helper
def _atan2_64(y, x):
    ax = abs(x)
    ay = abs(y)
    low = min(ax, ay)
    high = max(ax, ay)
    steep = low > high * TAN_PI_8
    numerator = low - high if steep else low
    denominator = low + high if steep else high
    r = numerator / (denominator if denominator > 0.0 else 1.0)
    z = r * r
    p = -0.01917687711896929
    p = p * z + 0.03923165829550329
    p = p * z - 0.050854497379370145
    p = p * z + 0.05858148912801507
    p = p * z - 0.06664511447381855
    p = p * z + 0.07692183190826078
    p = p * z - 0.09090904578123901
    p = p * z + 0.11111111015256361
    p = p * z - 0.14285714284666542
    p = p * z + 0.1999999999999552
    p = p * z - 0.3333333333333333
    angle = r + r * (z * p)
    angle = QUARTER_PI + angle if steep else angle
    angle = HALF_PI - angle if ay > ax else angle
    angle = PI - angle if x < 0.0 else angle
    return _float(uint64(_bits(float64(angle)) | uint64(_bits(y) & SIGN)))


@helper
def _atan2_32(y, x):
    ax = abs(x)
    ay = abs(y)
    low = min(ax, ay)
    high = max(ax, ay)
    steep = low > high * float32(TAN_PI_8)
    numerator = low - high if steep else low
    denominator = low + high if steep else high
    r = numerator / (denominator if denominator > float32(0.0) else float32(1.0))
    z = r * r
    p = float32(-0.06083453446626663)
    p = p * z + float32(0.10596001893281937)
    p = p * z + float32(-0.14243848621845245)
    p = p * z + float32(0.19998489320278168)
    p = p * z + float32(-0.33333316445350647)
    angle = r + r * (z * p)
    angle = float32(QUARTER_PI) + angle if steep else angle
    angle = float32(HALF_PI) - angle if ay > ax else angle
    angle = float32(PI) - angle if x < float32(0.0) else angle
    return _float32(int32(_bits32(angle) | int32(_bits32(y) & int32(-0x80000000))))


@helper
def _gelu64(x):
    return 0.5 * x * math.erfc(-0.7071067811865476 * x)


@helper
def _gelu_and_slope64(x):
    below = 0.5 * math.erfc(-0.7071067811865476 * x)
    return x * below, below + x * (0.3989422804014327 * _exp64(-0.5 * x * x))


@helper
def _tail32(x):
    """Two factors of the probability beyond |x| of a normal distribution; the second is exp(-x^2 / 2)."""
    t = min(abs(x), float32(13.2))
    k = float32(1.0) / (float32(1.0) + float32(0.35) * t)
    u = float32(2.0) * k - float32(1.0)
    p = float32(-0.0001138732404797338)
    p = p * u + float32(0.0002140104625141248)
    p = p * u + float32(0.0006900722510181367)
    p = p * u + float32(-0.0017543561989441514)
    p = p * u + float32(-0.005108750890940428)
    p = p * u + float32(0.010233853943645954)
    p = p * u + float32(0.0710989460349083)
    p = p * u + float32(0.17149581015110016)
    p = p * u + float32(0.2532442808151245)
    square = t * t
    lost = _fma32(t, t, -square)
    return p * k, _exp32_sum(float32(-0.5) * square, float32(-0.5) * lost)


@helper
def _gelu32(x):
    p, e = _tail32(x)
    tail = (x * p) * e
    return tail if x < float32(0.0) else x - tail


@helper
def _gelu_and_slope32(x):
    p, e = _tail32(x)
    tail, beyond = (x * p) * e, p * e
    below = beyond if x < float32(0.0) else float32(1.0) - beyond
    return tail if x < float32(0.0) else x - tail, below + (x * float32(0.3989422804014327)) * e


log = _by_dtype(_log32, _log64)
log.__doc__ = "ln x of a positive, normal x; other x give a meaningless finite number."
exp = _by_dtype(_exp32, _exp64)
exp.__doc__ = "e^x; x is clamped where the result would leave the normal numbers: to -87.3..88.37, or -708..709.4."
atan2 = _by_dtype(_atan2_32, _atan2_64)
atan2.__doc__ = "The angle of (x, y) in [-pi, pi]; 0 for x = y = 0. Finite arguments; x = -0.0 counts as 0."
gelu = _by_dtype(_gelu32, _gelu64)
gelu_and_slope = _by_dtype(_gelu_and_slope32, _gelu_and_slope64)
gelu_and_slope.__doc__ = "gelu(x) and its derivative, Phi(x) + x phi(x) of the normal distribution, of finite x."
gelu.__doc__ = "x (1 + erf(x / sqrt 2)) / 2 of finite x; below -14 it underflows (float32)."
