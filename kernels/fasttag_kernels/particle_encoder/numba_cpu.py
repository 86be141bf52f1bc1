"""Numba backend: tiles of jets pass through the whole network, in strips of STRIP tokens with the tokens in lanes.

Then products take the matrices as torch has them, and sums over channels are sums of vectors. Each token is a column of
its own and each jet's attention begins at lane 0: bits do not depend on a jet's place in its tile.
"""

import math
from typing import NamedTuple

import numpy as np

from .. import _threads
from .._math import exp, gelu
from .._numba import helper, inputs, kernel
from .._simd import LANES, load, multiply, store, transpose
from . import EPS, length_of, length_of_block

STRIP = 32  # columns that `multiply` works on at once, and jets of a tile: their class tokens are one strip
TILE = 256  # constituents of a tile, more only where a jet has more: queries, keys and values are 0.4 MB in float32


class Layer(NamedTuple):
    """What a block has in `weights`."""

    norm: tuple
    in_proj: tuple
    out_proj: tuple
    post_norm: tuple
    fc_norm: tuple
    fc1: tuple
    post_fc_norm: tuple
    fc2: tuple
    w_resid: np.ndarray


class Scratch(NamedTuple):
    """Memory of one thread."""

    x: np.ndarray  # (strips, E, STRIP) tokens
    qkv: np.ndarray  # (3 E, columns), also the normalised tokens that the class tokens attend to
    attended: np.ndarray  # (E + 8, columns): a head of less than 8 channels is written as 8
    wide: np.ndarray  # two strips of the widest layer
    also_wide: np.ndarray
    cls: np.ndarray  # (E, STRIP) of all jets
    queries: np.ndarray
    heads: np.ndarray  # (H, E, STRIP)
    scores: np.ndarray  # keys times STRIP queries, or times the heads
    of_head: np.ndarray
    zeros: np.ndarray
    statistics: np.ndarray  # of a strip


def run(x, offsets, bias, weights, embed_dims, heads, layers, cls_layers, out, *, threads):
    host = np.asarray(offsets)
    starts = np.concatenate([[0], np.cumsum(np.diff(host) ** 2)])
    tiles = [0]
    while tiles[-1] < len(host) - 1:
        first = tiles[-1]
        last = int(np.searchsorted(host, host[first] + TILE, side="right")) - 1
        tiles.append(min(max(last, first + 1), first + STRIP, len(host) - 1))
    widths, e = np.array([x.shape[1], *embed_dims]), embed_dims[-1]
    places = length_of(x.shape[1], embed_dims, 0, 0) - 3 * e, length_of_block(e)
    arguments = *inputs(x, host, starts, bias, weights, np.array(tiles)), widths, places, heads, layers, cls_layers, out
    _threads.over(len(tiles) - 1, threads, _tiles, *arguments)


@helper
def _dense(weights, at, rows, columns):
    """Matrix and bias."""
    end = at + rows * columns
    return weights[at:end].reshape(rows, columns), weights[end : end + rows]


@helper
def _norm(weights, at, width):
    """Scale and shift."""
    return weights[at : at + width], weights[at + width : at + 2 * width]


@helper
def _layer(weights, at, e):
    in_proj = at + 2 * e
    out_proj = in_proj + 3 * e * (e + 1)
    norms = out_proj + e * (e + 1)
    fc1 = norms + 4 * e
    post = fc1 + 4 * e * (e + 1)
    fc2 = post + 8 * e
    w_resid = fc2 + e * (4 * e + 1)
    return Layer(
        _norm(weights, at, e),
        _dense(weights, in_proj, 3 * e, e),
        _dense(weights, out_proj, e, e),
        _norm(weights, norms, e),
        _norm(weights, norms + 2 * e, e),
        _dense(weights, fc1, 4 * e, e),
        _norm(weights, post, 4 * e),
        _dense(weights, fc2, e, 4 * e),
        weights[w_resid : w_resid + e],
    )


@kernel
def _normalise(x, rows, norm, out, column):
    """Layer normalisation of a strip, to out[:rows, column : column + STRIP], which may be the strip itself."""
    scale, shift = norm
    statistics = np.empty((2, STRIP), x.dtype)
    fours = rows // 4 * 4
    for c in range(0, STRIP, LANES):
        zero = load(x, 0, c) * x.dtype.type(0)
        a, b, s, t = zero, zero, zero, zero  # four sums: one would wait for each addition
        for r in range(0, fours, 4):
            a, b, s, t = a + load(x, r, c), b + load(x, r + 1, c), s + load(x, r + 2, c), t + load(x, r + 3, c)
        for r in range(fours, rows):
            a = a + load(x, r, c)
        mean = ((a + b) + (s + t)) * x.dtype.type(1.0 / rows)
        a, b, s, t = zero, zero, zero, zero
        for r in range(0, fours, 4):
            p, q = load(x, r, c) - mean, load(x, r + 1, c) - mean
            v, w = load(x, r + 2, c) - mean, load(x, r + 3, c) - mean
            a, b, s, t = a + p * p, b + q * q, s + v * v, t + w * w
        for r in range(fours, rows):
            p = load(x, r, c) - mean
            a = a + p * p
        store(statistics, 0, c, mean)
        store(statistics, 1, c, ((a + b) + (s + t)) * x.dtype.type(1.0 / rows))
    for c in range(STRIP):
        statistics[1, c] = x.dtype.type(1) / math.sqrt(statistics[1, c] + x.dtype.type(EPS))
    for c in range(0, STRIP, LANES):
        mean, per_sd = load(statistics, 0, c), load(statistics, 1, c)
        for r in range(rows):
            store(out, r, column + c, (load(x, r, c) - mean) * per_sd * scale[r] + shift[r])


@kernel
def _activate(x, rows):
    flat = x.reshape(x.size)
    for i in range(rows * STRIP):
        flat[i] = gelu(flat[i])


@kernel
def _after(x, number, attended, layer, wide, also_wide):
    """What follows attention, for the first tokens of a strip: x becomes what the block gives."""
    e = len(layer.w_resid)
    multiply(layer.out_proj[0], attended, layer.out_proj[1], wide, e, number, e)
    _normalise(wide, e, layer.post_norm, wide, 0)
    for r in range(e):
        for c in range(STRIP):
            x[r, c] += wide[r, c]
    _normalise(x, e, layer.fc_norm, wide, 0)
    multiply(layer.fc1[0], wide, layer.fc1[1], also_wide, 4 * e, number, e)
    _activate(also_wide, 4 * e)
    _normalise(also_wide, 4 * e, layer.post_fc_norm, also_wide, 0)
    multiply(layer.fc2[0], also_wide, layer.fc2[1], wide, e, number, 4 * e)
    for r in range(e):
        for c in range(STRIP):
            x[r, c] = wide[r, c] + layer.w_resid[r] * x[r, c]


@kernel
def _softmax(scores, rows, top, per_total):
    """Of each column exp(score - highest), and what these are to be multiplied with: 0 where all are -inf."""
    for c in range(0, STRIP, LANES):
        highest = load(scores, 0, c)
        for r in range(1, rows):
            highest = max(highest, load(scores, r, c))
        store(top, 0, c, max(highest, -np.finfo(scores.dtype).max))
    for r in range(rows):
        for c in range(STRIP):
            d = scores[r, c] - top[0, c]
            e = exp(d) if d > -87 else scores.dtype.type(0)
            scores[r, c] = e if d <= 0 else d  # which is not a number
    for c in range(0, STRIP, LANES):
        total = load(scores, 0, c)
        for r in range(1, rows):
            total = total + load(scores, r, c)
        store(per_total, 0, c, total)
    for c in range(STRIP):
        per_total[0, c] = 0 if per_total[0, c] == 0 else 1 / per_total[0, c]


@kernel
def _transpose(bias, n, first, out):
    """bias[i, j] of the queries i from `first` on to out[j, i - first]; bias: all n x n of a jet, flat."""
    square = bias.reshape(n, n)
    for i in range(first, min(first + STRIP, n), LANES):
        if (i + LANES - 1) * n + (n + LANES - 1) // LANES * LANES <= n * n:  # what lies beyond a row is the next
            for j in range(0, n, LANES):
                transpose(square, i, j, out, j, i - first)
        else:
            for k in range(i, min(i + LANES, n)):
                for j in range(n):
                    out[j, k - first] = square[k, j]


@kernel
def _attend(qkv, column, n, bias, start, heads, s):
    """Attention within a jet, whose constituents are columns of `qkv`, to `s.attended`."""
    e = s.cls.shape[0]
    d = e // heads
    scale = qkv.dtype.type(1.0 / math.sqrt(d))
    top, per_total = s.statistics[:1], s.statistics[1:]
    for h in range(heads):
        keys, values = qkv[e + h * d :, column:].T, qkv[2 * e + h * d :, column:]
        for first in range(0, n, STRIP):
            number = min(STRIP, n - first)
            for r in range(d):
                for c in range(number):
                    s.queries[r, c] = scale * qkv[h * d + r, column + first + c]
            _transpose(bias[h][start : start + n * n], n, first, s.scores)
            multiply(keys, s.queries, None, s.scores, n, number, d)
            _softmax(s.scores, n, top, per_total)
            multiply(values, s.scores, s.zeros, s.of_head, d, number, n)
            for r in range(d):
                for c in range(number):
                    s.attended[h * d + r, column + first + c] = s.of_head[r, c] * per_total[0, c]


@kernel
def _attend_to_tokens(offsets, layer, heads, s):
    """Attention of the class token of each jet to itself and the constituents, to the first strip of `s.attended`.

    k . q = u . (W_k' q) up to what all scores have in common, and the weighted mean of v is W_v times that of u and
    b_v: no keys and values of constituents.
    """
    e, jets = s.cls.shape[0], len(offsets) - 1
    d = e // heads
    scale = s.cls.dtype.type(1.0 / math.sqrt(d))
    matrix, shift = layer.in_proj
    top, per_total = s.statistics[:1], s.statistics[1:]
    own, asked = s.wide, s.also_wide
    _normalise(s.cls, e, layer.norm, own, 0)
    multiply(matrix, s.cls, shift, s.queries, e, jets, e)
    for h in range(heads):
        multiply(matrix[e + h * d :].T, s.queries[h * d :], s.zeros, s.heads[h], e, jets, d)
    for jet in range(jets):
        n, tokens = offsets[jet + 1] - offsets[jet], s.qkv[:, offsets[jet] :]
        for r in range(e):
            for h in range(heads):
                asked[r, h] = scale * s.heads[h, r, jet]
        multiply(tokens.T, asked, s.zeros, s.scores, n, heads, e)
        for h in range(STRIP):
            s.scores[n, h] = 0
        for r in range(e):
            for h in range(heads):
                s.scores[n, h] += own[r, jet] * asked[r, h]
        _softmax(s.scores, n + 1, top, per_total)
        multiply(tokens, s.scores, s.zeros, s.of_head, e, heads, n)
        for h in range(heads):
            for r in range(e):
                s.heads[h, r, jet] = (s.of_head[r, h] + s.scores[n, h] * own[r, jet]) * per_total[0, h]
    for h in range(heads):
        multiply(matrix[2 * e + h * d :], s.heads[h], shift[2 * e + h * d :], s.attended[h * d :], d, jets, e)


@kernel
def _embed(x, first, number, weights, widths, s, out):
    """Constituents first .. first + number through the embedding, to the strip `out`; further columns are of zeros."""
    at = 0
    for r in range(widths[0]):
        for c in range(STRIP):
            s.wide[r, c] = x[first + c, r] if c < number else x.dtype.type(0)
    for i in range(len(widths) - 1):
        a, b = widths[i], widths[i + 1]
        matrix, start = _dense(weights, at + 2 * a, b, a)
        _normalise(s.wide, a, _norm(weights, at, a), s.wide, 0)
        multiply(matrix, s.wide, start, s.also_wide, b, number, a)
        for r in range(b):
            for c in range(STRIP):
                s.wide[r, c] = gelu(s.also_wide[r, c])
        at += 2 * a + b * (a + 1)
    for r in range(out.shape[0]):
        for c in range(STRIP):
            out[r, c] = s.wide[r, c]


@kernel
def _tiles(first, last, x, offsets, starts, bias, weights, tiles, widths, places, heads, layers, cls_layers, out):
    e, most, longest = widths[len(widths) - 1], 0, 0
    for tile in range(first, last):
        most = max(most, offsets[tiles[tile + 1]] - offsets[tiles[tile]])
        for jet in range(tiles[tile], tiles[tile + 1]):
            longest = max(longest, offsets[jet + 1] - offsets[jet])
    strips = (most + STRIP - 1) // STRIP
    columns = (strips + 1) * STRIP + LANES  # products read beyond a jet; no power of 2, whose rows share cache lines
    wide, keys = max(widths.max(), 4 * e), (longest + STRIP) // STRIP * STRIP + STRIP
    s = Scratch(
        np.zeros((strips, e, STRIP), x.dtype),
        np.zeros((3 * e + 8, columns), x.dtype),
        np.zeros((e + 8, columns), x.dtype),
        np.zeros((wide, STRIP), x.dtype),
        np.zeros((wide, STRIP), x.dtype),
        np.zeros((e, STRIP), x.dtype),
        np.zeros((e, STRIP), x.dtype),
        np.zeros((heads, e, STRIP), x.dtype),
        np.zeros((keys, STRIP), x.dtype),
        np.zeros((e, STRIP), x.dtype),
        np.zeros(max(keys, e), x.dtype),
        np.zeros((2, STRIP), x.dtype),
    )
    for tile in range(first, last):
        jets, end = tiles[tile], tiles[tile + 1]
        begin = offsets[jets]
        tokens = offsets[end] - begin
        at, per_block = places
        for strip in range((tokens + STRIP - 1) // STRIP):
            number = min(STRIP, tokens - strip * STRIP)
            _embed(x, begin + strip * STRIP, number, weights, widths, s, s.x[strip])
        for _ in range(layers):
            layer = _layer(weights, at, e)
            for strip in range((tokens + STRIP - 1) // STRIP):
                number = min(STRIP, tokens - strip * STRIP)
                _normalise(s.x[strip], e, layer.norm, s.wide, 0)
                multiply(layer.in_proj[0], s.wide, layer.in_proj[1], s.qkv[:, strip * STRIP :], 3 * e, number, e)
            for jet in range(jets, end):
                n = offsets[jet + 1] - offsets[jet]
                _attend(s.qkv, offsets[jet] - begin, n, bias, starts[jet], heads, s)
            for strip in range((tokens + STRIP - 1) // STRIP):
                number = min(STRIP, tokens - strip * STRIP)
                _after(s.x[strip], number, s.attended[:, strip * STRIP :], layer, s.wide, s.also_wide)
            at += per_block
        for r in range(e):
            for c in range(STRIP):
                s.cls[r, c] = weights[at + r]
        at += e
        for _ in range(cls_layers):
            layer = _layer(weights, at, e)
            for strip in range((tokens + STRIP - 1) // STRIP):
                _normalise(s.x[strip], e, layer.norm, s.qkv, strip * STRIP)
            _attend_to_tokens(offsets[jets : end + 1] - begin, layer, heads, s)
            _after(s.cls, end - jets, s.attended, layer, s.wide, s.also_wide)
            at += per_block
        _normalise(s.cls, e, _norm(weights, at, e), s.cls, 0)
        for jet in range(jets, end):
            for r in range(e):
                out[jet, r] = s.cls[r, jet - jets]
