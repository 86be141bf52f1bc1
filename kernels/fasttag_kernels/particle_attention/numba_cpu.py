"""Numba backend: four queries at a time against all keys of a jet, whose scores stay in the cache. See README.md."""

import math

import numpy as np
from numba import uint32

from .. import _threads
from .._math import LOWEST, LOWEST32, exp
from .._numba import helper, inputs, kernel
from .._random import philox
from .._simd import LANES, broadcast, highest, load, load_first, store, store_first, total, transpose

ROWS = 4  # queries at a time: as many as Philox gives words
BLOCK = ROWS * LANES  # their scores with LANES keys, a line per query
ZERO, TOP, FOUND, AREAS = 0, 1, 1 + ROWS, 1 + 2 * ROWS  # lines of scratch; then areas as large as the jets ask


def run(qkv, offsets, bias, dropout, seed, layer, needed, out, norm, *, threads):
    if offsets[-1] - offsets[0] < len(out):
        for array in (out, norm):
            array[: offsets[0]] = 0
            array[offsets[-1] :] = 0
    given = _flat(qkv, offsets, bias)
    _threads.over(len(offsets) - 1, threads, _forward, *given, dropout, seed, layer, out.reshape(-1), norm)


def backward(gradient, qkv, offsets, bias, dropout, seed, layer, needed, norm, grad_qkv, grad_bias, *, threads):
    grad_qkv[: offsets[0]] = 0
    grad_qkv[offsets[-1] :] = 0
    gradient, norm = inputs(gradient, norm)
    given = (*_flat(qkv, offsets, bias), dropout, seed, layer, gradient.reshape(-1), norm, *needed)
    _threads.over(len(offsets) - 1, threads, _backward, *given, grad_qkv.reshape(-1), grad_bias.reshape(-1))


def _flat(qkv, offsets, bias):
    """Flat arrays, for masked loads, and the two lengths; an empty bias for none."""
    heads, head_dim = qkv.shape[2:]
    qkv, offsets, bias = inputs(qkv, offsets, np.empty(0, qkv.dtype) if bias is None else bias)
    return qkv.reshape(-1), offsets, bias.reshape(-1), heads, head_dim


@helper
def _scratch(first, last, offsets, areas, head_dim, dtype):
    """Numbers, to be seen as lines of LANES, and the lines of an area, enough for the longest jet.

    Lines begin at multiples of their size: one that lies in two cache lines is read at half the rate.
    """
    longest = 0
    for j in range(first, last):
        longest = max(longest, offsets[j + 1] - offsets[j])
    size = (longest + LANES) * ((head_dim + LANES - 1) // LANES + 1)
    lines = AREAS + areas * size
    w = np.empty((lines + 1) * LANES, dtype)
    skipped = -(w.ctypes.data // w.itemsize) % LANES
    w = w[skipped : skipped + lines * LANES]
    w[:LANES] = 0
    return w, size


@helper
def _gather(source, at, step, n, keys, head_dim, factor, w, to):
    """Rows of one head times `factor`: LANES channels of all rows, then the next; 0 where there is none."""
    for d in range(0, head_dim, LANES):
        count = min(LANES, head_dim - d)
        for i in range(n):
            store(w, to + i, 0, load_first(source, at + i * step + d, count) * factor)
        for i in range(n, keys):
            store(w, to + i, 0, load(w, ZERO, 0))
        to += keys


@helper
def _scatter(w, at, n, keys, head_dim, target, to, step):
    """The way back of `_gather`."""
    for d in range(0, head_dim, LANES):
        count = min(LANES, head_dim - d)
        for i in range(n):
            store_first(target, to + i * step + d, load(w, at + i, 0), count)
        at += keys


@helper
def _turn(w, at, n, keys, head_dim, beyond, to):
    """Rows to columns: for LANES keys a line per channel and one that is 0, or `beyond` where there is no key."""
    for j in range(0, keys, LANES):
        for d in range(0, head_dim, LANES):
            transpose(w, at + d // LANES * keys + j, 0, w, to, 0)
            to += LANES
        for t in range(LANES):
            w[to * LANES + t] = 0 if j + t < n else beyond
        to += 1


@helper
def _scores(w, rows, columns, i, n, keys, head_dim, biased, bias, at, to):
    """Products of ROWS rows from i on with all columns, plus bias; to TOP the largest, for each lane."""
    m0 = m1 = m2 = m3 = load(w, ZERO, 0) - math.inf
    channels = (head_dim + LANES - 1) // LANES * LANES
    for j in range(0, keys, LANES):
        s0 = s1 = s2 = s3 = load(w, columns + channels, 0)
        if biased:
            count, place = min(LANES, n - j), at + i * n + j
            s0 = s0 + load_first(bias, place, count)
            s1 = s1 + load_first(bias, place + n, count if i + 1 < n else 0)
            s2 = s2 + load_first(bias, place + 2 * n, count if i + 2 < n else 0)
            s3 = s3 + load_first(bias, place + 3 * n, count if i + 3 < n else 0)
        for d in range(0, channels, LANES):
            row = rows + d // LANES * keys + i
            for t in range(LANES):
                column = load(w, columns + d + t, 0)
                s0 = s0 + column * broadcast(w, row, t)
                s1 = s1 + column * broadcast(w, row + 1, t)
                s2 = s2 + column * broadcast(w, row + 2, t)
                s3 = s3 + column * broadcast(w, row + 3, t)
        columns += channels + 1
        m0, m1, m2, m3 = max(m0, s0), max(m1, s1), max(m2, s2), max(m3, s3)
        _put(w, to, s0, s1, s2, s3)
        to += ROWS
    _put(w, TOP, m0, m1, m2, m3)


@helper
def _put(w, to, a, b, c, d):
    store(w, to, 0, a)
    store(w, to + 1, 0, b)
    store(w, to + 2, 0, c)
    store(w, to + 3, 0, d)


@helper
def _exponentials(w, at, keys):
    """exp(score - largest of the row) in place, 0 for a masked pair."""
    for r in range(ROWS):
        top = highest(load(w, TOP + r, 0))
        top = top if top > -math.inf else w.dtype.type(0)
        for k in range(at + r, at + keys // LANES * ROWS, ROWS):
            store(w, k, 0, load(w, k, 0) - top)
    zero, lowest = w.dtype.type(0), w.dtype.type(LOWEST32 if w.itemsize == 4 else LOWEST)
    for k in range(np.uint64(at * LANES), np.uint64(at * LANES + keys * ROWS)):
        x = w[k]
        w[k] = zero if x < lowest else exp(x)


@helper
def _kept(w, random, dropout, seed, layer, jet, head, i, n, keys, to):
    """Factors of dropout: of query i and key j by word i % ROWS of the counter (layer, jet, head, i // ROWS n + j)."""
    key0, key1 = uint32(seed & 0xFFFFFFFF), uint32(seed >> 32)
    threshold = uint32(np.int64(dropout * 2**32))
    zero, factor = w.dtype.type(0), w.dtype.type(1 / (1 - dropout))
    for j in range(0, keys, LANES):
        for t in range(LANES):
            counter = uint32(i // ROWS * n + j + t)
            a, b, c, d = philox(uint32(layer), uint32(jet), uint32(head), counter, key0, key1)
            random[t], random[LANES + t], random[2 * LANES + t], random[3 * LANES + t] = a, b, c, d
        base = np.uint64(to * LANES + j * ROWS)
        for k in range(np.uint64(BLOCK)):
            w[base + k] = factor if random[k] >= threshold else zero


@helper
def _multiply(w, at, by, keys):
    for k in range(keys // LANES * ROWS):
        store(w, at + k, 0, load(w, at + k, 0) * load(w, by + k, 0))


@helper
def _sums(w, weights, values, n):
    """To FOUND, for each of ROWS queries, the sum over keys of weight times value."""
    a0 = a1 = a2 = a3 = load(w, ZERO, 0)
    for j in range(0, n, LANES):
        for t in range(LANES):
            value = load(w, values + j + t, 0)
            a0 = a0 + value * broadcast(w, weights, t)
            a1 = a1 + value * broadcast(w, weights + 1, t)
            a2 = a2 + value * broadcast(w, weights + 2, t)
            a3 = a3 + value * broadcast(w, weights + 3, t)
        weights += ROWS
    _put(w, FOUND, a0, a1, a2, a3)


@helper
def _spread(w, weights, rows, n, to):
    """To the line of each key the sum over ROWS queries of weight times row is added."""
    r0, r1, r2, r3 = load(w, rows, 0), load(w, rows + 1, 0), load(w, rows + 2, 0), load(w, rows + 3, 0)
    for j in range(0, n, LANES):
        for t in range(LANES):
            a = load(w, to + j + t, 0) + r0 * broadcast(w, weights, t)
            a = a + r1 * broadcast(w, weights + 1, t)
            a = a + r2 * broadcast(w, weights + 2, t)
            store(w, to + j + t, 0, a + r3 * broadcast(w, weights + 3, t))
        weights += ROWS


@kernel
def _forward(first, last, qkv, offsets, bias, heads, head_dim, dropout, seed, layer, out, norm):
    number = qkv.dtype.type
    scale, biased = number(1 / math.sqrt(head_dim)), len(bias) > 0
    w, size = _scratch(first, last, offsets, 5, head_dim, qkv.dtype)
    queries, columns, values = AREAS, AREAS + size, AREAS + 2 * size
    weights, factors = AREAS + 3 * size, AREAS + 4 * size
    random = np.empty(BLOCK, np.uint32)
    norms = np.empty(ROWS, qkv.dtype)
    width, step, whole = heads * head_dim, 3 * heads * head_dim, len(bias) // heads
    pairs = 0
    for jet in range(first):
        pairs += (offsets[jet + 1] - offsets[jet]) ** 2
    for jet in range(first, last):
        start = offsets[jet]
        n = offsets[jet + 1] - start
        keys = (n + LANES - 1) // LANES * LANES
        for head in range(heads):
            at = start * step + head * head_dim
            _gather(qkv, at, step, n, keys, head_dim, scale, w, queries)
            _gather(qkv, at + width, step, n, keys, head_dim, number(1), w, values)
            _turn(w, values, n, keys, head_dim, number(-math.inf), columns)
            _gather(qkv, at + 2 * width, step, n, keys, head_dim, number(1), w, values)
            for i in range(0, n, ROWS):
                rows = min(ROWS, n - i)
                _scores(w, queries, columns, i, n, keys, head_dim, biased, bias, head * whole + pairs, weights)
                _exponentials(w, weights, keys)
                for r in range(ROWS):
                    some = load(w, weights + r, 0)
                    for k in range(weights + ROWS, weights + keys // LANES * ROWS, ROWS):
                        some = some + load(w, k + r, 0)
                    found = total(some)
                    norms[r] = number(1) / found if found != 0 else number(0)  # 0 for a row without any pair
                if dropout > 0:
                    _kept(w, random, dropout, seed, layer, jet, head, i, n, keys, factors)
                    _multiply(w, weights, factors, keys)
                for d in range(0, head_dim, LANES):
                    _sums(w, weights, values + d // LANES * keys, n)
                    for r in range(rows):
                        place = (start + i + r) * width + head * head_dim + d
                        store_first(out, place, load(w, FOUND + r, 0) * norms[r], min(LANES, head_dim - d))
                if len(norm) > 0:
                    for r in range(rows):
                        norm[start + i + r, head] = norms[r]
        pairs += n * n


@kernel
def _backward(
    first, last, qkv, offsets, bias, heads, head_dim, dropout, seed, layer,
    gradient, norm, of_qkv, of_bias, grad_qkv, grad_bias,
):  # fmt: skip
    number = qkv.dtype.type
    scale, biased = number(1 / math.sqrt(head_dim)), len(bias) > 0
    w, size = _scratch(first, last, offsets, 11, head_dim, qkv.dtype)
    queries, keys_at, values, by_out, by_keys, by_values = (
        AREAS, AREAS + size, AREAS + 2 * size, AREAS + 3 * size, AREAS + 4 * size, AREAS + 5 * size,
    )  # fmt: skip
    columns, value_columns = AREAS + 6 * size, AREAS + 7 * size
    weights, by_weights, kept = AREAS + 8 * size, AREAS + 9 * size, AREAS + 10 * size
    random = np.empty(BLOCK, np.uint32)
    width, step, whole = heads * head_dim, 3 * heads * head_dim, len(bias) // heads
    pairs = 0
    for jet in range(first):
        pairs += (offsets[jet + 1] - offsets[jet]) ** 2
    for jet in range(first, last):
        start = offsets[jet]
        n = offsets[jet + 1] - start
        keys = (n + LANES - 1) // LANES * LANES
        for head in range(heads):
            at = start * step + head * head_dim
            _gather(qkv, at, step, n, keys, head_dim, scale, w, queries)
            _gather(qkv, at + width, step, n, keys, head_dim, number(1), w, keys_at)
            _gather(qkv, at + 2 * width, step, n, keys, head_dim, number(1), w, values)
            _gather(gradient, start * width + head * head_dim, width, n, keys, head_dim, number(1), w, by_out)
            _turn(w, keys_at, n, keys, head_dim, number(-math.inf), columns)
            _turn(w, values, n, keys, head_dim, number(0), value_columns)
            blocks = (head_dim + LANES - 1) // LANES
            for k in range(blocks * keys):
                store(w, by_keys + k, 0, load(w, ZERO, 0))
                store(w, by_values + k, 0, load(w, ZERO, 0))
            place = head * whole + pairs
            for i in range(0, n, ROWS):
                rows = min(ROWS, n - i)
                _scores(w, queries, columns, i, n, keys, head_dim, biased, bias, place, weights)
                _exponentials(w, weights, keys)
                for r in range(ROWS):
                    factor = norm[start + i + r, head] if r < rows else number(0)
                    for k in range(weights + r, weights + keys // LANES * ROWS, ROWS):
                        store(w, k, 0, load(w, k, 0) * factor)
                _scores(w, by_out, value_columns, i, n, keys, head_dim, False, bias, place, by_weights)
                used = weights
                if dropout > 0:
                    used = kept
                    _kept(w, random, dropout, seed, layer, jet, head, i, n, keys, kept)
                    _multiply(w, by_weights, kept, keys)
                    _multiply(w, kept, weights, keys)
                for r in range(ROWS):
                    some = load(w, ZERO, 0)
                    for k in range(r, keys // LANES * ROWS, ROWS):
                        some = some + load(w, weights + k, 0) * load(w, by_weights + k, 0)
                    mean = load(w, ZERO, 0) + total(some)
                    for k in range(r, keys // LANES * ROWS, ROWS):
                        change = load(w, by_weights + k, 0) - mean
                        store(w, by_weights + k, 0, load(w, weights + k, 0) * change)
                if of_bias:
                    for r in range(rows):
                        for j in range(0, n, LANES):
                            change = load(w, by_weights + j // LANES * ROWS + r, 0)
                            store_first(grad_bias, place + (i + r) * n + j, change, min(LANES, n - j))
                if of_qkv:
                    for d in range(blocks):
                        _sums(w, by_weights, keys_at + d * keys, n)
                        for r in range(rows):
                            store_first(
                                grad_qkv,
                                at + (i + r) * step + d * LANES,
                                load(w, FOUND + r, 0) * scale,
                                min(LANES, head_dim - d * LANES),
                            )
                        _spread(w, by_weights, queries + d * keys + i, n, by_keys + d * keys)
                        _spread(w, used, by_out + d * keys + i, n, by_values + d * keys)
            if of_qkv:
                _scatter(w, by_keys, n, keys, head_dim, grad_qkv, at + width, step)
                _scatter(w, by_values, n, keys, head_dim, grad_qkv, at + 2 * width, step)
        pairs += n * n
