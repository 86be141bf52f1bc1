"""Numba backend: tiles of jets pass through the whole network, by the kernels of knn, edge_conv and segment."""

import numpy as np

from .. import _threads, edge_conv
from .._numba import exact, helper, inputs, kernel
from .._simd import LANES
from ..edge_conv import COLUMNS, ROWS, loops
from ..edge_conv import numba_cpu as products
from ..edge_conv.numba_cpu import NODES, Graph, make_nodes, through_layers
from ..knn.numba_cpu import nearest
from ..segment.numba_cpu import sum_rows

TILE = 64  # constituents of a tile, more only where a jet has more

up, points_of_tile = helper(edge_conv.up), helper(products.points_of_tile)


def run(x, points, offsets, weights, convs, missing, reduce, out, *, threads):
    arrays = inputs(x, points, offsets, weights)
    arguments = *arrays, np.array(convs), missing == "ghost", reduce == "mean", out
    _threads.over(len(offsets) - 1, threads, _jets, *arguments)


@kernel
def _jets(first, last, x, points, offsets, weights, convs, ghost, mean, out):
    while first < last:
        end = first + 1
        while end < last and offsets[end + 1] - offsets[first] <= TILE:
            end += 1
        _tile(x, points, offsets[first : end + 1], weights, convs, ghost, mean, out[first:end])
        first = end


@kernel
def _tile(x, points, offsets, weights, convs, ghost, mean, out):
    """These jets, all in one tile, through all convolutions."""
    begin, rows, channels, jets = offsets[0], offsets[-1] - offsets[0], x.shape[1], len(offsets) - 1
    offsets, turn = offsets - begin, x.dtype.type(np.inf)
    h, space = _rows(x, rows, channels), _rows(x, rows, 2)  # h is x, and what the convolutions make of it
    space[:rows] = points[begin : begin + rows]
    _normalise(x[begin : begin + rows], weights[len(weights) - 3 * channels :].reshape(3, channels), h)
    at, conv = 0, 0
    while conv < len(convs):
        k, layers = convs[conv], convs[conv + 1]
        widths = convs[conv + 2 : conv + 2 + layers]
        near = np.empty((rows, k), np.int32)
        nearest(0, jets, space, offsets, turn, near)
        loops.locate(0, jets, near, offsets, rows if ghost else -1, near)

        side, most, width = up(widths[0], COLUMNS), up(widths.max(), COLUMNS), widths[-1]
        columns = 2 * side + (up(width, COLUMNS) if width != channels else 0)
        matrix, at = _matrix(weights, at, channels, columns)
        turned, at = _matrix(weights, at, (layers - 1) * most, most)
        scales, at = _matrix(weights, at, layers + 1, most)
        shifts, at = _matrix(weights, at, layers + 1, most)
        nodes = np.empty((len(h), columns), x.dtype)
        make_nodes(0, (rows + NODES) // NODES, h, rows + 1, channels, matrix, side, nodes)
        tile = points_of_tile(k, most, x.itemsize)
        graph = Graph(h, near, nodes, turned.reshape(layers - 1, most, most), widths, side, tile)
        added, column = (h, 0) if width == channels else (nodes, 2 * side)
        h = _rows(x, rows, width)
        nothing, no_sums = np.empty((0, 0, 0), x.dtype), np.empty((0, 2, 0))
        through_layers(0, (rows + tile - 1) // tile, graph, scales, shifts, 1, layers, nothing, no_sums, added, column,
                       scales[layers], shifts[layers], h[:rows])  # fmt: skip
        space, channels = h, width
        conv += 2 + layers
    sum_rows(0, jets, h, offsets, mean, out)


@helper
def _rows(x, rows, channels):
    """Rows of constituents and behind them some of zeros, as many as products take; readable beyond."""
    size = up(rows + 1, ROWS) * channels
    flat = np.empty(size + LANES, x.dtype)
    flat[rows * channels :] = 0
    return flat[:size].reshape(-1, channels)


@helper
def _matrix(weights, at, rows, columns):
    """What begins there, and what comes after it."""
    end = at + rows * columns
    return weights[at:end].reshape(rows, columns), end


@exact
def _normalise(x, norm, h):
    for i in range(len(x)):
        for c in range(x.shape[1]):
            h[i, c] = (x[i, c] - norm[0, c]) * norm[1, c] + norm[2, c]
