"""Numba backend: tiles of edges pass through the layers, products by `_simd.multiply`. See README.md."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .. import _threads
from .._numba import helper, inputs, kernel
from .._simd import LANES, load, multiply, store, transpose, turn
from . import COLUMNS, ROWS, layers_of, loops, up

EPS = 1e-5
TILE = 1 << 17  # bytes of a tile of edges, about: two and a matrix stay in a second-level cache of 1 MB
NODES = 128  # constituents of a tile of the products without edges
PIECE = 256  # edges whose products are summed one after the other, before they are added to those of others
NO_SUMS = np.empty((0, 2, 0))
TILES, BLOCKS = (
    16,
    64,
)  # gradients of matrices are summed per block of TILES tiles, or of more for at most BLOCKS blocks


class Matrices(NamedTuple):
    """Of the products, as these take them: padded with zeros."""

    nodes: np.ndarray  # [W_a, W_b, W of the shortcut]^T
    side: int  # the column of W_b
    turned: np.ndarray  # (L - 1, C, C) W^T of layers 1, 2, ...; the first is layer 0
    widths: np.ndarray  # of all layers


class Graph(NamedTuple):
    """Constituents and edges of all jets, the products that do not need edges, and the matrices of those that do."""

    x: np.ndarray  # (rows and zeros, C), padded: at least one row of zeros
    near: np.ndarray  # (rows, k) row of each neighbour, -1 for none
    nodes: np.ndarray  # (rows and zeros, ...): (W_a - W_b) x, W_b x and, of the shortcut, W x, each padded
    turned: np.ndarray  # (L - 1, C, C) W^T of layers 1, 2, ...; the first is layer 0
    widths: np.ndarray  # of all layers
    side: int  # the column of nodes where W_b x begins
    points: int  # constituents of a tile


class Room(NamedTuple):
    """For products over edges."""

    turned: np.ndarray
    part: np.ndarray
    zeros: np.ndarray


class Norms(NamedTuple):
    """BN(z) = z scale + shift, with scale = gamma inverse; (normalisations, C), padded with zeros."""

    scale: np.ndarray
    shift: np.ndarray
    mean: np.ndarray
    inverse: np.ndarray  # of the standard deviation, float64

    def gradient(self, layer: int, sums: np.ndarray, count: float) -> tuple[np.ndarray, ...]:
        """In gamma and beta; constant and slope of the gradient in z, scale g + constant + slope (z - mean).

        sums : of g and of g (z - mean), with g the gradient behind the normalisation.
        count : of the values that made the statistics; infinite where these were given.
        """
        here = slice(sums.shape[1])
        dtype, scale, inverse = self.scale.dtype, self.scale[layer, here], self.inverse[layer, here]
        constant = -scale * sums[0] / max(count, 1)
        slope = -scale * inverse**2 * sums[1] / max(count, 1)
        return sums[1] * inverse, sums[0], constant.astype(dtype), slope.astype(dtype)


def run(x, neighbours, offsets, weights, running, statistics, padded, missing, needed, out, moments, kept, *, threads):
    out[: offsets[0]] = out[offsets[-1] :] = 0
    graph = _graph(x, neighbours, offsets, _matrices(x.shape[1], weights), missing, threads)
    layers = len(graph.widths)
    if statistics == "running":
        norms, z = _norms(weights, running[::2], running[1::2], graph.turned), _split(kept, graph)
    else:
        z = _split(kept if len(kept) else np.empty(_size(graph), x.dtype), graph)
        means, variances, counts = _batch(graph, weights, _zeros(offsets, padded), z, threads)
        moments[0], moments[1], moments[2] = map(np.concatenate, (means, variances, counts))
        norms = _norms(weights, means, variances, graph.turned)
    begin = 1 if statistics == "running" else layers
    inside = out[offsets[0] : offsets[-1]]
    _through(graph, norms, begin, layers, z, threads, NO_SUMS, _added(graph, norms), inside)
    if len(kept):  # the same bits each time, where products left something behind, or nothing
        kept[_size(graph) :] = 0
        z[:, graph.near.size :] = 0
        for layer, width in enumerate(graph.widths[1:]):
            z[layer, :, width:] = 0


def prepare(channels, weights, running):
    """Matrices and, with running statistics, normalisations: all that a call makes of the weights alone."""
    matrices = _matrices(channels, weights)
    return matrices, _norms(weights, running[::2], running[1::2], matrices.turned)


def _through(graph, norms, begin, end, z, threads, sums, added, out):
    norms = norms.scale, norms.shift
    _threads.over(_tiles(graph), threads, through_layers, graph, *norms, begin, end, z, sums, *added, out)


def _tiles(graph):
    return -(-len(graph.near) // graph.points)


def _size(graph):
    return (len(graph.widths) - 1) * up(graph.near.size, ROWS) * graph.turned.shape[2]


def _split(kept, graph):
    """(L - 1, edges, C) of every layer but the first, whose z comes from the nodes; (0, edges, C) of nothing."""
    rows, channels = up(graph.near.size, ROWS), graph.turned.shape[2]
    layers = len(graph.widths) - 1 if len(kept) else 0
    return kept[: layers * rows * channels].reshape(layers, rows, channels)


def _zeros(offsets, padded):
    """Rows of zeros that count in the statistics."""
    return padded * (len(offsets) - 1) - int(offsets[-1] - offsets[0]) if padded else 0


def _matrices(channels, weights):
    layers, dtype = layers_of(channels, weights), weights[0].dtype
    widths = [len(weights[3 * layer]) for layer in range(layers)]
    turned = np.zeros((layers - 1, up(max(widths), COLUMNS), up(max(widths), COLUMNS)), dtype)
    for layer in range(1, layers):
        _turn(*inputs(weights[3 * layer]), 0, weights[3 * layer].shape[1], turned[layer - 1], 0)
    side = up(widths[0], COLUMNS)
    shortcut = weights[-3:-2] if len(weights) > 3 * layers else []
    nodes = np.zeros((channels, 2 * side + sum(up(len(w), COLUMNS) for w in shortcut)), dtype)
    _turn(*inputs(weights[0]), 0, channels, nodes, 0)
    _turn(*inputs(weights[0]), channels, 2 * channels, nodes, side)
    for matrix in shortcut:
        _turn(*inputs(matrix), 0, channels, nodes, 2 * side)
    return Matrices(nodes, side, turned, np.array(widths))


def _graph(x, neighbours, offsets, matrices, missing, threads):
    x, neighbours, offsets = inputs(x, neighbours, offsets)
    channels, (weight, side, turned, widths) = x.shape[1], matrices
    first, last, k = offsets[0], offsets[-1], neighbours.shape[1]
    rows = int(last - first)
    near = np.empty((rows, k), np.int32)
    ghost = rows if missing == "ghost" else -1
    _threads.over(len(offsets) - 1, threads, loops.locate, neighbours, offsets, ghost, near)
    enough = np.zeros((up(rows + 1, ROWS), up(channels, COLUMNS)), x.dtype)
    enough[:rows, :channels] = x[first:last]
    nodes = np.empty((len(enough), weight.shape[1]), x.dtype)
    _threads.over(-(-(rows + 1) // NODES), threads, make_nodes, enough, rows + 1, channels, weight, side, nodes)
    return Graph(enough, near, nodes, turned, widths, side, points_of_tile(k, turned.shape[2], x.itemsize))


def points_of_tile(k, channels, itemsize):
    """So many that a tile has whole blocks of ROWS edges."""
    step = ROWS // math.gcd(ROWS, k)
    return step * max(1, TILE // (step * k * channels * itemsize))


def _norms(weights, means, variances, turned):
    """Of as many normalisations as there are means."""
    count, channels = len(means), turned.shape[2]
    found, inverse = np.zeros((3, count, channels), turned.dtype), np.zeros((count, channels))
    if count:
        given = *weights[1 : 3 * count : 3], *weights[2 : 3 * count : 3], *means, *variances
        _affine(np.concatenate(given, dtype=np.float64), np.array([len(mean) for mean in means]), found, inverse)
    return Norms(found[0], found[1], found[2], inverse)


def _added(graph, norms):
    """The shortcut: where its products lie, from which column on, scale and shift."""
    if len(norms.scale) > len(graph.widths):
        return graph.nodes, 2 * graph.side, norms.scale[-1], norms.shift[-1]
    ones = np.ones(graph.x.shape[1], graph.x.dtype)
    return graph.x, 0, ones, 0 * ones


def _batch(graph, weights, zeros, z, threads):
    """Moments of all normalisations, the layers one after the other: each needs the moments of the one before."""
    rows, edges = len(graph.near), int((graph.near >= 0).sum())
    zero_edges, zero = zeros * graph.near.shape[1], np.zeros(graph.widths[0])
    means: list[np.ndarray] = []
    variances: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    norms = _norms(weights, [], [], graph.turned)
    for layer, width in enumerate(graph.widths):
        if layer:
            zero = _hidden(zero, norms, layer - 1) @ weights[3 * layer].T
        sums = np.zeros((_tiles(graph), 2, width))
        nowhere = graph.x, 0, graph.x[0], graph.x[0]
        _through(graph, norms, layer, layer + 1, z, threads, sums, nowhere, graph.x[:0])
        total = sums.sum(0) + zero_edges * np.array([zero, zero**2])
        _note(total, edges + zero_edges, means, variances, counts)
        norms = _norms(weights, means, variances, graph.turned)
    if len(weights) > 3 * len(graph.widths):
        products = graph.nodes[:rows, 2 * graph.side :][:, : len(weights[-3])].astype(np.float64)
        _note(np.array([products.sum(0), (products**2).sum(0)]), rows + zeros, means, variances, counts)
    return means, variances, counts


def _note(sums, count, means, variances, counts):
    mean, square = sums / max(count, 1)
    means.append(mean)
    variances.append(np.maximum(square - mean**2, 0))
    counts.append(np.full(len(mean), count))


def _hidden(z, norms, layer):
    here = layer, slice(len(z))
    return np.maximum(z * norms.scale[here] + norms.shift[here], 0)


@kernel
def _turn(matrix, begin, end, turned, column):
    turn(matrix, begin, end, turned, column)


@kernel
def _affine(given, sizes, found, inverse):
    """given : gamma of all normalisations, then beta, mean and variance."""
    at, total = 0, len(given) // 4
    for layer in range(len(sizes)):
        for c in range(sizes[layer]):
            gamma, beta, mean, variance = given[at], given[at + total], given[at + 2 * total], given[at + 3 * total]
            inverse[layer, c] = 1 / np.sqrt(variance + EPS)
            scale = gamma * inverse[layer, c]
            found[0, layer, c], found[1, layer, c], found[2, layer, c] = scale, beta - mean * scale, mean
            at += 1


@kernel
def make_nodes(first, last, x, count, channels, weight, side, nodes):
    zeros = np.zeros(NODES, x.dtype)
    for a in range(first * NODES, last * NODES, NODES):
        rows = min(NODES, count - a)
        multiply(x[a:], weight, zeros, nodes[a:], rows, nodes.shape[1], channels)
        for i in range(a, a + rows):
            for c in range(0, side, LANES):
                store(nodes, i, c, load(nodes, i, c) - load(nodes, i, side + c))


@kernel
def through_layers(first, last, graph, scales, shifts, begin, end, kept, sums, added, column, scale, shift, out):
    """Tiles through layers begin..end: z is kept, the last summed, or on to the result, where there is room for it."""
    k, channels = graph.near.shape[1], graph.turned.shape[2]
    room = np.empty((2, graph.points * k, channels), graph.nodes.dtype)
    zeros = np.zeros(graph.points * k, graph.nodes.dtype)
    h = room[1]
    for t in range(first, last):
        a, b = t * graph.points, min((t + 1) * graph.points, len(graph.near))
        rows = (b - a) * k
        z = kept[begin - 2, a * k :] if begin > 1 and len(kept) > 0 else room[0]
        if begin < 2:
            loops.edges(a, b, graph.nodes, graph.side, graph.near, graph.widths[0], z)
        for layer in range(max(begin, 1), end):
            below, width = graph.widths[layer - 1], graph.widths[layer]
            loops.activate(rows, below, z, scales[layer - 1], shifts[layer - 1], h)
            z = kept[layer - 1, a * k :] if len(kept) > 0 else room[0]
            multiply(h, graph.turned[layer - 1], zeros, z, rows, width, below)
        if len(sums) > 0:
            loops.moments(a, b, z, graph.near, sums[t])
        if len(out) > 0:
            loops.pool(a, b, z, graph.near, scales[end - 1], shifts[end - 1], added, column, scale, shift, out)


def backward(gradient, x, neighbours, offsets, weights, running, statistics, padded, missing, needed, moments, kept,
             grad_x, grad_weights, *, threads):  # fmt: skip
    if not needed[0]:
        grad_x = np.empty(x.shape, x.dtype)
    if not needed[1]:
        grad_weights = [np.empty(weight.shape, weight.dtype) for weight in weights]
    given = statistics == "running"
    graph = _graph(x, neighbours, offsets, _matrices(x.shape[1], weights), missing, threads)
    layers, sizes = len(graph.widths), [len(gamma) for gamma in weights[1::3]]
    if given:
        means, variances, counts = running[::2], running[1::2], [math.inf] * len(sizes)
    else:
        ends = np.cumsum(sizes)
        means, variances = (np.split(row, ends[:-1]) for row in moments[:2])
        counts = list(moments[2, ends - 1])
    norms, z = _norms(weights, means, variances, graph.turned), _split(kept, graph)

    top = np.empty((len(graph.near), sizes[-1]), x.dtype)
    _through(graph, norms, layers, layers, z, threads, NO_SUMS, _added(graph, norms), top)
    top = np.where(top > 0, gradient[offsets[0] : offsets[-1]], x.dtype.type(0))
    zeros, offsets_inside = _zeros(offsets, padded), offsets - offsets[0]
    flow, pull = _edges_backward(graph, weights, norms, counts, z, top, zeros, grad_weights, threads)
    grad_nodes = np.zeros(graph.nodes.shape, x.dtype)
    arguments = flow, offsets_inside, graph.near, graph.nodes, graph.side, *(array[0] for array in norms[:3]), *pull
    _threads.over(len(offsets) - 1, threads, loops.collect, *arguments, grad_nodes)
    if len(sizes) > layers:
        _shortcut_backward(graph, norms, counts[-1], top, grad_weights, grad_nodes)
    _nodes_backward(graph, weights, grad_nodes, grad_x[offsets[0] : offsets[-1]], grad_weights, threads)
    grad_x[: offsets[0]] = grad_x[offsets[-1] :] = 0
    if len(sizes) == layers:
        grad_x[offsets[0] : offsets[-1]] += top


def _edges_backward(graph, weights, norms, counts, kept, top, zeros, grad_weights, threads):
    """Layers L .. 1, `flow` being the gradient behind the normalisation of each; that of layer 0, and its pull."""
    rows, channels = up(graph.near.size, ROWS), graph.turned.shape[2]
    widths, dtype, zero_edges = graph.widths, top.dtype, zeros * graph.near.shape[1]
    zero = [np.zeros(widths[0])]  # z of an edge of padded rows, and the gradient behind its normalisation
    for layer in range(1, len(widths)):
        zero.append(_hidden(zero[-1], norms, layer - 1) @ weights[3 * layer].T)
    zero_flow = np.zeros(widths[-1])

    flow = np.empty((rows, channels), dtype)
    sums = np.zeros((_tiles(graph), 2, widths[-1]))
    _threads.over(_tiles(graph), threads, _top, graph, norms, kept, top, flow, sums)
    total = sums.sum(0)
    size = max(TILES, -(-_tiles(graph) // BLOCKS))
    blocks = -(-_tiles(graph) // size)
    for layer in range(len(widths) - 1, 0, -1):
        *found, constant, slope = norms.gradient(layer, total, counts[layer])
        grad_weights[3 * layer + 1][:], grad_weights[3 * layer + 2][:] = found
        sums = np.zeros((_tiles(graph), 2, widths[layer - 1]))
        products, below = np.zeros((blocks, channels, channels), dtype), np.empty((rows, channels), dtype)
        matrix = np.zeros((widths[layer], channels), dtype)
        matrix[:, : widths[layer - 1]] = weights[3 * layer]
        arguments = size, layer, graph, norms, constant, slope, matrix, kept, flow, below, sums, products
        _threads.over(blocks, threads, _down, *arguments)
        flow = below
        total, product = sums.sum(0), products.sum(0, dtype=np.float64)[: widths[layer], : widths[layer - 1]]
        if zero_edges:
            at, before = (layer, slice(widths[layer])), (layer - 1, slice(widths[layer - 1]))
            open_ = zero[layer] * norms.scale[at] + norms.shift[at] > 0
            slope_flow = norms.scale[at] * zero_flow * open_ + constant + slope * (zero[layer] - norms.mean[at])
            product += zero_edges * np.outer(slope_flow, _hidden(zero[layer - 1], norms, layer - 1))
            zero_flow = slope_flow @ weights[3 * layer]
            g = zero_flow * (zero[layer - 1] * norms.scale[before] + norms.shift[before] > 0)
            total += zero_edges * np.array([g, g * (zero[layer - 1] - norms.mean[before])])
        grad_weights[3 * layer][:] = product
    *found, constant, slope = norms.gradient(0, total, counts[0])
    grad_weights[1][:], grad_weights[2][:] = found
    return flow, (constant, slope)


def _shortcut_backward(graph, norms, count, top, grad_weights, grad_nodes):
    columns = slice(2 * graph.side, 2 * graph.side + top.shape[1])
    here = -1, slice(top.shape[1])
    centred = graph.nodes[: len(top), columns] - norms.mean[here]
    sums = np.array([top.sum(0, dtype=np.float64), (top * centred).sum(0, dtype=np.float64)])
    *found, constant, slope = norms.gradient(-1, sums, count)
    grad_weights[-2][:], grad_weights[-1][:] = found
    grad_nodes[: len(top), columns] = norms.scale[here] * top + constant + slope * centred


def _nodes_backward(graph, weights, grad_nodes, grad_x, grad_weights, threads):
    """The gradient in x, and in the matrices of the nodes."""
    (rows, channels), side, width = grad_x.shape, graph.side, len(weights[0])
    matrix = np.zeros((graph.nodes.shape[1], graph.x.shape[1]), graph.x.dtype)
    own, other = np.split(weights[0], 2, 1)
    matrix[:width, :channels], matrix[side : side + width, :channels] = own - other, other
    if graph.nodes.shape[1] > 2 * side:
        matrix[2 * side :][: len(weights[-3]), :channels] = weights[-3]
    found = np.empty_like(graph.x)
    blocks = -(-len(graph.x) // (TILES * NODES))
    products = np.zeros((blocks, *matrix.shape), graph.x.dtype)
    _threads.over(blocks, threads, _nodes_down, graph.x, grad_nodes, matrix, found, products)
    product = products.sum(0, dtype=np.float64)[:, :channels]
    own, other = product[:width], product[side : side + width]
    grad_weights[0][:] = np.concatenate([own, other - own], 1)
    if graph.nodes.shape[1] > 2 * side:
        grad_weights[-3][:] = product[2 * side :][: len(weights[-3])]
    grad_x[:] = found[:rows, :channels]


@helper
def _add_product(left, right, rows, depth, room, total):
    """total += left^T right, of `depth` rows and `rows` columns of left."""
    for first in range(0, depth, PIECE):
        piece = min(PIECE, depth - first)
        for r in range(0, rows, LANES):
            for d in range(0, piece, LANES):
                transpose(left, first + d, r, room.turned, r, d)
        for c in range(0, total.shape[1], COLUMNS):
            multiply(room.turned, right[first:, c:], room.zeros, room.part, rows, COLUMNS, piece)
            for r in range(rows):
                for n in range(0, COLUMNS, LANES):
                    store(total, r, c + n, load(total, r, c + n) + load(room.part, r, n))


@kernel
def _nodes_down(first, last, x, grad_nodes, matrix, found, products):
    wide = grad_nodes.shape[1]
    zeros = np.zeros(max(wide, NODES), x.dtype)
    room = Room(np.empty((wide, PIECE), x.dtype), np.empty((wide, COLUMNS), x.dtype), zeros)
    for block in range(first, last):
        for a in range(block * TILES * NODES, min((block + 1) * TILES * NODES, len(x)), NODES):
            rows = min(NODES, len(x) - a)
            multiply(grad_nodes[a:], matrix, zeros, found[a:], rows, x.shape[1], wide)
            _add_product(grad_nodes[a:], x[a:], wide, rows, room, products[block])


@kernel
def _top(first, last, graph, norms, kept, top, flow, sums):
    k, layer = graph.near.shape[1], len(graph.widths) - 1
    for t in range(first, last):
        a, b = t * graph.points, min((t + 1) * graph.points, len(graph.near))
        loops.spread(a, b, top, graph.near, flow[a * k :])
        z, scale, shift, mean = kept[layer - 1, a * k :], norms.scale[layer], norms.shift[layer], norms.mean[layer]
        loops.gradient_sums(a, b, z, flow[a * k :], graph.near, scale, shift, mean, sums[t])


@kernel
def _down(first, last, size, layer, graph, norms, constant, slope, matrix, kept, flow, below, sums, products):
    """flow of a layer becomes the gradient in its z; from it that in the weights, and flow of the layer before."""
    k, channels, points = graph.near.shape[1], graph.turned.shape[2], graph.points
    width, width_below = graph.widths[layer], graph.widths[layer - 1]
    most = points * k
    made, h = np.empty((most, channels), flow.dtype), np.zeros((most, channels), flow.dtype)
    zeros = np.zeros(max(most, channels), flow.dtype)
    room = Room(np.empty((channels, PIECE), flow.dtype), np.empty((channels, COLUMNS), flow.dtype), zeros)
    scale, shift, mean = norms.scale[layer - 1], norms.shift[layer - 1], norms.mean[layer - 1]
    for block in range(first, last):
        for t in range(block * size, min((block + 1) * size, len(sums))):
            a, b = t * points, min((t + 1) * points, len(graph.near))
            rows = ((b - a) * k + ROWS - 1) // ROWS * ROWS
            here, z = flow[a * k :], kept[layer - 1, a * k :]
            here[(b - a) * k : rows] = 0
            own = norms.scale[layer], norms.shift[layer], norms.mean[layer]
            loops.normalise_backward(a, b, z, here, graph.near, own[0], own[1], own[2], constant, slope)
            z = kept[layer - 2, a * k :] if layer > 1 else made
            if layer == 1:
                loops.edges(a, b, graph.nodes, graph.side, graph.near, width_below, made)
            loops.activate((b - a) * k, width_below, z, scale, shift, h)
            h[(b - a) * k : rows] = 0
            _add_product(here, h, width, rows, room, products[block])
            multiply(here, matrix, zeros, below[a * k :], rows, width_below, width)
            loops.gradient_sums(a, b, z, below[a * k :], graph.near, scale, shift, mean, sums[t])
