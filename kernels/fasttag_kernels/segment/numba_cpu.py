"""Numba backend: rows stream past one row of results per jet, of sums in float64."""

import numpy as np

from .. import _threads
from .._numba import inputs, kernel


def run(values, offsets, reduce, out, *, threads):
    jets, arrays = len(offsets) - 1, inputs(values, offsets)
    if reduce == "max":
        _threads.over(jets, threads, _max, *arrays, out)
    else:
        _threads.over(jets, threads, sum_rows, *arrays, reduce == "mean", out)


def backward(gradient, values, offsets, reduce, grad_values, *, threads):
    grad_values[: offsets[0]] = 0
    grad_values[offsets[-1] :] = 0
    jets = len(offsets) - 1
    if reduce == "max":
        _threads.over(jets, threads, _to_largest, *inputs(gradient, values, offsets), grad_values)
    else:
        _threads.over(jets, threads, _spread, *inputs(gradient, offsets), reduce == "mean", grad_values)


@kernel
def sum_rows(first, last, values, offsets, mean, out):
    channels = values.shape[1]
    total = np.empty(channels, np.float64)
    for j in range(first, last):
        total[:] = 0.0
        for i in range(offsets[j], offsets[j + 1]):
            for c in range(channels):
                total[c] += values[i, c]
        divisor = max(offsets[j + 1] - offsets[j], 1) if mean else 1
        for c in range(channels):
            out[j, c] = total[c] / divisor


@kernel
def _max(first, last, values, offsets, out):
    channels = values.shape[1]
    largest = np.empty(channels, values.dtype)
    for j in range(first, last):
        largest[:] = -np.inf if offsets[j] < offsets[j + 1] else 0.0
        for i in range(offsets[j], offsets[j + 1]):
            for c in range(channels):
                x, y = values[i, c], largest[c]
                largest[c] = x if x > y or x != x else y
        for c in range(channels):
            out[j, c] = largest[c]


@kernel
def _spread(first, last, gradient, offsets, mean, grad_values):
    channels = gradient.shape[1]
    share = np.empty(channels, grad_values.dtype)
    for j in range(first, last):
        divisor = max(offsets[j + 1] - offsets[j], 1) if mean else 1
        for c in range(channels):
            share[c] = gradient[j, c] / divisor
        for i in range(offsets[j], offsets[j + 1]):
            for c in range(channels):
                grad_values[i, c] = share[c]


@kernel
def _to_largest(first, last, gradient, values, offsets, grad_values):
    channels = values.shape[1]
    largest, row = np.empty(channels, values.dtype), np.empty(channels, np.int64)
    for j in range(first, last):
        largest[:] = -np.inf
        row[:] = offsets[j]
        for i in range(offsets[j], offsets[j + 1]):
            for c in range(channels):
                x = values[i, c]
                if x > largest[c] or (x != x and largest[c] == largest[c]):
                    largest[c], row[c] = x, i
            grad_values[i] = 0
        if offsets[j] < offsets[j + 1]:
            for c in range(channels):
                grad_values[row[c], c] = gradient[j, c]
