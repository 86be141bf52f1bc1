"""Numba backend: one accumulator row per jet, in float64."""

import numpy as np

from .. import _threads
from .._numba import inputs, kernel


def run(values, offsets, out, *, threads):
    _threads.over(len(offsets) - 1, threads, _sum, *inputs(values, offsets), out)


def backward(gradient, values, offsets, grad_values, *, threads):
    grad_values[: offsets[0]] = 0
    grad_values[offsets[-1] :] = 0
    _threads.over(len(offsets) - 1, threads, _spread, *inputs(gradient, offsets), grad_values)


@kernel
def _sum(first, last, values, offsets, out):
    channels = values.shape[1]
    total = np.empty(channels, np.float64)
    for j in range(first, last):
        total[:] = 0.0
        for i in range(offsets[j], offsets[j + 1]):
            for c in range(channels):
                total[c] += values[i, c]
        for c in range(channels):
            out[j, c] = total[c]


@kernel
def _spread(first, last, gradient, offsets, grad_values):
    for j in range(first, last):
        for i in range(offsets[j], offsets[j + 1]):
            for c in range(gradient.shape[1]):
                grad_values[i, c] = gradient[j, c]
