"""Numba backend: each output element is written once."""

from .. import _threads
from .._numba import inputs, kernel


def run(values, offsets, length, truncate, padded, valid, *, threads):
    _threads.over(len(offsets) - 1, threads, _pad, *inputs(values, offsets), padded, valid)


@kernel
def _pad(first, last, values, offsets, padded, valid):
    features = values.shape[0]
    length = padded.shape[1]
    for j in range(first, last):
        n = min(offsets[j + 1] - offsets[j], length)
        start = offsets[j]
        for i in range(n):
            for f in range(features):
                padded[j, i, f] = values[f, start + i]
        padded[j, n:] = 0
        valid[j, :n] = True
        valid[j, n:] = False
