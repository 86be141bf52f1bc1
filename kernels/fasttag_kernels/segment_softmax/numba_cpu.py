"""Numba backend: a jet stays in the cache; its exponentials are one flat loop, packed for any number of columns."""

import numpy as np

from .. import _math, _threads
from .._numba import inputs, kernel


def run(values, offsets, out, *, threads):
    out[: offsets[0]] = 0
    out[offsets[-1] :] = 0
    _threads.over(len(offsets) - 1, threads, _softmax, *inputs(values, offsets), out, out.reshape(-1))


def backward(gradient, values, offsets, grad_values, *, threads):
    run(values, offsets, grad_values, threads=threads)
    _threads.over(len(offsets) - 1, threads, _backward, *inputs(gradient, offsets), grad_values)


@kernel
def _softmax(first, last, values, offsets, out, flat):
    channels = values.shape[1]
    largest, total = np.empty(channels, values.dtype), np.empty(channels, np.float64)
    zero = out.dtype.type(0)
    lowest = out.dtype.type(_math.LOWEST32 if out.itemsize == 4 else _math.LOWEST)
    for j in range(first, last):
        largest[:] = -np.inf
        for i in range(offsets[j], offsets[j + 1]):
            for c in range(channels):
                x, y = values[i, c], largest[c]
                largest[c] = x if x > y or x != x else y
        for i in range(offsets[j], offsets[j + 1]):
            for c in range(channels):
                out[i, c] = values[i, c] - largest[c]
        block = flat[offsets[j] * channels : offsets[j + 1] * channels]
        for k in range(block.size):
            e = _math.exp(block[k])
            block[k] = e if block[k] > lowest else zero  # NaN: -inf - (-inf), or in a column that is NaN anyway
        for c in range(channels):
            total[c] = 0.0 if largest[c] < np.inf else np.nan
        for i in range(offsets[j], offsets[j + 1]):
            for c in range(channels):
                total[c] += out[i, c]
        for c in range(channels):
            total[c] = 1.0 / total[c] if total[c] != 0.0 else 0.0
        for i in range(offsets[j], offsets[j + 1]):
            for c in range(channels):
                out[i, c] *= total[c]


@kernel
def _backward(first, last, gradient, offsets, grad_values):
    """grad_values comes in as the softmax."""
    channels = gradient.shape[1]
    mean = np.empty(channels, np.float64)
    for j in range(first, last):
        mean[:] = 0.0
        for i in range(offsets[j], offsets[j + 1]):
            for c in range(channels):
                mean[c] += np.float64(grad_values[i, c]) * gradient[i, c]
        for i in range(offsets[j], offsets[j + 1]):
            for c in range(channels):
                grad_values[i, c] *= gradient[i, c] - mean[c]
