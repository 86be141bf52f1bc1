"""Numba backend: a row at a time, in the cache; its GELU and statistics are computed again for the gradient."""

import numpy as np
from numba import uint32

from .. import _threads
from .._math import gelu, gelu_and_slope
from .._numba import helper, inputs, kernel
from .._random import philox

LEAST_ROWS, MOST_BLOCKS = 16, 64  # of blocks whose gradients of weight and bias are summed on their own


def run(x, weight, bias, eps, dropout, seed, layer, out, *, threads):
    arguments = (*inputs(x, weight, bias), eps, dropout > 0, *_numbers(x, dropout, seed, layer))
    _threads.over(len(x), threads, _forward, *arguments, out)


def backward(gradient, x, weight, bias, eps, dropout, seed, layer, grad_x, grad_weight, grad_bias, *, threads):
    rows = max(LEAST_ROWS, -(len(x) // -MOST_BLOCKS))
    sums = np.empty((2, -(len(x) // -rows), x.shape[1]))
    arguments = (*inputs(gradient, x, weight), eps, dropout > 0, *_numbers(x, dropout, seed, layer))
    _threads.over(sums.shape[1], threads, _backward, *arguments, rows, *sums, grad_x)
    grad_weight[:], grad_bias[:] = sums.sum(1)


def _numbers(x, dropout, seed, layer):
    words = tuple(np.uint32(word) for word in (layer, seed & 0xFFFFFFFF, seed >> 32, int(dropout * 2**32)))
    return words, x.dtype.type(1 / (1 - dropout))


@helper
def _factors(row, words, factor, factors):
    """What dropout multiplies a row with: column c by word c % 4 of the counter (layer, row, 2^32 - 1, c // 4)."""
    layer, key0, key1, threshold = words
    zero = factors.dtype.type(0)
    for k in range(factors.size // 4):
        a, b, c, d = philox(layer, uint32(row), uint32(0xFFFFFFFF), uint32(k), key0, key1)
        factors[4 * k] = factor if a >= threshold else zero
        factors[4 * k + 1] = factor if b >= threshold else zero
        factors[4 * k + 2] = factor if c >= threshold else zero
        factors[4 * k + 3] = factor if d >= threshold else zero


@kernel
def _statistics(z, eps):
    """Mean and 1 / standard deviation by the distances from the first number, of float64 from a first mean.

    The first number is at most sqrt(C) standard deviations from the mean, so that C ulp of float64 may cancel.
    """
    origin = np.float64(z[0]) if z.size else 0.0
    total = squares = 0.0
    if z.itemsize == 8:
        for c in range(z.size):
            total += z[c] - origin
        origin += total / z.size
        total = 0.0
    for c in range(z.size):
        distance = z[c] - origin
        total += distance
        squares += distance * distance
    mean = total / z.size
    return z.dtype.type(origin + mean), z.dtype.type(1.0 / np.sqrt(squares / z.size - mean * mean + eps))


@kernel
def _forward(first, last, x, weight, bias, eps, drop, words, factor, out):
    columns = x.shape[1]
    z, factors = np.empty(columns, x.dtype), np.empty((columns + 3) // 4 * 4, x.dtype)
    for i in range(first, last):
        for c in range(columns):
            z[c] = gelu(x[i, c])
        if drop:
            _factors(i, words, factor, factors)
            for c in range(columns):
                z[c] *= factors[c]
        mean, scale = _statistics(z, eps)
        for c in range(columns):
            out[i, c] = (z[c] - mean) * scale * weight[c] + bias[c]


@kernel
def _backward(first, last, gradient, x, weight, eps, drop, words, factor, rows, weight_sums, bias_sums, grad_x):
    columns = x.shape[1]
    z, slope, g = np.empty(columns, x.dtype), np.empty(columns, x.dtype), np.empty(columns, x.dtype)
    factors = np.empty((columns + 3) // 4 * 4, x.dtype)
    for block in range(first, last):
        of_weight, of_bias = weight_sums[block], bias_sums[block]
        of_weight[:] = 0.0
        of_bias[:] = 0.0
        for i in range(block * rows, min((block + 1) * rows, len(x))):
            for c in range(columns):
                z[c], slope[c] = gelu_and_slope(x[i, c])
            if drop:
                _factors(i, words, factor, factors)
                for c in range(columns):
                    z[c] *= factors[c]
                    slope[c] *= factors[c]
            mean, scale = _statistics(z, eps)
            total = along = 0.0
            for c in range(columns):
                z[c] = (z[c] - mean) * scale
                g[c] = gradient[i, c] * weight[c]
                total += g[c]
                along += np.float64(g[c]) * z[c]
            for c in range(columns):
                of_weight[c] += np.float64(gradient[i, c]) * z[c]
            for c in range(columns):
                of_bias[c] += gradient[i, c]
            shift, tilt = x.dtype.type(total / columns), x.dtype.type(along / columns)
            for c in range(columns):
                grad_x[i, c] = (g[c] - shift - z[c] * tilt) * scale * slope[c]
