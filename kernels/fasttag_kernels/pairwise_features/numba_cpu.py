"""Numba backend: tiles of 16x16 pairs in one scratch buffer, the lower ones computed, both halves written.

Every loop runs over operands at constant offsets of that buffer, so that LLVM proves them apart and packs them; they
are short and many, since a loop with many operands is not packed. `wide` is the buffer as float64, `tile` the same
memory in the dtype of the output, `lines` that in rows of 16. Differences of constituents are taken in float64,
logarithms in the dtype.
"""

import math

import numpy as np

from .. import _threads
from .._math import atan2, fma, log
from .._numba import exact, helper, inputs, kernel
from .._simd import LANES as T
from .._simd import load, load_first, store, store_first, transpose
from . import FEATURES

LN_KT, LN_Z, LN_DELTA, LN_M2, DOT, M2_DIFFERENCE, PSI_DOT, PSI_M2_DIFFERENCE = range(len(FEATURES))
EPS, LN_EPS = 1e-8, math.log(1e-8)
E_MINUS_PZ = 1e-20
SMALLEST = 1e-37  # stays a normal float32, as log needs; its root times any pt is below EPS

# of each constituent, in float64 and in the dtype
Y, PHI, NX, NY, NZ, P, E, D, M2 = (T * q for q in range(9))
LN_PT, PT, PX, PY, PZ, ENERGY = (T * q for q in range(6))
WIDE, NARROW = 9 * T, 6 * T

# the buffer, in elements of `wide`: constituents of a tile's rows and columns, and one block of four-vectors
ROWS, COLUMNS, P4 = 0, 160, 320
# and, in elements of `tile`, beyond them: the same in the dtype, then tiles
LOW_ROWS, LOW_COLUMNS = 1024, 1024 + NARROW
DELTA2, LN_ANGLE, LN_LOW, RATIO, MINKOWSKI, OUT, MIRROR = (1280 + T * T * k for k in range(7))
WEIGHTS = MIRROR + T * T
WHOLE = 1 << 18  # jets with no more output than this are gathered first: memory takes one stream, not one per row
DOTS, SUMS, DIFFERENCES = (WEIGHTS + T * T * k for k in range(len(FEATURES), len(FEATURES) + 3))  # elements of `wide`
SIZE = DIFFERENCES + T * T
# in elements of `wide`, sums of the backward pass for the constituents of a tile's columns
BY_Y, BY_PHI, BY_PT, BY_SELF, BY_PX, BY_PY, BY_PZ, BY_E = (P4 + T * q for q in range(4, 12))


def run(p4, offsets, pairs, features, triangle, m2, out, *, threads):
    codes, starts, full, reference = _settings(offsets, features, triangle, m2)
    _threads.over(
        len(offsets) - 1, threads, _features, *inputs(*p4, offsets, starts, codes), full, reference, out.reshape(-1)
    )


def backward(gradient, p4, offsets, pairs, features, triangle, m2, grad_p4, *, threads):
    codes, starts, full, reference = _settings(offsets, features, triangle, m2)
    grad_p4[:, : offsets[0]] = 0
    grad_p4[:, offsets[-1] :] = 0
    arguments = inputs(gradient.reshape(-1), *p4, offsets, starts, codes)
    _threads.over(len(offsets) - 1, threads, _gradient, *arguments, full, reference, grad_p4)


def _settings(offsets, features, triangle, m2):
    counts, full = np.diff(offsets), triangle == "full"
    starts = np.zeros(len(offsets), np.int64)
    np.cumsum(counts * counts if full else counts * (counts + 1) // 2, out=starts[1:])
    return np.array([FEATURES.index(name) for name in features]), starts, full, m2 == "reference"


@exact
def _mass2(x, y, z, e):
    """E^2 - p^2 with twice the digits of a float64 between."""
    xx, yy, zz, ee = x * x, y * y, z * z, e * e
    low = (fma(e, e, -ee) - fma(z, z, -zz)) - (fma(x, x, -xx) + fma(y, y, -yy))
    for_z = ee - zz
    back = ee - for_z
    low += (ee - (for_z + back)) - (zz - back)
    for_y = for_z - yy
    back = for_z - for_y
    low += (for_z - (for_y + back)) - (yy - back)
    for_x = for_y - xx
    back = for_y - for_x
    low += (for_y - (for_x + back)) - (xx - back)
    return for_x + low


@helper
def _directions(wide):
    for c in range(T):
        x, y, z, e = wide[P4 + c], wide[P4 + T + c], wide[P4 + 2 * T + c], wide[P4 + 3 * T + c]
        p = math.sqrt(x * x + y * y + z * z)
        per_p = 1.0 / (p if p > 0.0 else 1.0)
        wide[ROWS + NX + c] = x * per_p
        wide[ROWS + NY + c] = y * per_p
        wide[ROWS + NZ + c] = z * per_p
        wide[ROWS + P + c] = p
        wide[ROWS + E + c] = e


@helper
def _masses(wide):
    for c in range(T):
        e = wide[P4 + 3 * T + c]
        m2 = _mass2(wide[P4 + c], wide[P4 + T + c], wide[P4 + 2 * T + c], e)
        wide[ROWS + M2 + c] = m2
        wide[ROWS + D + c] = m2 / (e + wide[ROWS + P + c]) if e > 0.0 else e - wide[ROWS + P + c]


@helper
def _angles(wide):
    for c in range(T):
        wide[ROWS + PHI + c] = atan2(wide[P4 + T + c], wide[P4 + c])
        z = wide[P4 + 2 * T + c]
        minus = max(wide[P4 + 3 * T + c] - z, E_MINUS_PZ)
        wide[ROWS + Y + c] = 0.5 * log(max(minus + 2.0 * z, E_MINUS_PZ) / minus)


@helper
def _transverse(wide):
    for c in range(T):
        pt = math.sqrt(wide[P4 + c] * wide[P4 + c] + wide[P4 + T + c] * wide[P4 + T + c])
        wide[COLUMNS + LN_PT + c] = log(max(pt, SMALLEST))
        wide[COLUMNS + PT + c] = pt


@helper
def _narrow(wide, tile):
    """What is used in the dtype; ln pt and pt are in the place of the columns, which are brought later."""
    for c in range(2 * T):
        tile[LOW_ROWS + LN_PT + c] = wide[COLUMNS + LN_PT + c]
    for c in range(4 * T):
        tile[LOW_ROWS + PX + c] = wide[P4 + c]


@helper
def _constituents(start, n, px, py, pz, e, angular, wide, tile, all_wide, all_narrow):
    """Fill the blocks of one jet; says whether all is finite. What lies beyond n is left over from before."""
    finite = True
    for b in range((n + T - 1) // T):
        first = np.uint64(start + b * T)
        size = np.uint64(min(T, n - b * T))
        for c in range(size):
            wide[P4 + c] = px[first + c]
        for c in range(size):
            wide[P4 + T + c] = py[first + c]
        for c in range(size):
            wide[P4 + 2 * T + c] = pz[first + c]
        for c in range(size):
            wide[P4 + 3 * T + c] = e[first + c]
        total = 0.0
        for c in range(size):
            total += abs(wide[P4 + c]) + abs(wide[P4 + T + c]) + abs(wide[P4 + 2 * T + c]) + abs(wide[P4 + 3 * T + c])
        finite = finite and total < np.inf
        _directions(wide)
        _masses(wide)
        if angular:
            _transverse(wide)
            _angles(wide)
        _narrow(wide, tile)
        for c in range(WIDE):
            all_wide[b, c] = wide[ROWS + c]
        for c in range(NARROW):
            all_narrow[b, c] = tile[LOW_ROWS + c]
    return finite


@helper
def _bring(all_wide, all_narrow, b, narrow, wide, tile, at, low_at):
    """Block b of the jet to its place in the buffer."""
    for c in range(WIDE):
        wide[at + c] = all_wide[b, c]
    if narrow:
        for c in range(NARROW):
            tile[low_at + c] = all_narrow[b, c]


@helper
def _delta2(wide, tile, rows):
    for r in range(rows):
        for c in range(T):
            dy = wide[ROWS + Y + r] - wide[COLUMNS + Y + c]
            dphi = math.pi - abs(math.pi - abs(wide[ROWS + PHI + r] - wide[COLUMNS + PHI + c]))
            tile[DELTA2 + r * T + c] = dy * dy + dphi * dphi


@helper
def _ln_angle(tile, number, rows):
    half, smallest = number(0.5), number(SMALLEST)
    for k in range(rows * T):
        tile[LN_ANGLE + k] = half * log(max(tile[DELTA2 + k], smallest))


@helper
def _shares(tile, number, rows):
    eps = number(EPS)
    for r in range(rows):
        for c in range(T):
            a, b = tile[LOW_ROWS + PT + r], tile[LOW_COLUMNS + PT + c]
            tile[RATIO + r * T + c] = max(min(a, b) / max(a + b, eps), eps)
            tile[LN_LOW + r * T + c] = min(tile[LOW_ROWS + LN_PT + r], tile[LOW_COLUMNS + LN_PT + c])


@helper
def _minkowski(wide, target, at, of_masses, of_dot, rows):
    """of_masses (m_i^2 + m_j^2) + of_dot p_i . p_j, to target[at:]."""
    for r in range(rows):
        for c in range(T):
            x = wide[ROWS + NX + r] - wide[COLUMNS + NX + c]
            y = wide[ROWS + NY + r] - wide[COLUMNS + NY + c]
            z = wide[ROWS + NZ + r] - wide[COLUMNS + NZ + c]
            p, q = wide[ROWS + P + r], wide[COLUMNS + P + c]
            dot = 0.5 * p * q * (x * x + y * y + z * z)
            dot += p * wide[COLUMNS + D + c] + wide[ROWS + D + r] * wide[COLUMNS + E + c]
            target[at + r * T + c] = of_masses * (wide[ROWS + M2 + r] + wide[COLUMNS + M2 + c]) + of_dot * dot


@exact
def _weavers_m2(tile, rows):
    for r in range(rows):
        for c in range(T):
            e = tile[LOW_ROWS + ENERGY + r] + tile[LOW_COLUMNS + ENERGY + c]
            x = tile[LOW_ROWS + PX + r] + tile[LOW_COLUMNS + PX + c]
            y = tile[LOW_ROWS + PY + r] + tile[LOW_COLUMNS + PY + c]
            z = tile[LOW_ROWS + PZ + r] + tile[LOW_COLUMNS + PZ + c]
            tile[MINKOWSKI + r * T + c] = e * e - ((x * x + y * y) + z * z)


@helper
def _logarithm(tile, source, number, rows):
    eps = number(EPS)
    for k in range(rows * T):
        tile[OUT + k] = log(max(tile[source + k], eps))


@helper
def _psi(tile, number, rows):
    one = number(1.0)
    for k in range(rows * T):
        x = tile[MINKOWSKI + k]
        size = abs(x)
        u = one + size
        value = log(u) + (size - (u - one)) / u
        tile[OUT + k] = value if x >= number(0.0) else -value


@helper
def _feature(code, reference, wide, tile, number, rows):
    """One feature of a tile, to OUT."""
    floor = number(LN_EPS)
    if code == LN_KT:
        for k in range(rows * T):
            tile[OUT + k] = max(tile[LN_LOW + k] + tile[LN_ANGLE + k], floor)
    elif code == LN_Z:
        _logarithm(tile, RATIO, number, rows)
    elif code == LN_DELTA:
        for k in range(rows * T):
            tile[OUT + k] = max(tile[LN_ANGLE + k], floor)
    elif code == LN_M2:
        if reference:
            _weavers_m2(tile, rows)
        else:
            _minkowski(wide, tile, MINKOWSKI, 1.0, 2.0, rows)
        _logarithm(tile, MINKOWSKI, number, rows)
    else:
        if code in (DOT, PSI_DOT):
            _minkowski(wide, tile, MINKOWSKI, 0.0, 1.0, rows)
        else:
            _minkowski(wide, tile, MINKOWSKI, 1.0, -2.0, rows)
        if code in (PSI_DOT, PSI_M2_DIFFERENCE):
            _psi(tile, number, rows)
        else:
            for k in range(rows * T):
                tile[OUT + k] = tile[MINKOWSKI + k]


@helper
def _place(i, n, full):
    """Where row i of a jet begins."""
    return i * n if full else i * (i + 1) // 2


@helper
def _copy(out, at, source, start, size):
    """In aligned vectors between head and tail: memory takes these at 1.7 times the rate of unaligned ones."""
    head = min(size, -(out.ctypes.data // out.itemsize + at) % T)
    store_first(out, at, load_first(source, start, head), head)
    for k in range(head, size, T):
        count = min(T, size - k)
        store_first(out, at + k, load_first(source, start + k, count), count)


@kernel
def _features(first, last, px, py, pz, e, offsets, starts, codes, full, reference, out):
    number = out.dtype.type
    wide = np.ones(SIZE)
    tile = wide.view(out.dtype)
    lines = tile.reshape(-1, T)
    block = np.empty(WHOLE, out.dtype)
    longest = 0
    for j in range(first, last):
        longest = max(longest, offsets[j + 1] - offsets[j])
    all_wide = np.empty(((longest + T - 1) // T, WIDE))
    all_narrow = np.empty(((longest + T - 1) // T, NARROW), out.dtype)
    pairs = starts[len(starts) - 1]
    angular = apart = shared = False
    for code in codes:
        angular = angular or code <= LN_DELTA
        apart = apart or code in (LN_KT, LN_DELTA)
        shared = shared or code in (LN_KT, LN_Z)
    narrow = shared or reference
    for jet in range(first, last):
        start = offsets[jet]
        n = offsets[jet + 1] - start
        finite = _constituents(start, n, px, py, pz, e, angular, wide, tile, all_wide, all_narrow)
        size = starts[jet + 1] - starts[jet]
        whole = len(codes) * size <= WHOLE
        target, at, stride = (block, 0, size) if whole else (out, starts[jet], pairs)
        for i in range(0, n, T):
            rows = min(T, n - i)
            _bring(all_wide, all_narrow, i // T, narrow, wide, tile, ROWS, LOW_ROWS)
            for j in range(0, i + 1, T):
                columns = min(T, n - j)
                _bring(all_wide, all_narrow, j // T, narrow, wide, tile, COLUMNS, LOW_COLUMNS)
                if apart:
                    _delta2(wide, tile, rows)
                    _ln_angle(tile, number, rows)
                if shared:
                    _shares(tile, number, rows)
                for f in range(len(codes)):
                    _feature(codes[f], reference, wide, tile, number, rows)
                    base = f * stride + at
                    for r in range(rows):
                        count = columns if full else min(columns, i + r - j + 1)
                        store_first(target, base + _place(i + r, n, full) + j, load(lines, OUT // T + r, 0), count)
                    if full and j < i:
                        transpose(lines, OUT // T, 0, lines, MIRROR // T, 0)
                        for r in range(T):
                            line = load(lines, MIRROR // T + r, 0)
                            store_first(target, base + _place(j + r, n, full) + i, line, rows)
        if whole:
            for f in range(len(codes)):
                _copy(out, f * pairs + starts[jet], block, f * size, size)
        if not finite:
            _not_finite(start, n, px, py, pz, e, len(codes), pairs, starts[jet], full, out)


@helper
def _not_finite(start, n, px, py, pz, e, features, pairs, base, full, out):
    for i in range(n):
        k = start + i
        if not abs(px[k]) + abs(py[k]) + abs(pz[k]) + abs(e[k]) < np.inf:
            for f in range(features):
                for j in range(n):
                    high, low = max(i, j), min(i, j)
                    out[f * pairs + base + _place(high, n, full) + low] = np.nan
                    if full:
                        out[f * pairs + base + _place(low, n, full) + high] = np.nan


@helper
def _weight(tile, lines, at, gradient, base, i, j, n, full):
    """The gradient of the pairs of a tile, and of the same pairs the other way round, added to WEIGHTS + at."""
    for r in range(T):
        size = min(T, n - j) if full else min(T, i + r - j + 1, n - j)
        line = load_first(gradient, base + _place(i + r, n, full) + j, size if i + r < n else 0)
        store(lines, (WEIGHTS + at) // T + r, 0, line)
    for r in range(T):
        size = min(T, n - i) if full else min(T, j + r - i + 1, n - i)
        line = load_first(gradient, base + _place(j + r, n, full) + i, size if j + r < n else 0)
        store(lines, OUT // T + r, 0, line)
    transpose(lines, OUT // T, 0, lines, MIRROR // T, 0)
    for k in range(T * T):
        tile[WEIGHTS + at + k] += tile[MIRROR + k]


@helper
def _by_angles(wide, tile, rows):
    """Sums for the constituents of the columns over those of the rows: by y, phi and pt."""
    for r in range(rows):
        for c in range(T):
            k = r * T + c
            dy = wide[COLUMNS + Y + c] - wide[ROWS + Y + r]
            dphi = wide[COLUMNS + PHI + c] - wide[ROWS + PHI + r]
            dphi = dphi - 2 * math.pi if dphi > math.pi else dphi
            dphi = dphi + 2 * math.pi if dphi < -math.pi else dphi
            delta2 = dy * dy + dphi * dphi
            a, b = np.float64(tile[LOW_ROWS + PT + r]), np.float64(tile[LOW_COLUMNS + PT + c])
            low, total = min(a, b), a + b
            kt = tile[WEIGHTS + T * T * LN_KT + k] if low * low * delta2 > EPS * EPS else 0.0
            delta = tile[WEIGHTS + T * T * LN_DELTA + k] if delta2 > EPS * EPS else 0.0
            z = tile[WEIGHTS + T * T * LN_Z + k] if low > EPS * max(total, EPS) else 0.0
            share = 1.0 if b < a else (0.5 if b == a else 0.0)
            angle = (kt + delta) / (delta2 if delta2 > 0.0 else 1.0)
            wide[BY_Y + c] += angle * dy
            wide[BY_PHI + c] += angle * dphi
            wide[BY_PT + c] += (kt + z) * share / (low if low > 0.0 else 1.0) - (z / total if total > EPS else 0.0)


@helper
def _by_products(wide, tile, rows, reference):
    """The same by the four-vector: BY_SELF times its own plus BY_PX, ... ."""
    _minkowski(wide, wide, DOTS, 0.0, 1.0, rows)
    _minkowski(wide, wide, SUMS, 1.0, 2.0, rows)
    _minkowski(wide, wide, DIFFERENCES, 1.0, -2.0, rows)
    if reference:
        _weavers_m2(tile, rows)
        for k in range(rows * T):
            wide[SUMS + k] = tile[MINKOWSKI + k]
    for k in range(rows * T):
        m2 = wide[SUMS + k]
        by = tile[WEIGHTS + T * T * LN_M2 + k] / max(m2, EPS)
        wide[SUMS + k] = 2.0 * by if m2 > EPS else 0.0
    for k in range(rows * T):
        by_psi = tile[WEIGHTS + T * T * PSI_DOT + k] / (1.0 + abs(wide[DOTS + k]))
        wide[DOTS + k] = tile[WEIGHTS + T * T * DOT + k] + by_psi
    for k in range(rows * T):
        by_psi = tile[WEIGHTS + T * T * PSI_M2_DIFFERENCE + k] / (1.0 + abs(wide[DIFFERENCES + k]))
        wide[DIFFERENCES + k] = 2.0 * (tile[WEIGHTS + T * T * M2_DIFFERENCE + k] + by_psi)
    for k in range(rows * T):
        wide[DOTS + k] += wide[SUMS + k] - wide[DIFFERENCES + k]
    for r in range(rows):
        for c in range(T):
            wide[BY_SELF + c] += wide[SUMS + r * T + c] + wide[DIFFERENCES + r * T + c]
    for q in range(4):
        for r in range(rows):
            other = np.float64(tile[LOW_ROWS + PX + T * q + r])
            for c in range(T):
                wide[BY_PX + T * q + c] += wide[DOTS + r * T + c] * other


@kernel
def _gradient(first, last, gradient, px, py, pz, e, offsets, starts, codes, full, reference, grad_p4):
    wide = np.zeros(SIZE)  # with them the weights of features not asked for
    tile = wide.view(grad_p4.dtype)
    lines = tile.reshape(-1, T)
    longest = 0
    for j in range(first, last):
        longest = max(longest, offsets[j + 1] - offsets[j])
    all_wide = np.empty(((longest + T - 1) // T, WIDE))
    all_narrow = np.empty(((longest + T - 1) // T, NARROW), grad_p4.dtype)
    pairs = starts[len(starts) - 1]
    angular = products = False
    for code in codes:
        angular = angular or code <= LN_DELTA
        products = products or code >= LN_M2
    for jet in range(first, last):
        start = offsets[jet]
        n = offsets[jet + 1] - start
        if not _constituents(start, n, px, py, pz, e, angular, wide, tile, all_wide, all_narrow):
            grad_p4[:, start : start + n] = np.nan
            continue
        for j in range(0, n, T):
            for c in range(8 * T):
                wide[BY_Y + c] = 0.0
            for i in range(0, n, T):
                _bring(all_wide, all_narrow, i // T, True, wide, tile, ROWS, LOW_ROWS)
                _bring(all_wide, all_narrow, j // T, True, wide, tile, COLUMNS, LOW_COLUMNS)
                for f in range(len(codes)):
                    _weight(tile, lines, T * T * codes[f], gradient, f * pairs + starts[jet], i, j, n, full)
                rows = min(T, n - i)
                if angular:
                    _by_angles(wide, tile, rows)
                if products:
                    if i == j:
                        for r in range(T):
                            tile[WEIGHTS + T * T * LN_M2 + r * (T + 1)] = 0.0
                    _by_products(wide, tile, rows, reference)
            for c in range(min(T, n - j)):
                _chain(start + j + c, c, wide, px, py, pz, e, grad_p4)


@helper
def _chain(k, c, wide, px, py, pz, e, grad_p4):
    # not float(): Numba leaves a float32 as it is
    x, y, z, energy = np.float64(px[k]), np.float64(py[k]), np.float64(pz[k]), np.float64(e[k])
    pt2 = x * x + y * y
    by_pt = wide[BY_PT + c] / math.sqrt(pt2) if pt2 > 0.0 else 0.0
    by_phi = wide[BY_PHI + c] / pt2 if pt2 > 0.0 else 0.0
    minus = max(energy - z, E_MINUS_PZ)
    plus = minus + 2.0 * z
    free = 1.0 if energy - z > E_MINUS_PZ else 0.0
    by_minus = -free / minus
    by_plus = 1.0 / plus if plus > E_MINUS_PZ else 0.0
    by_y = 0.5 * wide[BY_Y + c]
    itself = wide[BY_SELF + c]
    grad_p4[0, k] = x * by_pt - y * by_phi - (wide[BY_PX + c] + itself * x)
    grad_p4[1, k] = y * by_pt + x * by_phi - (wide[BY_PY + c] + itself * y)
    grad_p4[2, k] = by_y * (by_plus * (2.0 - free) - by_minus) - (wide[BY_PZ + c] + itself * z)
    grad_p4[3, k] = by_y * (by_plus * free + by_minus) + (wide[BY_E + c] + itself * energy)
