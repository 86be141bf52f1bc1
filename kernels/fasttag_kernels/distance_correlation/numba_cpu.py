"""Numba backend: two sorts and one pass of dominance sums; over all pairs where points are few. See README.md."""

import math

import numpy as np

from .._numba import helper, inputs, kernel

FEW = 256  # points up to which the pairs are faster
BITS = 4  # of a rank per level of the tree of sums: nodes have 16 lanes
SIGN = np.uint64(1 << 63)
LOW = np.uint64(0xFFFFFFFF)
X, Y, P = range(3)  # columns of `points`; a fourth makes a row half a cache line
U, V, UBAR = 0, 1, 3  # and of `table` in `_sweep`, with P


def run(x, y, weights, unbiased, covariance, needed, out, dx, dy, *, threads):
    dx[:] = dy[:] = 0
    x, y, weights = inputs(x, y, np.ones(len(x), x.dtype) if weights is None else weights)
    work = np.empty((17, len(x) + 64))  # one piece: malloc keeps up to 32 MB; many would be new pages in every call
    place, points = work[:4].view(np.uint32).reshape(8, -1)[0], work[4:8].reshape(-1, 4)
    n = _centre(x, y, weights, place, points)
    if n < (4 if unbiased else 2):
        out[()] = 0
    elif not math.isfinite(points[0].sum()):
        out[()] = dx[:] = dy[:] = np.nan
    elif n <= FEW:
        out[()] = pairs(x, y, place[:n], points[:n], unbiased, covariance, dx, dy)
    else:
        out[()] = sweep(x, y, n, work, unbiased, covariance, dx, dy)


def pairs(x, y, place, points, unbiased, covariance, dx, dy):
    """O(n^2) time: every sum over all pairs, by differences of the input: centred, close values would be equal."""
    u, v, p, _ = points.T.copy()
    x, y = (values[place].astype(np.float64) for values in (x, y))
    value = _pairs(u, v, x, y, p, place, unbiased, covariance, dy)
    if len(dx):
        _pairs(v, u, y, x, p, place, unbiased, covariance, dx)
    return value


def sweep(x, y, n, work, unbiased, covariance, dx, dy):
    """O(n log n) time; all memory is `work`, 17 rows of n + 64, with place and points from `_centre`."""
    place, by_x, rank, first_x, by_y, position, first_y, free = work[:4].view(np.uint32).reshape(8, -1)[:, :n]
    bits = [values.view(f"u{values.itemsize}") for values in (x, y)]
    points, table = work[4:8].reshape(-1, 4)[:n], work[8:12].reshape(-1, 4)[:n]
    keys, before = work[12:14].view(np.uint64)[:, :n], work[12:14].reshape(-1, 2)[:n]
    _orders(x, y, *bits, *keys, place, by_x, rank, first_x, by_y, position, first_y, free)
    tree = work[14:].reshape(-1)
    tree = tree[-(tree.ctypes.data // 8) % 8 :]  # a vector in two cache lines forwards its stores slowly
    rest = (place, points, before, table, tree, BITS, unbiased, covariance)
    value = 0.0
    if len(dy) or not len(dx):
        value = _sweep(X, Y, by_x, rank, by_y, first_y, *rest, dy)
    if len(dx):
        value = _sweep(Y, X, by_y, position, by_x, first_x, *rest, dx)
    return value


def backward(gradient, x, y, weights, unbiased, covariance, needed, dx, dy, grad_x, grad_y, *, threads):
    for grad, derivative in ((grad_x, dx), (grad_y, dy)):
        _scale(gradient[()], *inputs(derivative), grad)


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

    Differences from the point of largest weight come first, so that equal values give exactly 0.
    """
    n, origin, total, sum_x, sum_y = 0, 0, 0.0, 0.0, 0.0
    for i in range(len(x)):
        origin = i if weights[i] > weights[origin] else origin
    for i in range(len(x)):
        if weights[i] != 0.0:
            w = np.float64(weights[i]) / np.float64(weights[origin])
            dx, dy = _minus(x[i], x[origin]), _minus(y[i], y[origin])
            place[n], points[n, X], points[n, Y], points[n, P], points[n, 3] = i, dx, dy, w, 0.0
            total += w
            sum_x += w * dx
            sum_y += w * dy
            n += 1
    for i in range(n):
        points[i, X] -= sum_x / total
        points[i, Y] -= sum_y / total
        points[i, P] /= total
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
    # what rounding leaves of a variance of 0: unbiased, that of one point apart from all others; or nearly all weight
    # on one value
    noise = n * 2.0**-52
    if s_uu == 0.0 or s_vv == 0.0:
        return 0.0, 0.0, 0.0
    if covariance:
        return v_uv, 2 * c0, 0.0
    if v_uu <= noise * s_uu or v_vv <= noise * s_vv:
        return 0.0, 0.0, 0.0
    norm = math.sqrt(v_uu) * math.sqrt(v_vv)
    return v_uv / norm, 2 * c0 / norm, 2 * c0 * v_uv / norm / v_vv


@kernel
def _pairs(u, v, x, y, p, place, unbiased, covariance, gradient):
    """The value and, unless `gradient` is empty, its derivatives in y; u and v are x and y less their means."""
    n = len(u)
    ubar, vbar, g, z = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    s_uv = s_uu = s_vv = m_uv = m_uu = m_vv = total_u = total_v = 0.0
    for k in range(n):
        uk, vk, xk, yk = u[k], v[k], x[k], y[k]
        row_u = row_v = row_g = row_uv = 0.0
        for j in range(n):
            a, b = abs(xk - x[j]), yk - y[j]
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
        vk, yk = v[k], y[k]
        sigma = tau = 0.0
        for j in range(n):
            d = yk - y[j]
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
def _plant(n, bits, tree, roots):
    """Empty the tree of sums over ranks below n; roots[level] is where its level begins, leaves first. Its height."""
    height, nodes, size = 0, n, 0
    while nodes > 1:
        nodes = ((nodes - 1) >> bits) + 1
        roots[height] = size
        size += 2 * nodes << bits
        height += 1
    tree[:size] = 0.0
    return height


@helper
def _dominance(rank, p, pu, bits, tree, roots, height):
    """Sums of p and p u over what the tree holds at lower ranks; then adds p and p u at this rank.

    A node has a lane per child, which holds the sum over the lanes before it: one number to read and a vector to add
    on each level. The number of bits comes as an argument: with a constant LLVM unrolls the loop and packs nothing.
    """
    ways, below, below_u = 1 << bits, 0.0, 0.0
    for level in range(height):
        parent, lane = rank >> bits, rank & (ways - 1)
        first = roots[level] + 2 * ways * parent
        node, node_u = tree[first : first + ways], tree[first + ways : first + 2 * ways]
        below += node[lane]
        below_u += node_u[lane]
        for other in range(ways):
            node[other] += p if other > lane else 0.0
            node_u[other] += pu if other > lane else 0.0
        rank = parent
    return below, below_u


@kernel
def _sweep(
    at_u, at_v, by_u, rank, by_v, first, place, points, before, table, tree, bits, unbiased, covariance, gradient
):
    """The value and, unless `gradient` is empty, its derivatives in v; ranks are those in v of points ordered by u."""
    n = len(points)
    s_uv = s_uu = s_vv = m_uv = m_uu = m_vv = total_u = total_v = 0.0
    rest_u = rest_v = 0.0  # of rounding, in the mean
    for k in range(n):
        rest_u += points[k, P] * points[k, at_u]
        rest_v += points[k, P] * points[k, at_v]
    roots = np.empty(16, np.int64)
    height = _plant(n, bits, tree, roots)
    c = cu = 0.0
    for i in range(n):
        k, to = by_u[i], np.int64(rank[i])
        pk, uk, vk = points[k, P], points[k, at_u], points[k, at_v]
        c += pk
        cu += pk * uk
        row = uk * (2 * c - 1) - 2 * cu + rest_u
        before[to, 0], before[to, 1] = _dominance(to, pk, pk * uk, bits, tree, roots, height)
        table[to, P], table[to, U], table[to, V], table[to, UBAR] = pk, uk, vk, row
        total_u += pk * row
        m_uu += pk * row * row
        s_uu += 2 * pk * uk * uk
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
