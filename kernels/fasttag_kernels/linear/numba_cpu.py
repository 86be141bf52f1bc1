"""Numba backend: tiles of rows are activated and normalised in the cache and multiplied there. See README.md."""

import numpy as np

from .. import _threads
from .._math import gelu, gelu_and_slope
from .._numba import inputs, kernel
from .._rows import factors_of, normalise, normalise_backward, numbers, or_fill
from .._simd import LANES, multiply, transpose, turn

TILE = 128  # rows
PANEL = 2 * LANES  # columns of a matrix that lie together: `multiply` works on as many at once
DROPPED = 0xFFFFFFFF  # word of the counter: that of `particle_attention` is a head
LEAST_TILES, MOST_BLOCKS = 4, 64  # of blocks whose gradients of the weights are summed on their own


def run(x, weight, bias, gamma, beta, activation, eps, dropout, seed, layer, out, *, threads):
    panels = np.zeros((_up(len(weight)) // PANEL, x.shape[1], PANEL), x.dtype)
    shift = np.empty_like(bias)
    _pack(*inputs(weight, *or_fill(x, (gamma, 1), (beta, 0)), bias), panels, shift)
    given = _before(x, gamma, activation, eps, dropout, seed, layer)
    _threads.over(-(len(x) // -TILE), threads, _forward, *given, panels, shift, out)


def backward(gradient, x, weight, bias, gamma, beta, activation, eps, dropout, seed, layer,
             grad_x, grad_weight, grad_bias, grad_gamma, grad_beta, *, threads):  # fmt: skip
    tiles = -(len(x) // -TILE)
    size = max(LEAST_TILES, -(tiles // -MOST_BLOCKS))
    blocks = -(tiles // -size)
    arrays = inputs(weight, *or_fill(x, (gamma, 1), (beta, 0)))
    panels = np.zeros((_up(x.shape[1]) // PANEL, len(weight), PANEL), x.dtype)
    _pack_for_gradient(*arrays[:2], panels)
    products = np.empty((blocks, _up(len(weight)), _up(x.shape[1])), x.dtype)
    sums = np.empty((blocks, len(weight)))
    given = _before(x, gamma, activation, eps, dropout, seed, layer)
    _threads.over(blocks, threads, _backward, *given, *inputs(gradient), panels, size, products, sums, grad_x)
    of_norm = np.zeros((2, x.shape[1]))
    _finish(*arrays, products, sums, grad_weight, grad_bias, of_norm)
    if gamma is not None:
        grad_gamma[:], grad_beta[:] = of_norm


def _up(number):
    return -(number // -PANEL) * PANEL


def _before(x, gamma, activation, eps, dropout, seed, layer):
    """What stands before the product: rows, whether GELU, dropout and normalisation, and their numbers."""
    how = activation == "gelu", dropout > 0, gamma is not None
    return *inputs(x), how, eps, *numbers(x.dtype, dropout, seed, layer, DROPPED)


@kernel
def _prepare(x, begin, rows, how, eps, words, factor, factors, z, slope, scale):
    """Rows of x from `begin` on as they are multiplied, the slope of the activation where there is room for it."""
    active, drop, norm = how
    columns = x.shape[1]
    for r in range(rows):
        if active and slope.size > 0:
            for c in range(columns):
                z[r, c], slope[r, c] = gelu_and_slope(x[begin + r, c])
        elif active:
            for c in range(columns):
                z[r, c] = gelu(x[begin + r, c])
        else:
            for c in range(columns):
                z[r, c] = x[begin + r, c]
    if drop:
        factors_of(begin, words, factor, factors)
        for r in range(rows):
            for c in range(columns):
                z[r, c] *= factors[r, c]
            for c in range(slope.shape[1]):
                slope[r, c] *= factors[r, c]
    if norm:
        normalise(z, rows, columns, eps, scale)


@kernel
def _forward(first, last, x, how, eps, words, factor, panels, shift, out):
    columns, width, dtype = x.shape[1], out.shape[1], x.dtype
    z = np.zeros((TILE, (columns + LANES) // LANES * LANES), dtype)
    y = np.empty((TILE, panels.shape[0] * PANEL + LANES), dtype)
    factors = np.empty((TILE, (columns + 3) // 4 * 4 if how[1] else 0), dtype)
    scale, zeros = np.empty(TILE, dtype), np.zeros(TILE, dtype)
    for tile in range(first, last):
        begin = tile * TILE
        rows = min(TILE, len(x) - begin)
        _prepare(x, begin, rows, how, eps, words, factor, factors, z, factors[:, :0], scale)
        for p in range(panels.shape[0]):
            multiply(z, panels[p], zeros, y[:, p * PANEL :], rows, PANEL, columns)
        for r in range(rows):
            for c in range(width):
                out[begin + r, c] = y[r, c] + shift[c]


@kernel
def _backward(first, last, x, how, eps, words, factor, gradient, panels, size, products, sums, grad_x):
    columns, width, dtype = x.shape[1], gradient.shape[1], x.dtype
    wide = products.shape[1]
    z = np.zeros((TILE, products.shape[2] + LANES), dtype)
    slope = np.empty((TILE, columns if how[0] else 0), dtype)
    factors = np.empty((TILE, (columns + 3) // 4 * 4 if how[1] else 0), dtype)
    g, turned = np.zeros((TILE, wide + LANES), dtype), np.empty((wide, TILE + LANES), dtype)
    h = np.empty((TILE, products.shape[2] + LANES), dtype)
    scale, zeros = np.empty(TILE, dtype), np.zeros(TILE, dtype)
    for block in range(first, last):
        product, total = products[block], sums[block]
        product[:] = 0
        total[:] = 0.0
        for begin in range(block * size * TILE, min((block + 1) * size * TILE, len(x)), TILE):
            rows = min(TILE, len(x) - begin)
            _prepare(x, begin, rows, how, eps, words, factor, factors, z, slope, scale)
            for r in range(rows):
                for c in range(width):
                    g[r, c] = gradient[begin + r, c]
                    total[c] += g[r, c]
            z[rows:] = 0
            g[rows:] = 0
            for c in range(0, wide, LANES):
                for r in range(0, TILE, LANES):
                    transpose(g, r, c, turned, c, r)
            multiply(turned, z, None, product, wide, products.shape[2], TILE)
            for p in range(panels.shape[0]):
                multiply(g, panels[p], zeros, h[:, p * PANEL :], rows, PANEL, width)
            if how[2]:
                normalise_backward(h, z, rows, columns, scale)
            _store(h, slope, begin, rows, grad_x)


@kernel
def _store(h, slope, begin, rows, grad_x):
    columns = grad_x.shape[1]
    for r in range(rows):
        if slope.size > 0:
            for c in range(columns):
                grad_x[begin + r, c] = h[r, c] * slope[r, c]
        else:
            for c in range(columns):
                grad_x[begin + r, c] = h[r, c]


@kernel
def _pack(weight, gamma, beta, bias, panels, shift):
    """Matrix, transposed, and shift that take the normalised numbers to the result."""
    for p in range(len(panels)):
        turn(weight[p * PANEL : (p + 1) * PANEL], 0, weight.shape[1], panels[p], 0)
        for k in range(weight.shape[1]):
            for c in range(PANEL):
                panels[p, k, c] *= gamma[k]
    for m in range(len(weight)):
        total = 0.0
        for k in range(weight.shape[1]):
            total += np.float64(weight[m, k]) * beta[k]
        shift[m] = total + bias[m]


@kernel
def _pack_for_gradient(weight, gamma, panels):
    """The matrix that takes gradients to those in the normalised numbers."""
    for p in range(len(panels)):
        begin = p * PANEL
        for m in range(len(weight)):
            for c in range(min(PANEL, len(gamma) - begin)):
                panels[p, m, c] = weight[m, begin + c] * gamma[begin + c]


@kernel
def _finish(weight, gamma, beta, products, sums, grad_weight, grad_bias, of_norm):
    """Sums of products with the normalised numbers, over blocks, to the gradients of the weights."""
    product = np.empty(len(gamma))
    for m in range(len(weight)):
        total = 0.0
        product[:] = 0.0
        for block in range(len(sums)):
            total += sums[block, m]
            for k in range(len(gamma)):
                product[k] += products[block, m, k]
        for k in range(len(gamma)):
            grad_weight[m, k] = product[k] * gamma[k] + total * beta[k]
        for k in range(len(gamma)):
            of_norm[0, k] += product[k] * weight[m, k]
            of_norm[1, k] += total * weight[m, k]
        grad_bias[m] = total
