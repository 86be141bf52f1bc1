"""Numba backend: distances in tiles of 16 queries x 16 candidates, each pair once; selection by sorting networks.

All indices are unsigned: one that may be negative costs a comparison at every use, 0.26 us per jet in the loop that
writes the result.
"""

import functools

import numpy as np
from numba import types
from numba.extending import overload

from .. import _threads
from .._numba import exact, inputs
from .._simd import LANES, load, store, transpose
from .network import GROUP, NONE, index, merge, put, sort

WIDTHS = (8, 16, 32)  # of the networks: k is rounded up to the next
U = np.uint64
L, G = U(LANES), U(GROUP)
AT_ONCE = U(256)  # queries whose distances are kept together: memory grows with n, not with its square


def run(x, k, offsets, periodic, out, *, threads):
    offsets = np.array([0, len(x)]) if offsets is None else offsets
    out[: offsets[0]] = -1
    out[offsets[-1] :] = -1
    if x.shape[1] == 1:
        x = np.concatenate([x, np.zeros_like(x)], axis=1)  # the kernel takes the first two columns together
    width = next(width for width in WIDTHS if k <= width)
    turn = x.dtype.type(np.inf if periodic is None else 2 * np.pi)
    kernel = _kernel(width, 1 if x.dtype == np.float32 else 2)
    _threads.over(len(offsets) - 1, threads, kernel, *inputs(x, offsets), turn, out)


def nearest(first, last, x, offsets, turn, out):
    """For other kernels: what `run` shares out. At least two columns; turn : 2 pi or infinite, in the dtype of x."""


@overload(nearest)
def _(first, last, x, offsets, turn, out):
    few, usual, many = (_kernel(width, 1 if x.dtype == types.float32 else 2) for width in WIDTHS)

    def nearest(first, last, x, offsets, turn, out):
        if out.shape[1] <= WIDTHS[0]:
            few(first, last, x, offsets, turn, out)
        elif out.shape[1] <= WIDTHS[1]:
            usual(first, last, x, offsets, turn, out)
        else:
            many(first, last, x, offsets, turn, out)

    return nearest


@functools.cache
def _kernel(width, parts):
    @exact
    def _knn(first, last, x, offsets, turn, out):
        longest = 0
        for jet in range(first, last):
            longest = max(longest, offsets[jet + 1] - offsets[jet])
        rows = _up(U(longest), U(WIDTHS[-1]))
        columns, k = U(x.shape[1]), U(out.shape[1])
        scratch = np.empty(columns * rows, x.dtype)
        distances = np.empty((rows * min(rows, AT_ONCE) // L, LANES), x.dtype)
        keys = np.empty((rows, parts * LANES))
        last_part = U((parts - 1) * LANES)
        for jet in range(first, last):
            start = U(offsets[jet])
            n = U(offsets[jet + 1]) - start
            points = scratch[: columns * _up(n, L)].reshape(columns, _up(n, L))
            _copy(x, start, n, turn, points)
            for low in range(U(0), n, AT_ONCE):
                high = min(low + AT_ONCE, n)
                _distances(points, low, high, turn, distances)
                for i in range(low, high, L):
                    queries = min(L, n - i)
                    _keys(distances, low, i, n, U(width), keys)
                    for lane in range(U(0), queries, G):
                        sort(keys, 0, lane, width, parts)
                        for j in range(U(width), n, U(width)):
                            merge(keys, j, lane, width, parts)
                    for lane in range(queries):
                        for t in range(k):
                            out[start + i + lane, t] = index(keys[t, last_part + lane])

    return _knn


@exact
def _up(n, step):
    """n rounded up to a multiple of `step`."""
    return (n + step - U(1)) // step * step


@exact
def _copy(x, start, n, turn, points):
    """points[c, i] = x[start + i, c], column 1 reduced to one turn where it is periodic."""
    columns = U(x.shape[1])
    whole_rows, whole_columns = n // L * L, columns // L * L
    for i in range(U(0), whole_rows, L):
        for c in range(U(0), whole_columns, L):
            transpose(x, start + i, c, points, c, i)
    for i in range(n):
        for c in range(whole_columns if i < whole_rows else U(0), columns):
            points[c, i] = x[start + i, c]
    if turn < np.inf:
        half = turn / x.dtype.type(2)
        for i in range(n):
            points[1, i] -= np.floor((points[1, i] + half) / turn) * turn


@exact
def _distances(points, low, high, turn, distances):
    """Row (i - low) / 16 * rows + j: d^2 of points i..i+15 and j, for i in low..high; of (i, j) and (j, i) one."""
    rows = U(points.shape[1])
    for i in range(low, high, L):
        block = (i - low) // L * rows
        for j in range(U(0), rows, L):
            if low <= j and j < i:
                continue
            _tile(points, i, j, turn, distances, block + j)
            if i < j and j < high:
                transpose(distances, block + j, U(0), distances, (j - low) // L * rows + i, U(0))


@exact
def _tile(points, i, j, turn, distances, row):
    """d^2 of points i..i+15 and each of j..j+15, by four: four sums hide each other's latency."""
    x0, x1 = load(points, U(0), i), load(points, U(1), i)
    for _ in range(L // U(4)):
        a = _first_columns(x0, x1, points, j, turn)
        b = _first_columns(x0, x1, points, j + U(1), turn)
        c = _first_columns(x0, x1, points, j + U(2), turn)
        d = _first_columns(x0, x1, points, j + U(3), turn)
        for column in range(U(2), U(points.shape[0])):
            x = load(points, column, i)
            dx = x - points[column, j]
            a = a + dx * dx
            dx = x - points[column, j + U(1)]
            b = b + dx * dx
            dx = x - points[column, j + U(2)]
            c = c + dx * dx
            dx = x - points[column, j + U(3)]
            d = d + dx * dx
        store(distances, row, U(0), a)
        store(distances, row + U(1), U(0), b)
        store(distances, row + U(2), U(0), c)
        store(distances, row + U(3), U(0), d)
        j += U(4)
        row += U(4)


@exact
def _first_columns(x, y, points, j, turn):
    dx = x - points[U(0), j]
    dy = abs(y - points[U(1), j])
    dy = min(dy, turn - dy)
    return dx * dx + dy * dy


@exact
def _keys(distances, low, i, n, width, keys):
    """The keys of queries i..i+15, NONE for each query itself and below the last candidate."""
    block, last_part = (i - low) // L * _up(n, L), U(keys.shape[1]) - L
    for j in range(n):
        put(keys, j, load(distances, block + j, U(0)))
    for j in range(n, _up(n, width)):
        for lane in range(L):
            keys[j, lane] = np.inf
        for lane in range(L):
            keys[j, last_part + lane] = NONE
    for lane in range(min(L, n - i)):
        keys[i + lane, lane] = np.inf
        keys[i + lane, last_part + lane] = NONE
