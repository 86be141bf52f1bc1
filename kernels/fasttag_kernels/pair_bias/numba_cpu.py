"""Numba backend: the pairs i >= j of all jets in one row, cut into tiles (channels, TILE) that pass through the layers.

Where the statistics are known a tile passes all layers at once; where they come from the batch all tiles pass one
layer, whose statistics the next needs. What is kept of a tile are its four features and, of all layers but the first,
which four features make again, z = W h + b; with a = scale z + shift, the BatchNorm, the next h is GELU(a).
"""

import math
from typing import NamedTuple

import numpy as np

from .. import _threads
from .._math import gelu, gelu_and_slope
from .._numba import helper, inputs, kernel
from .._simd import LANES, multiply, transpose
from ..pairwise_features import FEATURES, numba_cpu
from . import EPS, TILE, places, widths_of

BLOCK = 16  # tiles whose sums are added in their order; then the sums of blocks are
CHANNELS = 32  # matrices are padded to a multiple of this many rows and columns, as `multiply` wants them


class Stack(NamedTuple):
    """The layers, padded with zeros. matrices: (L, C, C), all others (L, C)."""

    matrices: np.ndarray  # that of the first layer has the BatchNorm of the features in it
    biases: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    mean: np.ndarray
    per_sd: np.ndarray  # 1 / sqrt(variance + EPS)
    widths: np.ndarray
    at: np.ndarray  # the first row of z of a layer in what is kept of a tile


class Pairs(NamedTuple):
    """Where the pairs of jets begin, and how often they count in the statistics."""

    sizes: np.ndarray
    lower: np.ndarray
    full: np.ndarray
    ordered: bool
    without_self: bool


def run(
    p4,
    offsets,
    pairs,
    weights,
    running,
    statistics,
    last_activation,
    ordered,
    remove_self_pair,
    m2,
    needed,
    out,
    moments,
    covariance,
    kept,
    *,
    threads,
):
    p = _pairs(offsets, ordered, remove_self_pair)
    features = np.empty((4, p.lower[-1]), p4.dtype)
    numba_cpu.run(p4, offsets, features.shape[1], list(FEATURES[:4]), "lower", m2, features, threads=threads)
    widths, tiles = widths_of(weights), -(-features.shape[1] // TILE)
    kept[tiles:] = 0

    def through(begin, end, finish, sums):
        stack = _stack(weights, moments, p4.dtype)
        arguments = features, stack, p, begin, end, finish, last_activation, kept, sums, out
        _threads.over(tiles, threads, _layers, *arguments)

    total = _total(p)
    if statistics == "running" or total == 0:
        moments[:] = (np.concatenate(running[::2]), np.concatenate(running[1::2])) if statistics == "running" else 0
        covariance[:] = 0
        through(1, len(widths), True, np.empty((0, 3, 0)))
        return
    if not any(needed):
        kept = np.empty((tiles, places(widths)[-1], TILE), p4.dtype)
    moments[0], moments[1] = 0, 1
    mean, found = _moments_of_features(features, p, tiles, total, threads)
    moments[:, :4], covariance[:] = (mean, np.diag(found)), found
    gamma, beta, matrix, bias = (w.astype(np.float64) for w in weights[:4])
    turned = matrix * (gamma * _per_sd(moments[1, :4]))
    start = 4 + widths[0]
    moments[:, 4:start] = matrix @ beta + bias, ((turned @ covariance) * turned).sum(1)
    for layer in range(1, len(widths)):
        sums = np.empty((tiles, 3, widths[layer]))
        through(layer, layer + 1, False, sums)
        means, squares, number = sums.transpose(1, 0, 2)
        mean = (number * means).sum(0) / total
        variance = (squares + number * (means - mean) ** 2).sum(0) / total
        moments[:, start : start + widths[layer]] = mean, variance
        start += widths[layer]
    through(len(widths), len(widths), True, np.empty((0, 3, 0)))


def backward(
    gradient,
    p4,
    offsets,
    pairs,
    weights,
    running,
    statistics,
    last_activation,
    ordered,
    remove_self_pair,
    m2,
    needed,
    moments,
    covariance,
    kept,
    grad_p4,
    grad_weights,
    *,
    threads,
):
    if not needed[1]:
        grad_weights = [np.empty(weight.shape, weight.dtype) for weight in weights]
    p, stack = _pairs(offsets, ordered, remove_self_pair), _stack(weights, moments, p4.dtype)
    scale, _, mean, per_sd = _affine(weights, moments)
    widths, tiles, channels = widths_of(weights), -(-int(p.lower[-1]) // TILE), scale.shape[1]
    per_pair = 1 / max(_total(p), 1) if statistics == "batch" else 0.0  # known statistics do not follow the pairs
    blocks = -(-tiles // BLOCK)
    flow = np.empty((tiles, channels, TILE), p4.dtype)  # the gradient in a of one layer
    sums, products = np.empty((blocks, 5, channels)), np.zeros((blocks, channels, channels))
    transposed = np.ascontiguousarray(stack.matrices.transpose(0, 2, 1))
    center = moments[0, :4].astype(p4.dtype)
    _threads.over(blocks, threads, _head, *inputs(gradient), stack, p, last_activation, kept, flow, sums)
    for layer in range(len(widths) - 1, 0, -1):
        here, below = slice(widths[layer]), slice(widths[layer - 1])
        total = sums.sum(0)
        pull = _pull(total, scale[layer], per_sd[layer], per_pair, p4.dtype)
        products[:] = 0
        arguments = layer, transposed[layer], center, pull, stack, p, kept, flow, products, sums
        _threads.over(blocks, threads, _down, *arguments)
        grad_weights[2 + 4 * layer][:] = products.sum(0)[here, below]
        grad_weights[3 + 4 * layer][:] = 0 if per_pair else (scale[layer] * total[0])[here]
        grad_weights[4 + 4 * layer][:], grad_weights[5 + 4 * layer][:] = total[1, here], total[0, here]
    # the first layer by the sums with its four features, centred: dz = scale (da - count (S0 + zhat S1) per_pair)
    here = slice(widths[0])
    gamma, beta, matrix, bias = (w.astype(np.float64) for w in weights[:4])
    total = sums.sum(0)[:, here]
    per_sd_of_features = _per_sd(moments[1, :4])
    spread = gamma * per_sd_of_features
    turned = per_sd[0, here, None] * matrix * spread  # zhat = turned (f - mean) + beside
    beside = (matrix @ beta + bias - mean[0, here]) * per_sd[0, here]
    by_features, by_all = total[1:].T, total[0]
    d_gamma = (turned * by_features).sum(1) + beside * by_all
    pull = _pull(np.stack([by_all, d_gamma]), scale[0, here], per_sd[0, here], per_pair, p4.dtype)
    if per_pair:
        by_features = by_features - d_gamma[:, None] * (turned @ covariance)
        by_all = np.zeros_like(by_all)
    by_features, by_all = scale[0, here, None] * by_features, scale[0, here] * by_all
    grad_weights[2][:] = by_features * spread + by_all[:, None] * beta
    grad_weights[3][:], grad_weights[4][:], grad_weights[5][:] = by_all, d_gamma, total[0]
    of_features = per_sd_of_features * (matrix * by_features).sum(0)
    grad_weights[0][:], grad_weights[1][:] = of_features, by_all @ matrix
    if needed[0]:
        grad_p4[:] = 0
        by_pairs = np.empty((4, p.lower[-1]), p4.dtype)
        pull_of_features = (spread * per_sd_of_features * of_features * per_pair).astype(p4.dtype)
        passed = transposed[0], center, pull, pull_of_features, stack, p, kept, flow, by_pairs
        _threads.over(tiles, threads, _to_features, *passed)
        settings = by_pairs.shape[1], list(FEATURES[:4]), "lower", m2
        numba_cpu.backward(by_pairs, p4, offsets, *settings, grad_p4, threads=threads)


def _pairs(offsets, ordered, remove_self_pair):
    sizes = np.diff(offsets)
    starts = np.zeros((2, len(offsets)), np.int64)
    np.cumsum(sizes * (sizes + 1) // 2, out=starts[0, 1:])
    np.cumsum(sizes * sizes, out=starts[1, 1:])
    return Pairs(sizes, starts[0], starts[1], ordered, remove_self_pair)


def _total(p):
    """How many pairs the statistics count."""
    selves = int(p.sizes.sum())
    return (0 if p.without_self else selves) + (2 if p.ordered else 1) * (int(p.lower[-1]) - selves)


def _per_sd(variance):
    return 1 / np.sqrt(variance + EPS)


def _affine(weights, moments):
    """scale, shift, mean, per_sd of the BatchNorm of each layer, padded, in float64: (4, L, C)."""
    widths = widths_of(weights)
    padded = np.zeros((4, len(widths), -(-max(widths) // CHANNELS) * CHANNELS))
    padded[3] = 1
    start = 4
    for layer, width in enumerate(widths):
        padded[:2, layer, :width] = weights[4 + 4 * layer], weights[5 + 4 * layer]
        padded[2:, layer, :width] = moments[:, start : start + width]
        start += width
    gamma, beta, mean, variance = padded
    per_sd = _per_sd(variance)
    scale = gamma * per_sd
    return np.stack([scale, beta - scale * mean, mean, per_sd])


def _stack(weights, moments, dtype):
    widths, (scale, shift, mean, per_sd) = widths_of(weights), _affine(weights, moments).astype(dtype)
    channels = scale.shape[1]
    matrices, biases = np.zeros((len(widths), channels, channels), dtype), np.zeros((len(widths), channels), dtype)
    for layer, width in enumerate(widths):
        matrix = weights[2 + 4 * layer]
        matrices[layer, :width, : matrix.shape[1]] = matrix
        biases[layer, :width] = weights[3 + 4 * layer]
    gamma, beta, matrix, bias = (w.astype(np.float64) for w in weights[:4])
    spread = gamma * _per_sd(moments[1, :4])
    matrices[0, : widths[0], :4] = matrix * spread
    biases[0, : widths[0]] = bias + matrix @ (beta - spread * moments[0, :4])
    return Stack(matrices, biases, scale, shift, mean, per_sd, np.array(widths), np.array(places(widths)))


def _moments_of_features(features, p, tiles, total, threads):
    """Mean and covariance: once around the first pair, then around the mean."""
    center = features[:, 0].astype(np.float64) if tiles else np.zeros(4)
    for _ in range(2):
        sums = np.zeros((tiles, 4, 5))
        _threads.over(tiles, threads, _products_of_features, features, p, center, sums)
        sums = sums.sum(0) / total
        off = sums[:, 4]
        center = center + off
    return center, sums[:, :4] - np.outer(off, off)


def _pull(total, scale, per_sd, per_pair, dtype):
    """What the mean and the variance of a batch take from the gradient of each of its pairs, dz -= a + b (z - mean)."""
    return (scale * per_pair * np.stack([total[0], per_sd * total[1]])).astype(dtype)


@helper
def _walk(k, size, p, there, mirrored, count):
    """Of pairs k.. : where they are among all n^2, also the other way round, and how often they count."""
    jet = np.searchsorted(p.lower, k, side="right") - 1
    n, start = p.sizes[jet], p.full[jet]
    r = k - p.lower[jet]
    i = int((math.sqrt(8.0 * r + 1.0) - 1.0) / 2.0)
    if i * (i + 1) // 2 > r:
        i -= 1
    j = r - i * (i + 1) // 2
    for c in range(size):
        there[c] = start + i * n + j
        mirrored[c] = start + j * n + i
        count[c] = (0 if p.without_self else 1) if i == j else (2 if p.ordered else 1)
        j += 1
        if j > i:
            i, j = i + 1, 0
            if i == n and c + 1 < size:
                jet += 1
                while p.sizes[jet] == 0:
                    jet += 1
                n, start, i = p.sizes[jet], p.full[jet], 0
    for c in range(size, TILE):
        count[c] = 0


@kernel
def _products_of_features(first, last, features, p, center, sums):
    """To sums[tile, a, b] those of (f_a - center_a) (f_b - center_b), with f_4 = 1 for the latter."""
    there, mirrored, count = np.empty(TILE, np.int64), np.empty(TILE, np.int64), np.empty(TILE)
    f = np.empty((5, TILE))
    for t in range(first, last):
        size = min(TILE, features.shape[1] - t * TILE)
        _walk(t * TILE, size, p, there, mirrored, count)
        for a in range(4):
            for c in range(size):
                f[a, c] = features[a, t * TILE + c] - center[a]
        for c in range(size):
            f[4, c] = 1.0
        for a in range(4):
            for b in range(5):
                total = 0.0
                for c in range(size):
                    total += count[c] * f[a, c] * f[b, c]
                sums[t, a, b] = total


@helper
def _activate(z, at, rows, scale, shift, h):
    for r in range(rows):
        for c in range(TILE):
            h[r, c] = gelu(scale[r] * z[at + r, c] + shift[r])


@helper
def _activate_with_slope(z, at, rows, scale, shift, h, slope):
    for r in range(rows):
        for c in range(TILE):
            h[r, c], slope[r, c] = gelu_and_slope(scale[r] * z[at + r, c] + shift[r])


@helper
def _first_layer(tile, s, z):
    multiply(s.matrices[0], tile, s.biases[0], z, s.widths[0], TILE, 4)


@kernel
def _moments(z, at, rows, count, sums):
    """Mean, squares around it and number of each row, around a value of the row."""
    for r in range(rows):
        pivot = np.float64(z[at + r, 0])
        number = total = squares = 0.0
        for c in range(TILE):
            x, weight = z[at + r, c] - pivot, np.float64(count[c])
            number += weight
            total += weight * x
            squares += weight * x * x
        mean = total / number if number > 0.0 else 0.0
        sums[0, r] = pivot + mean
        sums[1, r] = squares - mean * total
        sums[2, r] = number


@kernel
def _layers(first, last, features, s, p, begin, end, finish, last_activation, kept, sums, out):
    """Tiles through layers begin..end, and on to the bias if they finish."""
    channels, depth = s.matrices.shape[1], len(s.widths)
    heads = s.widths[depth - 1]
    own = np.empty((s.at[depth], TILE), features.dtype)
    z, h = np.zeros((channels, TILE), features.dtype), np.zeros((channels, TILE), features.dtype)
    there, mirrored, count = np.empty(TILE, np.int64), np.empty(TILE, np.int64), np.empty(TILE)
    for t in range(first, last):
        tile = kept[t] if len(kept) > 0 else own
        size = min(TILE, features.shape[1] - t * TILE)
        if begin == 1:
            for r in range(4):
                for c in range(size):
                    tile[r, c] = features[r, t * TILE + c]
                for c in range(size, TILE):
                    tile[r, c] = 0
        if finish or len(sums) > 0:
            _walk(t * TILE, size, p, there, mirrored, count)
        for layer in range(begin, end):
            below, width = s.widths[layer - 1], s.widths[layer]
            if layer == 1:
                _first_layer(tile, s, z)
                _activate(z, 0, below, s.scale[0], s.shift[0], h)
            else:
                _activate(tile, s.at[layer - 1], below, s.scale[layer - 1], s.shift[layer - 1], h)
            multiply(s.matrices[layer], h, s.biases[layer], tile[s.at[layer] :], width, TILE, below)
            if len(sums) > 0:
                _moments(tile, s.at[layer], width, count, sums[t])
        if finish:
            at, scale, shift = s.at[depth - 1], s.scale[depth - 1], s.shift[depth - 1]
            if last_activation:
                _activate(tile, at, heads, scale, shift, h)
            else:
                for r in range(heads):
                    for c in range(TILE):
                        h[r, c] = scale[r] * tile[at + r, c] + shift[r]
            for r in range(heads):
                for c in range(size):
                    value = h[r, c] if count[c] > 0 else 0
                    out[r, there[c]] = value
                    out[r, mirrored[c]] = value


@kernel
def _sum(flow, z, at, rows, mean, per_sd, sums):
    """Of each row the gradient in a, and that times zhat."""
    for r in range(rows):
        by_all = by_z = 0.0
        for c in range(TILE):
            d = np.float64(flow[r, c])
            by_all += d
            by_z += d * (np.float64(z[at + r, c]) - mean[r])
        sums[0, r] += by_all
        sums[1, r] += per_sd[r] * by_z


@kernel
def _sum_by_features(flow, tile, rows, center, sums):
    for r in range(rows):
        by_all = by_0 = by_1 = by_2 = by_3 = 0.0
        for c in range(TILE):
            d = np.float64(flow[r, c])
            by_all += d
            by_0 += d * (tile[0, c] - center[0])
            by_1 += d * (tile[1, c] - center[1])
            by_2 += d * (tile[2, c] - center[2])
            by_3 += d * (tile[3, c] - center[3])
        sums[0, r] += by_all
        sums[1, r] += by_0
        sums[2, r] += by_1
        sums[3, r] += by_2
        sums[4, r] += by_3


@helper
def _normalise(flow, z, at, rows, scale, mean, pull, count, dz):
    """The gradient in z from that in a."""
    for r in range(rows):
        for c in range(TILE):
            dz[r, c] = scale[r] * flow[r, c] - count[c] * (pull[0, r] + pull[1, r] * (z[at + r, c] - mean[r]))


@kernel
def _head(first, last, gradient, s, p, last_activation, kept, flow, sums):
    """From the gradient in the bias, both of its halves, to that in a of the last layer; blocks of tiles."""
    depth = len(s.widths)
    heads, at = s.widths[depth - 1], s.at[depth - 1]
    h, slope = np.empty((heads, TILE), flow.dtype), np.ones((heads, TILE), flow.dtype)
    there, mirrored, count = np.empty(TILE, np.int64), np.empty(TILE, np.int64), np.empty(TILE, flow.dtype)
    for block in range(first, last):
        sums[block] = 0
        for t in range(block * BLOCK, min((block + 1) * BLOCK, len(flow))):
            size = min(TILE, p.lower[len(p.lower) - 1] - t * TILE)
            _walk(t * TILE, size, p, there, mirrored, count)
            if last_activation:
                _activate_with_slope(kept[t], at, heads, s.scale[depth - 1], s.shift[depth - 1], h, slope)
            for r in range(heads):
                for c in range(size):
                    d = gradient[r, there[c]]
                    if mirrored[c] != there[c]:
                        d += gradient[r, mirrored[c]]
                    flow[t, r, c] = d * slope[r, c] if count[c] > 0 else 0
                for c in range(size, TILE):
                    flow[t, r, c] = 0
            _sum(flow[t], kept[t], at, heads, s.mean[depth - 1], s.per_sd[depth - 1], sums[block])


@kernel
def _down(first, last, layer, transposed, center, pull, s, p, kept, flow, products, sums):
    """From the gradient in a of a layer to that of its matrix and to a of the layer below; blocks of tiles."""
    channels = transposed.shape[0]
    z, h = np.zeros((channels, TILE), flow.dtype), np.zeros((channels, TILE), flow.dtype)
    dz, dh = np.zeros((channels, TILE), flow.dtype), np.zeros((channels, TILE), flow.dtype)
    slope = np.zeros((channels, TILE), flow.dtype)
    turned, product = np.empty((TILE, channels), flow.dtype), np.empty((channels, channels), flow.dtype)
    nothing = np.zeros(channels, flow.dtype)
    there, mirrored, count = np.empty(TILE, np.int64), np.empty(TILE, np.int64), np.empty(TILE, flow.dtype)
    width, below = s.widths[layer], s.widths[layer - 1]
    for block in range(first, last):
        sums[block] = 0
        for t in range(block * BLOCK, min((block + 1) * BLOCK, len(flow))):
            _walk(t * TILE, min(TILE, p.lower[len(p.lower) - 1] - t * TILE), p, there, mirrored, count)
            _normalise(flow[t], kept[t], s.at[layer], width, s.scale[layer], s.mean[layer], pull, count, dz)
            scale, shift = s.scale[layer - 1], s.shift[layer - 1]
            if layer == 1:
                _first_layer(kept[t], s, z)
                _activate_with_slope(z, 0, below, scale, shift, h, slope)
            else:
                _activate_with_slope(kept[t], s.at[layer - 1], below, scale, shift, h, slope)
            for r in range(0, below, LANES):
                for c in range(0, TILE, LANES):
                    transpose(h, r, c, turned, c, r)
            multiply(dz, turned, nothing, product, width, below, TILE)
            for r in range(width):
                for c in range(below):
                    products[block, r, c] += product[r, c]
            multiply(transposed, dz, nothing, dh, below, TILE, width)
            for r in range(below):
                for c in range(TILE):
                    flow[t, r, c] = dh[r, c] * slope[r, c]
            if layer == 1:
                _sum_by_features(flow[t], kept[t], below, center, sums[block])
            else:
                _sum(flow[t], kept[t], s.at[layer - 1], below, s.mean[layer - 1], s.per_sd[layer - 1], sums[block])


@kernel
def _to_features(first, last, transposed, center, pull, pull_of_features, s, p, kept, flow, by_pairs):
    channels = transposed.shape[0]
    z, dz = np.zeros((channels, TILE), flow.dtype), np.zeros((channels, TILE), flow.dtype)
    by_tile, nothing = np.empty((8, TILE), flow.dtype), np.zeros(channels, flow.dtype)
    there, mirrored, count = np.empty(TILE, np.int64), np.empty(TILE, np.int64), np.empty(TILE, flow.dtype)
    for t in range(first, last):
        size = min(TILE, p.lower[len(p.lower) - 1] - t * TILE)
        _walk(t * TILE, size, p, there, mirrored, count)
        _first_layer(kept[t], s, z)
        _normalise(flow[t], z, 0, s.widths[0], s.scale[0], s.mean[0], pull, count, dz)
        multiply(transposed, dz, nothing, by_tile, 4, TILE, s.widths[0])
        for r in range(4):
            for c in range(size):
                pulled = count[c] * (kept[t, r, c] - center[r]) * pull_of_features[r]
                by_pairs[r, t * TILE + c] = by_tile[r, c] - pulled
