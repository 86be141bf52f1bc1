"""float64 log and atan2 that LLVM turns into packed instructions.

The wheels of llvmlite have no vector maths library, so `math.log` inside a loop stays a scalar call (15-20 ns).
Both functions here are branch-free: range reduction, one division, one polynomial (interpolated at Chebyshev nodes in
50-digit arithmetic; truncation below 3e-18). Bounds asserted in tests/kernels/test_math.py.
"""

from llvmlite import ir
from numba import float64, types, uint64
from numba.extending import intrinsic

from ._numba import helper

LN2_HI, LN2_LO = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # 2^k * LN2_HI is exact for |k| < 2^11
PI, HALF_PI, QUARTER_PI, TAN_PI_8 = 3.141592653589793, 1.5707963267948966, 0.7853981633974483, 0.41421356237309503
SIGN, EXPONENT = uint64(0x8000000000000000), uint64(0xFFF0000000000000)
ONE, ONE_OVER_SQRT2 = uint64(0x3FF0000000000000), uint64(0x3FE6A09E667F3BCD)
TWO52 = uint64(0x4330000000000000)  # as a float: 2^52; or-ing in a small integer adds it


@intrinsic
def _bits(context, x):
    return types.uint64(types.float64), lambda c, b, s, a: b.bitcast(a[0], ir.IntType(64))


@intrinsic
def _float(context, x):
    return types.float64(types.uint64), lambda c, b, s, a: b.bitcast(a[0], ir.DoubleType())


@helper
def log(x):
    """ln x of a positive, normal x to 1 ulp; other x give a meaningless finite number."""
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
def atan2(y, x):
    """The angle of (x, y) in [-pi, pi] to 2 ulp of pi; 0 for x = y = 0. Finite arguments; x = -0.0 counts as 0."""
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
