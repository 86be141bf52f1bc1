"""Numba backend: tiles of rows, in the cache. See README.md."""

import numpy as np

from .. import _threads
from .._numba import inputs, kernel
from .._rows import factors_of, normalise, normalise_backward, numbers, or_fill

TILE = 64  # rows: of 128 numbers a few arrays of 32 KB in float32
DROPPED = 0xFFFFFFFE  # word of the counter: those of other operations differ
MOST_BLOCKS = 64  # of blocks whose gradients of gamma, beta and scale are summed on their own


def run(x, branch, gamma, beta, scale, eps, dropout, seed, layer, out, *, threads):
    given = *inputs(x, branch, *or_fill(x, (gamma, 1), (beta, 0), (scale, 1))), gamma is not None, eps, dropout > 0
    words = numbers(x.dtype, dropout, seed, layer, DROPPED)
    _threads.over(-(len(x) // -TILE), threads, _forward, *given, *words, out)


def backward(gradient, x, branch, gamma, beta, scale, eps, dropout, seed, layer,
             grad_x, grad_branch, grad_gamma, grad_beta, grad_scale, *, threads):  # fmt: skip
    tiles = -(len(x) // -TILE)
    size = max(1, -(tiles // -MOST_BLOCKS))
    sums = np.empty((-(tiles // -size), 3, x.shape[1]))
    given = *inputs(x, branch, *or_fill(x, (gamma, 1), (beta, 0), (scale, 1))), gamma is not None, eps, dropout > 0
    rest = *numbers(x.dtype, dropout, seed, layer, DROPPED), *inputs(gradient), scale is not None
    _threads.over(len(sums), threads, _backward, *given, *rest, size, sums, grad_x, grad_branch)
    for found, total in zip((grad_gamma, grad_beta, grad_scale), sums.sum(0)):
        found[:] = total[: found.size]


@kernel
def _prepare(branch, begin, rows, norm, eps, drop, words, factor, u, per_sd, factors):
    """Rows of the branch from `begin` on, normalised where they are, and what dropout multiplies them with."""
    for r in range(rows):
        for c in range(branch.shape[1]):
            u[r, c] = branch[begin + r, c]
    if norm:
        normalise(u, rows, branch.shape[1], eps, per_sd)
    if drop:
        factors_of(begin, words, factor, factors)


@kernel
def _forward(first, last, x, branch, gamma, beta, scale, norm, eps, drop, words, factor, out):
    columns = x.shape[1]
    u, per_sd = np.empty((TILE, columns), x.dtype), np.empty(TILE, x.dtype)
    factors = np.ones((TILE, (columns + 3) // 4 * 4), x.dtype)
    for tile in range(first, last):
        begin = tile * TILE
        rows = min(TILE, len(x) - begin)
        _prepare(branch, begin, rows, norm, eps, drop, words, factor, u, per_sd, factors)
        for r in range(rows):
            for c in range(columns):
                out[begin + r, c] = scale[c] * x[begin + r, c] + factors[r, c] * (gamma[c] * u[r, c] + beta[c])


@kernel
def _backward(first, last, x, branch, gamma, beta, scale, norm, eps, drop, words, factor, gradient, scaled, size, sums,
              grad_x, grad_branch):  # fmt: skip
    columns = x.shape[1]
    u, h = np.empty((TILE, columns), x.dtype), np.empty((TILE, columns), x.dtype)
    per_sd = np.empty(TILE, x.dtype)
    factors = np.ones((TILE, (columns + 3) // 4 * 4), x.dtype)
    for block in range(first, last):
        of_gamma, of_beta, of_scale = sums[block, 0], sums[block, 1], sums[block, 2]
        sums[block] = 0.0
        for begin in range(block * size * TILE, min((block + 1) * size * TILE, len(x)), TILE):
            rows = min(TILE, len(x) - begin)
            _prepare(branch, begin, rows, norm, eps, drop, words, factor, u, per_sd, factors)
            for r in range(rows):
                for c in range(columns):
                    grad_x[begin + r, c] = scale[c] * gradient[begin + r, c]
                    h[r, c] = factors[r, c] * gradient[begin + r, c]
                if scaled:
                    for c in range(columns):
                        of_scale[c] += np.float64(gradient[begin + r, c]) * x[begin + r, c]
                if norm:
                    for c in range(columns):
                        of_gamma[c] += np.float64(h[r, c]) * u[r, c]
                    for c in range(columns):
                        of_beta[c] += h[r, c]
                        h[r, c] *= gamma[c]
            if norm:
                normalise_backward(h, u, rows, columns, per_sd)
            for r in range(rows):
                for c in range(columns):
                    grad_branch[begin + r, c] = h[r, c]
