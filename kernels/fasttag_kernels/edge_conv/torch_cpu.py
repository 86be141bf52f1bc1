"""Torch backend: products of tiles of edges by torch, everything between them by Numba. See README.md."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .. import _threads
from .._gemm import single_threaded
from .._numba import inputs
from . import layers_of, loops

EPS = 1e-5
STEP = 16  # products have a multiple of so many rows: then a row has the same bits in all of them
TILE = 1 << 18  # bytes of a tile of edges, about: two and a matrix stay in a second-level cache of 1 MB
NODES = 128  # constituents of a tile of the products without edges
TILES, BLOCKS = 16, 64  # sums are made per block of TILES tiles, or of more where that would be more than BLOCKS


class Graph(NamedTuple):
    """Constituents and edges of all jets, and the products that do not need edges."""

    x: np.ndarray  # (rows and zeros, C): a multiple of STEP, at least one row of zeros
    offsets: np.ndarray  # from 0
    near: np.ndarray  # (rows, k) row of each neighbour, -1 for none
    nodes: np.ndarray  # (rows and zeros, ...): (W_a - W_b) x, W_b x and, of the shortcut, W x
    node_weight: np.ndarray
    weights: list  # of layers 1, 2, ...; the first is layer 0
    widths: list  # of all layers
    points: int  # constituents of a tile

    def tiles(self) -> int:
        return -(-len(self.near) // self.points)

    def blocks(self) -> list[range]:
        """The tiles of each block: a matter of sizes, not of threads."""
        size = max(TILES, -(-self.tiles() // BLOCKS))
        return [range(a, min(a + size, self.tiles())) for a in range(0, self.tiles(), size)]

    def tile(self, number: int) -> tuple[int, int, slice]:
        """First and last constituent of a tile, and the rows of their edges."""
        first, k = number * self.points, self.near.shape[1]
        last = min(first + self.points, len(self.near))
        return first, last, slice(first * k, first * k + _up((last - first) * k))

    def room(self) -> np.ndarray:
        """For a tile of any layer."""
        return np.empty(_up(self.points * self.near.shape[1]) * max(self.widths), self.x.dtype)

    def split(self, kept: np.ndarray) -> list[np.ndarray]:
        """Room for all edges of every layer but layer 0, whose z comes from the nodes."""
        rows, found = _up(self.near.size), [np.empty(0, self.x.dtype)]
        for width in self.widths[1:]:
            found.append(_rows(kept, rows, width))
            kept = kept[rows * width :]
        return found

    def z(self, layer: int, number: int, zs: list, room: np.ndarray) -> np.ndarray:
        """What a layer gave to the edges of a tile, before the normalisation; layer 0 has to be made, in `room`."""
        first, last, rows = self.tile(number)
        if layer:
            return zs[layer][rows]
        z = _rows(room, rows.stop - rows.start, self.widths[0])
        loops.edges(first, last, self.nodes, self.near, z)
        return z


class Normalisation(NamedTuple):
    """BN(z) = z scale + shift, with scale = gamma inverse."""

    scale: np.ndarray
    shift: np.ndarray
    mean: np.ndarray
    inverse: np.ndarray  # of the standard deviation

    def gradient(self, sums: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, ...]:
        """In gamma and beta; constant and slope of the gradient in z, scale g + constant + slope (z - mean).

        sums : of g and of g (z - mean), with g the gradient behind the normalisation.
        count : of the values that made the statistics; infinite where these were given.
        """
        dtype, count = self.scale.dtype, np.maximum(count, 1)
        constant = -self.scale * sums[0] / count
        slope = -self.scale * self.inverse**2 * sums[1] / count
        return sums[1] * self.inverse, sums[0], constant.astype(dtype), slope.astype(dtype)


def run(x, neighbours, offsets, weights, running, statistics, padded, missing, needed, out, moments, kept, *, threads):
    out[: offsets[0]] = out[offsets[-1] :] = 0
    inside = out[offsets[0] : offsets[-1]]
    with single_threaded():
        graph = _graph(x, neighbours, offsets, weights, missing, threads)
        size = _up(graph.near.size) * sum(graph.widths[1:])
        kept[size:] = 0
        if statistics == "running":
            mean, variance = _joined(running)
            norms = _norms(weights, mean, variance, x.dtype)
            zs = graph.split(kept) if len(kept) else None
            _threads.over(graph.tiles(), threads, _all_layers, graph, norms, zs, *_added(graph, norms), inside)
            return
        zs = graph.split(kept if len(kept) else np.empty(size, x.dtype))
        moments[:] = _batch(graph, weights, _zeros(offsets, padded), zs, threads)
        norms = _norms(weights, moments[0], moments[1], x.dtype)
        _threads.over(graph.tiles(), threads, _last, graph, norms, zs, *_added(graph, norms), inside)


def _rows(room, rows, width):
    return room[: rows * width].reshape(rows, width)


def _up(rows):
    return -(-rows // STEP) * STEP


def _zeros(offsets, padded):
    """Rows of zeros that count in the statistics."""
    return padded * (len(offsets) - 1) - int(offsets[-1] - offsets[0]) if padded else 0


def _joined(running):
    return np.concatenate(running[::2], dtype=np.float64), np.concatenate(running[1::2], dtype=np.float64)


def _graph(x, neighbours, offsets, weights, missing, threads):
    x, neighbours, offsets = inputs(x, neighbours, offsets)
    (first, last), channels, k = offsets[[0, -1]], x.shape[1], neighbours.shape[1]
    rows, layers = int(last - first), layers_of(channels, weights)
    index = np.empty((rows, k), np.int32)
    ghost = rows if missing == "ghost" else -1
    _threads.over(len(offsets) - 1, threads, loops.locate, neighbours, offsets, ghost, index)
    enough = np.zeros((_up(rows + 1), channels), x.dtype)
    enough[:rows] = x[first:last]
    own, other = weights[0][:, :channels], weights[0][:, channels:]
    node_weight = np.concatenate([own - other, other, *weights[3 * layers :: 3]])
    nodes = np.empty((len(enough), len(node_weight)), x.dtype)
    _threads.over(-(-len(enough) // NODES), threads, _nodes, enough, _tensor(node_weight).T, nodes)
    matrices = [_tensor(weights[3 * layer]) for layer in range(1, layers)]
    widths = [len(weights[3 * layer]) for layer in range(layers)]
    points = STEP * max(1, TILE // (STEP * k * max(widths) * x.itemsize))
    return Graph(enough, offsets - first, index, nodes, node_weight, matrices, widths, points)


def _tensor(array):
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # read-only: a warning


def _nodes(first, last, x, weight, nodes):
    for a in range(first * NODES, last * NODES, NODES):
        torch.mm(_tensor(x[a : a + NODES]), weight, out=_tensor(nodes[a : a + NODES]))


def _norms(weights, mean, variance, dtype):
    inverse = 1 / np.sqrt(variance + EPS)
    scale = np.concatenate(weights[1::3]) * inverse
    shift = np.concatenate(weights[2::3]) - mean * scale
    arrays = [array.astype(dtype) for array in (scale, shift, mean)]
    found, end = [], 0
    for gamma in weights[1::3]:
        here = slice(end, end := end + len(gamma))
        found.append(Normalisation(*(array[here] for array in (*arrays, inverse))))
    return found


def _added(graph, norms):
    """The shortcut: where its products lie, from which column on, scale and shift."""
    if len(norms) > len(graph.widths):
        return graph.nodes, 2 * graph.widths[0], *norms[-1][:2]
    ones = np.ones(graph.widths[-1], graph.x.dtype)
    return graph.x, 0, ones, 0 * ones


def _forward(graph, layer, z, norm, room, out):
    """The product of a layer, out, from z of the one before; `room` is for what it takes."""
    h = _rows(room, *z.shape)
    loops.activate(z, norm.scale, norm.shift, h)
    torch.mm(_tensor(h), graph.weights[layer - 1].T, out=_tensor(out))


def _all_layers(first, last, graph, norms, zs, added, column, scale, shift, out):
    """Given statistics: a tile passes through all layers; z is kept in zs for the gradient, if at all."""
    room, other = graph.room(), graph.room()
    for number in range(first, last):
        a, b, rows = graph.tile(number)
        z = graph.z(0, number, [], room)
        for layer in range(1, len(graph.widths)):
            product = zs[layer][rows] if zs else _rows(room, len(z), graph.widths[layer])
            _forward(graph, layer, z, norms[layer - 1], other, product)
            z = product
        loops.pool(a, b, z, graph.near, *norms[layer][:2], added, column, scale, shift, out)


def _last(first, last, graph, norms, zs, added, column, scale, shift, out):
    top = len(graph.widths) - 1
    for number in range(first, last):
        a, b, rows = graph.tile(number)
        loops.pool(a, b, zs[top][rows], graph.near, *norms[top][:2], added, column, scale, shift, out)


def _batch(graph, weights, zeros, zs, threads):
    """z of all layers and the moments: a layer after the other, since each needs the moments of the one before."""
    blocks, rows = graph.blocks(), len(graph.near)
    edges, zero_edges = int((graph.near >= 0).sum()), zeros * graph.near.shape[1]
    zero, found = np.zeros(graph.widths[0]), []
    norms: list[Normalisation] = []
    for layer, width in enumerate(graph.widths):
        if layer:
            zero = _hidden(zero, norms[-1]) @ graph.weights[layer - 1].numpy().T
        sums = np.zeros((len(blocks), 2, width))
        _threads.over(len(blocks), threads, _batch_layer, graph, blocks, layer, norms, zs, sums)
        total = sums.sum(0) + zero_edges * np.array([zero, zero**2])
        found.append(_moments(total, edges + zero_edges))
        norms += _norms(weights[3 * layer : 3 * layer + 3], found[-1][0], found[-1][1], graph.x.dtype)
    if len(weights) > 3 * len(graph.widths):
        products = graph.nodes[:rows, 2 * graph.widths[0] :].astype(np.float64)
        found.append(_moments(np.array([products.sum(0), (products**2).sum(0)]), rows + zeros))
    return np.concatenate(found, 1)


def _hidden(z, norm):
    return np.maximum(z * norm.scale + norm.shift, 0)


def _moments(sums, count):
    mean, square = sums / max(count, 1)
    return np.array([mean, np.maximum(square - mean**2, 0), np.full(len(mean), count)])


def _batch_layer(first, last, graph, blocks, layer, norms, zs, sums):
    room, other = graph.room(), graph.room()
    for block in range(first, last):
        for number in blocks[block]:
            a, b, _ = graph.tile(number)
            z = graph.z(layer, number, zs, room)
            if layer:
                _forward(graph, layer, graph.z(layer - 1, number, zs, room), norms[layer - 1], other, z)
            loops.moments(a, b, z, graph.near, sums[block])


def backward(gradient, x, neighbours, offsets, weights, running, statistics, padded, missing, needed, moments, kept,
             grad_x, grad_weights, *, threads):  # fmt: skip
    with single_threaded():
        graph = _graph(x, neighbours, offsets, weights, missing, threads)
        given = statistics == "running"
        mean, variance = _joined(running) if given else moments[:2]
        norms = _norms(weights, mean, variance, x.dtype)
        ends = np.cumsum([len(norm.mean) for norm in norms])[:-1]
        counts = np.split(np.full(len(mean), np.inf) if given else moments[2], ends)
        zs = graph.split(kept)

        top = np.empty((len(graph.near), graph.widths[-1]), x.dtype)
        _threads.over(graph.tiles(), threads, _last, graph, norms, zs, *_added(graph, norms), top)
        top = np.where(top > 0, gradient[offsets[0] : offsets[-1]], x.dtype.type(0))
        zero_edges = _zeros(offsets, padded) * graph.near.shape[1]
        grad_nodes = _edges_backward(graph, norms, counts, zs, top, zero_edges, grad_weights, threads)
        if len(norms) > len(graph.widths):
            _shortcut_backward(graph, norms[-1], counts[-1], top, grad_weights, grad_nodes)
        found, product = _nodes_backward(graph, grad_nodes, threads)
        grad_x[: offsets[0]] = grad_x[offsets[-1] :] = 0
        grad_x[offsets[0] : offsets[-1]] = (
            found[: len(top)] if len(norms) > len(graph.widths) else found[: len(top)] + top
        )
        own, other, *shortcut = np.split(product, [graph.widths[0], 2 * graph.widths[0]])
        grad_weights[0][:] = np.concatenate([own, other - own], 1)
        if len(norms) > len(graph.widths):
            grad_weights[-3][:] = shortcut[0]


def _edges_backward(graph, norms, counts, zs, top, zero_edges, grad_weights, threads):
    """Layers L .. 1, `up` being the gradient behind the normalisation of each; gives the gradient in the nodes."""
    blocks, edges, dtype = graph.blocks(), _up(graph.near.size), top.dtype
    zero = [np.zeros(graph.widths[0])]  # z of an edge of padded rows, and the gradient behind its normalisation
    for weight, norm in zip(graph.weights, norms):
        zero.append(_hidden(zero[-1], norm) @ weight.numpy().T)
    zero_up = np.zeros(graph.widths[-1])

    up = np.empty((edges, graph.widths[-1]), dtype)
    sums = np.zeros((len(blocks), 2, graph.widths[-1]))
    _threads.over(len(blocks), threads, _top_backward, graph, blocks, norms[len(zs) - 1], zs, top, up, sums)
    total = sums.sum(0)
    for layer in range(len(graph.widths) - 1, 0, -1):
        norm, before = norms[layer], norms[layer - 1]
        *found, constant, slope = norm.gradient(total, counts[layer])
        grad_weights[3 * layer + 1][:], grad_weights[3 * layer + 2][:] = found
        sums = np.zeros((len(blocks), 2, graph.widths[layer - 1]))
        products = np.zeros((len(blocks), *graph.weights[layer - 1].shape), dtype)
        up_before = np.empty((edges, graph.widths[layer - 1]), dtype)
        _threads.over(
            len(blocks),
            threads,
            _layer_backward,
            *(graph, blocks, layer, norm, before, constant, slope, zs, up, up_before, sums, products),
        )
        up = up_before
        total, product = sums.sum(0), products.sum(0, dtype=np.float64)
        if zero_edges:
            open_ = zero[layer] * norm.scale + norm.shift > 0
            slope_up = norm.scale * zero_up * open_ + constant + slope * (zero[layer] - norm.mean)
            product += zero_edges * np.outer(slope_up, _hidden(zero[layer - 1], before))
            zero_up = slope_up @ graph.weights[layer - 1].numpy()
            g = zero_up * (zero[layer - 1] * before.scale + before.shift > 0)
            total += zero_edges * np.array([g, g * (zero[layer - 1] - before.mean)])
        grad_weights[3 * layer][:] = product

    *found, constant, slope = norms[0].gradient(total, counts[0])
    grad_weights[1][:], grad_weights[2][:] = found
    grad_nodes = np.zeros(graph.nodes.shape, dtype)
    _threads.over(
        len(graph.offsets) - 1,
        threads,
        loops.collect,
        *(up, graph.offsets, graph.near, graph.nodes, *norms[0][:3], constant, slope, grad_nodes),
    )
    return grad_nodes


def _top_backward(first, last, graph, blocks, norm, zs, top, up, sums):
    for block in range(first, last):
        for number in blocks[block]:
            a, b, rows = graph.tile(number)
            loops.spread(a, b, top, graph.near, up[rows])
            loops.gradient_sums(a, b, zs[-1][rows], up[rows], graph.near, *norm[:3], sums[block])


def _layer_backward(
    first, last, graph, blocks, layer, norm, before, constant, slope, zs, up, up_before, sums, products
):
    """up of a layer becomes the gradient in its z; from it that in the weights, and up of the layer before."""
    room, other = graph.room(), graph.room()
    for block in range(first, last):
        product = _tensor(products[block])
        for number in blocks[block]:
            a, b, rows = graph.tile(number)
            loops.normalise_backward(a, b, zs[layer][rows], up[rows], graph.near, *norm[:3], constant, slope)
            gradient = _tensor(up[rows])
            z = graph.z(layer - 1, number, zs, room)
            h = _rows(other, *z.shape)
            loops.activate(z, before.scale, before.shift, h)
            torch.addmm(product, gradient.T, _tensor(h), out=product)
            torch.mm(gradient, graph.weights[layer - 1], out=_tensor(up_before[rows]))
            loops.gradient_sums(a, b, z, up_before[rows], graph.near, *before[:3], sums[block])


def _shortcut_backward(graph, norm, count, top, grad_weights, grad_nodes):
    columns = slice(2 * graph.widths[0], None)
    centred = graph.nodes[: len(top), columns] - norm.mean
    sums = np.array([top.sum(0, dtype=np.float64), (top * centred).sum(0, dtype=np.float64)])
    *found, constant, slope = norm.gradient(sums, count)
    grad_weights[-2][:], grad_weights[-1][:] = found
    grad_nodes[: len(top), columns] = norm.scale * top + constant + slope * centred


def _nodes_backward(graph, grad_nodes, threads):
    """The gradient in x, and in the matrices of the nodes."""
    tiles = -(-len(graph.x) // NODES)
    blocks = [range(a, min(a + TILES, tiles)) for a in range(0, tiles, TILES)]
    found, products = np.empty_like(graph.x), np.zeros((len(blocks), *graph.node_weight.shape), graph.x.dtype)
    weight = _tensor(graph.node_weight)

    def work(first, last):
        for block in range(first, last):
            product = _tensor(products[block])
            for number in blocks[block]:
                rows = slice(number * NODES, (number + 1) * NODES)
                gradient = _tensor(grad_nodes[rows])
                torch.mm(gradient, weight, out=_tensor(found[rows]))
                torch.addmm(product, gradient.T, _tensor(graph.x[rows]), out=product)

    _threads.over(len(blocks), threads, work)
    return found, products.sum(0, dtype=np.float64)
