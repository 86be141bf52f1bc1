"""Numba backend: two sorts and one pass of dominance sums; over all pairs where points are few. See README.md."""

import math

import numpy as np

from .._numba import helper, inputs, kernel

FEW = 256  # points up to which the pairs are faster
WAYS = 23  # at most so many ways out of one bucket in `_dominance`
SIGN = np.uint64(1 << 63)
LOW = np.uint64(0xFFFFFFFF)
P, U, V, UBAR = range(4)  # columns of `table` in `_sweep`


def run(x, y, weights, unbiased, covariance, needed, out, dx, dy, *, threads):
    dx[:] = dy[:] = 0
    x, y, weights = inputs(x, y, np.ones(len(x), x.dtype) if weights is None else weights)
    work = np.empty((17, len(x)))  # one piece: malloc keeps up to 32 MB; many arrays would be new pages in every call
    place, points = work[:4].view(np.uint32).reshape(8, len(x))[0], work[4:7]
    n = _centre(x, y, weights, place, points)
    if n < (4 if unbiased else 2):
        out[()] = 0
    elif not math.isfinite(points[:, 0].sum()):
        out[()] = dx[:] = dy[:] = np.nan
    elif n <= FEW:
        out[()] = pairs(place[:n], points[:, :n], unbiased, covariance, dx, dy)
    else:
        out[()] = sweep(x, y, n, work, unbiased, covariance, dx, dy)


def pairs(place, points, unbiased, covariance, dx, dy):
    """O(n^2) time: every sum over all pairs."""
    x, y, p = points
    value = _pairs(x, y, p, place, unbiased, covariance, dy)
    if len(dx):
        _pairs(y, x, p, place, unbiased, covariance, dx)
    return value


def sweep(x, y, n, work, unbiased, covariance, dx, dy):
    """O(n log n) time; all memory is `work`, 17 n floats, with place and points from `_centre`."""
    place, by_x, rank, first_x, by_y, position, first_y, spare = work[:4].view(np.uint32).reshape(8, -1)[:, :n]
    bits = [values.view(f"u{values.itemsize}") for values in (x, y)]
    keys = work[7:9].view(np.uint64)[:, :n]
    _orders(x, y, *bits, *keys, place, by_x, rank, first_x, by_y, position, first_y, spare)
    mass, mass_spare, before = (work[row : row + 2].reshape(-1, 2)[:n] for row in (7, 9, 11))
    table = work[13:].reshape(-1, 4)[:n]
    rest = (spare, place, mass, mass_spare, before, table, unbiased, covariance)
    (x, y, p), value = work[4:7, :n], 0.0
    if len(dy) or not len(dx):
        value = _sweep(x, y, p, by_x, rank, by_y, first_y, *rest, dy)
    if len(dx):
        value = _sweep(y, x, p, by_y, position, by_x, first_x, *rest, dx)
    return value


def backward(gradient, x, y, weights, unbiased, covariance, needed, dx, dy, grad_x, grad_y, *, threads):
    for grad, derivative in ((grad_x, dx), (grad_y, dy)):
        if len(derivative) == len(grad):
            _scale(gradient[()], *inputs(derivative), grad)
        else:
            grad[:] = np.nan  # not asked for in the forward call: nobody may use it


@kernel
def _scale(factor, derivative, gradient):
    for i in range(len(gradient)):
        gradient[i] = factor * derivative[i]


@helper
def _minus(a, b):
    return np.float64(a) - np.float64(b)


@kernel
def _centre(x, y, weights, place, points):
    """Where points of weight not 0 stand, their x and y less the means, weights of sum 1; the number of points.

    Differences from the first point come first, so that equal values give exactly 0.
    """
    n, origin, total, sum_x, sum_y = 0, 0, 0.0, 0.0, 0.0
    for i in range(len(x)):
        if weights[i] != 0.0:
            origin = i if n == 0 else origin
            w, dx, dy = np.float64(weights[i]), _minus(x[i], x[origin]), _minus(y[i], y[origin])
            place[n], points[0, n], points[1, n], points[2, n] = i, dx, dy, w
            total += w
            sum_x += w * dx
            sum_y += w * dy
            n += 1
    for i in range(n):
        points[0, i] -= sum_x / total
        points[1, i] -= sum_y / total
        points[2, i] /= total
    return n


@kernel
def _coefficients(n, unbiased):
    """Factors of the whole, of the product of row means and of the product of total means."""
    if unbiased:
        return n / (n - 3), n / (n - 2), n * n / ((n - 1) * (n - 2))
    return 1.0, 1.0, 1.0


@kernel
def _result(n, unbiased, covariance, s_uv, s_uu, s_vv, m_uv, m_uu, m_vv, ubar, vbar):
    """The value, and in its gradient the factors a of V_uv and b of V_vv; s: sums over pairs, m: over row means."""
    c0, c1, c2 = _coefficients(n, unbiased)
    v_uv = c0 * (s_uv - 2 * c1 * m_uv + c2 * ubar * vbar)
    v_uu = c0 * (s_uu - 2 * c1 * m_uu + c2 * ubar * ubar)
    v_vv = c0 * (s_vv - 2 * c1 * m_vv + c2 * vbar * vbar)
    # one point apart from all others has an unbiased variance of 0: rounding leaves up to n eps
    noise = n * 2.0**-52 if unbiased else 0.0
    if s_uu == 0.0 or s_vv == 0.0:
        return 0.0, 0.0, 0.0
    if covariance:
        return v_uv, 2 * c0, 0.0
    if v_uu <= noise * s_uu or v_vv <= noise * s_vv:
        return 0.0, 0.0, 0.0
    norm = math.sqrt(v_uu) * math.sqrt(v_vv)
    return v_uv / norm, 2 * c0 / norm, 2 * c0 * v_uv / norm / v_vv


@kernel
def _pairs(u, v, p, place, unbiased, covariance, gradient):
    """The value and, unless `gradient` is empty, its derivatives in v."""
    n = len(u)
    ubar, vbar, g, z = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    s_uv = s_uu = s_vv = m_uv = m_uu = m_vv = total_u = total_v = 0.0
    for k in range(n):
        uk, vk = u[k], v[k]
        row_u = row_v = row_g = row_uv = 0.0
        for j in range(n):
            a, b = abs(uk - u[j]), vk - v[j]
            pa, sign = p[j] * a, (1.0 if b > 0.0 else 0.0) - (1.0 if b < 0.0 else 0.0)
            row_u += pa
            row_v += p[j] * abs(b)
            row_uv += pa * abs(b)
            row_g += pa * sign
        ubar[k], vbar[k], g[k] = row_u, row_v, row_g
        s_uv += p[k] * row_uv
        s_uu += 2 * p[k] * uk * uk
        s_vv += 2 * p[k] * vk * vk
        m_uv += p[k] * row_u * row_v
        m_uu += p[k] * row_u * row_u
        m_vv += p[k] * row_v * row_v
        total_u += p[k] * row_u
        total_v += p[k] * row_v
    value, a, b = _result(n, unbiased, covariance, s_uv, s_uu, s_vv, m_uv, m_uu, m_vv, total_u, total_v)
    if len(gradient) == 0 or a == 0.0:
        return value
    _, c1, c2 = _coefficients(n, unbiased)
    total_z = a * total_u - b * total_v
    for j in range(n):
        z[j] = a * ubar[j] - b * vbar[j]
    for k in range(n):
        vk = v[k]
        sigma = tau = 0.0
        for j in range(n):
            d = vk - v[j]
            signed = (p[j] if d > 0.0 else 0.0) - (p[j] if d < 0.0 else 0.0)
            sigma += signed
            tau += signed * z[j]
        gradient[place[k]] = p[k] * (a * g[k] - b * vk - c1 * (z[k] * sigma + tau) + c2 * total_z * sigma)
    return value


@helper
def _ascending(bits, shift):
    """Bits of a float, the sign at the top after the shift, as an integer of the same order; -0.0 is 0.0."""
    b = np.uint64(bits) << np.uint64(shift)
    b = np.uint64(0) if b == SIGN else b
    return b ^ (SIGN | (np.uint64(0) - (b >> np.uint64(63))))


@kernel
def _sort(keys, spare):
    """Stable radix sort by the upper 32 bits, which says in which of the two arrays the result is (first)."""
    counts = np.zeros((3, 2048), np.uint32)
    for key in keys:
        counts[0, (key >> np.uint64(32)) & np.uint64(2047)] += 1
        counts[1, (key >> np.uint64(43)) & np.uint64(2047)] += 1
        counts[2, key >> np.uint64(54)] += 1
    for digit in range(3):
        shift = np.uint64(32 + 11 * digit)
        count = counts[digit]
        if count[(keys[0] >> shift) & np.uint64(2047)] == len(keys):
            continue
        start = 0
        for i in range(2048):
            size = count[i]
            count[i] = start
            start += size
        for key in keys:
            way = (key >> shift) & np.uint64(2047)
            spare[count[way]] = key
            count[way] += 1
        keys, spare = spare, keys
    return keys, spare


@kernel
def _sorted(bits, place, before, keys, spare):
    """Sort place[before[k]] by value, stably; the lower halves of the first array are then the k in order."""
    shift = 64 - 8 * bits.itemsize
    if shift == 0:
        for k in range(len(before)):
            keys[k] = _ascending(bits[place[before[k]]], 0) << np.uint64(32) | np.uint64(k)
        keys, spare = _sort(keys, spare)
        for i in range(len(before)):
            k = keys[i] & LOW
            keys[i] = _ascending(bits[place[before[k]]], 0) & ~LOW | k
    else:
        for k in range(len(before)):
            keys[k] = _ascending(bits[place[before[k]]], 32) & ~LOW | np.uint64(k)
    return _sort(keys, spare)


@kernel
def _orders(x, y, x_bits, y_bits, keys, spare, place, by_x, rank, first_x, by_y, position, first_y, free):
    """Points ordered by (x, y) and by (y, x): the points, rank in the other order, start of the group of equals."""
    n = len(place)
    for k in range(n):
        by_y[k] = k
    keys, spare = _sorted(y_bits, place, by_y, keys, spare)
    for r in range(n):
        k = keys[r] & LOW
        by_y[r] = k
        first_y[r] = first_y[r - 1] if r > 0 and y[place[k]] == y[place[by_y[r - 1]]] else r
        free[r] = r
    keys, spare = _sorted(x_bits, place, by_y, keys, spare)
    for i in range(n):
        r = keys[i] & LOW
        k = by_y[r]
        by_x[i] = k
        first_x[i] = first_x[i - 1] if i > 0 and x[place[k]] == x[place[by_x[i - 1]]] else i
        group = first_y[r]
        rank[i] = free[group]
        free[group] += 1
    for i in range(n):
        position[rank[i]] = i
        by_y[rank[i]] = by_x[i]


@kernel
def _dominance(rank, rank_spare, mass, mass_spare, out):
    """Add to out[rank[i]] the sum of mass[j] over j < i with rank[j] < rank[i]; overwrites the other arrays.

    Digit by digit of the rank, the highest first: points with equal higher digits are a bucket and keep their sequence;
    each adds what lies in lower ways of its bucket so far and goes to its way. Ranks are distinct: no counting.
    """
    n, levels = len(rank), 1
    while n > WAYS**levels:
        levels += 1
    base = 3  # odd: ways that start a power of two apart would share few cache sets, and take three times as long
    while n > base**levels:
        base += 2
    ways = (base + 7) // 8 * 8
    memory, free = np.empty(2 * ways + 8), np.empty(ways, np.int64)
    aligned = (
        -(memory.ctypes.data // 8) % 8
    )  # a vector in two cache lines forwards its stores slowly: 1.5 times as long
    below = memory[aligned : aligned + 2 * ways].reshape(2, ways)
    width = base**levels
    while width > 1:
        size, width = width, width // base
        inverse = 1 / width
        for start in range(0, n, size):
            below[:] = 0.0
            for way in range(base):
                free[way] = start + way * width
            for i in range(start, min(n, start + size)):
                r, p, pu = rank[i], mass[i, 0], mass[i, 1]
                way = np.int64((np.float64(r - start) + 0.5) * inverse)
                out[r, 0] += below[0, way]
                out[r, 1] += below[1, way]
                for other in range(ways):
                    below[0, other] += p if other > way else 0.0
                    below[1, other] += pu if other > way else 0.0
                to = free[way]
                free[way] += 1
                rank_spare[to], mass_spare[to, 0], mass_spare[to, 1] = r, p, pu
        rank, rank_spare, mass, mass_spare = rank_spare, rank, mass_spare, mass


@kernel
def _sweep(
    u, v, p, by_u, rank, by_v, first, spare, place, mass, mass_spare, before, table, unbiased, covariance, gradient
):
    """The value and, unless `gradient` is empty, its derivatives in v; ranks are those in v of points ordered by u."""
    n = len(u)
    s_uv = s_uu = s_vv = m_uv = m_uu = m_vv = total_u = total_v = 0.0
    rest_u = rest_v = 0.0  # of rounding, in the mean
    for k in range(n):
        rest_u += p[k] * u[k]
        rest_v += p[k] * v[k]
    c = cu = 0.0
    for i in range(n):
        k, r = by_u[i], rank[i]
        c += p[k]
        cu += p[k] * u[k]
        row = u[k] * (2 * c - 1) - 2 * cu + rest_u
        before[i, 0] = before[i, 1] = 0.0
        mass[i, 0], mass[i, 1] = p[k], p[k] * u[k]
        table[r, P], table[r, U], table[r, V], table[r, UBAR] = p[k], u[k], v[k], row
        total_u += p[k] * row
        m_uu += p[k] * row * row
        s_uu += 2 * p[k] * u[k] * u[k]
    _dominance(rank, spare, mass, mass_spare, before)
    g = table[:, U]  # takes the place of u
    c = cu = cv = 0.0
    r = 0
    while r < n:
        vk, end, tied, tied_u = table[r, V], r, 0.0, 0.0
        while end < n and first[end] == r:
            tied += table[end, P]
            tied_u += table[end, P] * table[end, U]
            end += 1
        cv += tied * vk
        row = vk * (2 * (c + tied) - 1) - 2 * cv + rest_v
        total_v += tied * row
        m_vv += tied * row * row
        s_vv += 2 * tied * vk * vk
        for k in range(r, end):
            pk, uk, ubar = table[k, P], table[k, U], table[k, UBAR]
            left = 2 * (uk * before[k, 0] - before[k, 1]) + cu - uk * c
            g[k] = 2 * left - ubar - (uk * tied - tied_u)
            c += pk
            cu += pk * uk
            s_uv += 2 * pk * vk * g[k]
            m_uv += pk * ubar * row
        r = end
    value, a, b = _result(n, unbiased, covariance, s_uv, s_uu, s_vv, m_uv, m_uu, m_vv, total_u, total_v)
    if len(gradient) == 0 or a == 0.0:
        return value
    _, c1, c2 = _coefficients(n, unbiased)
    total_z = a * total_u - b * total_v
    c = cv = cz = 0.0
    r = 0
    while r < n:
        vk, end, tied, tied_z = table[r, V], r, 0.0, 0.0
        while end < n and first[end] == r:
            tied += table[end, P]
            tied_z += table[end, P] * table[end, UBAR]
            end += 1
        cv += tied * vk
        sigma = 2 * c + tied - 1
        row = vk * (2 * (c + tied) - 1) - 2 * cv + rest_v
        tied_z = a * tied_z - b * tied * row
        tau = 2 * cz + tied_z - total_z
        for k in range(r, end):
            z = a * table[k, UBAR] - b * row
            inner = a * g[k] - b * vk - c1 * (z * sigma + tau) + c2 * total_z * sigma
            gradient[place[by_v[k]]] = table[k, P] * inner
        c += tied
        cz += tied_z
        r = end
    return value
