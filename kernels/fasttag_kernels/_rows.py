"""Rows of a tile, in the cache: layer normalisation, its gradient, and the factors of dropout."""

import numpy as np
from numba import uint32

from ._numba import kernel
from ._random import philox


def numbers(dtype, dropout, seed, layer, which):
    """What `factors_of` needs: words, `which` being one of the counter, and what is kept is multiplied with."""
    words = layer, which, seed & 0xFFFFFFFF, seed >> 32, int(dropout * 2**32)
    return tuple(np.uint32(word) for word in words), dtype.type(1 / (1 - dropout))


def or_fill(x, *given):
    """Arrays, one number per column of x; full of the number beside them where they are None."""
    return [np.full(x.shape[1], number, x.dtype) if array is None else array for array, number in given]


@kernel
def factors_of(begin, words, factor, factors):
    """What dropout multiplies rows with: column c by word c % 4 of the counter (layer, row, which, c // 4)."""
    layer, which, key0, key1, threshold = words
    zero = factors.dtype.type(0)
    for r in range(factors.shape[0]):
        for k in range(factors.shape[1] // 4):
            a, b, c, d = philox(layer, uint32(begin + r), which, uint32(k), key0, key1)
            factors[r, 4 * k] = factor if a >= threshold else zero
            factors[r, 4 * k + 1] = factor if b >= threshold else zero
            factors[r, 4 * k + 2] = factor if c >= threshold else zero
            factors[r, 4 * k + 3] = factor if d >= threshold else zero


@kernel
def normalise(z, rows, columns, eps, scale):
    """z becomes (z - mean) scale, row by row, with scale = 1 / standard deviation.

    Both from the distances from the first number, which is at most sqrt(K) standard deviations from the mean, so that K
    ulp of float64 may cancel; of float64 numbers from a first mean.
    """
    for r in range(rows):
        origin, total, squares = np.float64(z[r, 0]), 0.0, 0.0
        if z.itemsize == 8:
            for c in range(columns):
                total += z[r, c] - origin
            origin += total / columns
            total = 0.0
        for c in range(columns):
            distance = z[r, c] - origin
            total += distance
            squares += distance * distance
        mean = total / columns
        scale[r] = 1.0 / np.sqrt(squares / columns - mean * mean + eps)
        shift, factor = z.dtype.type(origin + mean), scale[r]
        for c in range(columns):
            z[r, c] = (z[r, c] - shift) * factor


@kernel
def normalise_backward(h, z, rows, columns, scale):
    """h, the gradient in the normalised numbers z, becomes that in the numbers before."""
    for r in range(rows):
        total = along = 0.0
        for c in range(columns):
            total += h[r, c]
            along += np.float64(h[r, c]) * z[r, c]
        shift, tilt, factor = h.dtype.type(total / columns), h.dtype.type(along / columns), scale[r]
        for c in range(columns):
            h[r, c] = (h[r, c] - shift - z[r, c] * tilt) * factor
