"""Numba backend: rows go through vectors of 16, the last one overlapping its neighbour, so that no tail is left."""

import numpy as np
from llvmlite import ir
from numba import uint64
from numba.extending import intrinsic

from .. import _threads
from .._numba import exact, inputs
from .._simd import LANES, Vector, load, splat, store

DEFAULTS = (0.0, 1.0, -np.inf, np.inf, 0.0)  # center, scale, low, high, pad_value


def run(values, offsets, center, scale, low, high, pad_value, length, wrap, out, *, threads):
    channels, n = values.shape
    given = (center, scale, low, high, pad_value)
    settings = [np.full(channels, d, values.dtype) if x is None else x for x, d in zip(given, DEFAULTS)]
    if wrap:
        out[np.diff(offsets) == 0] = settings[-1][:, None]
    fill(np.ravel(values), np.arange(channels) * n, offsets, settings, wrap, out, threads=threads)


def fill(content, starts, offsets, settings, wrap, out, *, threads):
    """Channel c of constituent i is content[starts[c] + i]. With `wrap` jets without constituents are left alone.

    settings: center, scale, low, high, pad_value; `out` must be contiguous.
    """
    jets, channels, length = out.shape
    arrays = inputs(content[None], starts, offsets, *settings)
    _threads.over(jets, threads, _standardize, *arrays, wrap, out.reshape(jets * channels, length))


@intrinsic
def _clean(typing, x, low, high):
    """low where x < low, else high where x > high; 0 for NaN. x is a vector or a number."""
    number = x.dtype if isinstance(x, Vector) else x

    def generate(context, builder, signature, arguments):
        x, low, high = arguments
        if isinstance(signature.args[0], Vector):
            low, high = splat(builder, low), splat(builder, high)
        clipped = builder.select(builder.fcmp_ordered(">", x, high), high, x)
        clipped = builder.select(builder.fcmp_ordered("<", x, low), low, clipped)
        zero = ir.Constant(clipped.type, None)
        return builder.select(builder.fcmp_ordered("ord", clipped, clipped), clipped, zero)

    return x(x, number, number), generate


@exact
def _standardize(first, last, content, starts, offsets, center, scale, low, high, pad_value, wrap, out):
    channels, slots, lanes = starts.size, uint64(out.shape[1]), uint64(LANES)
    for j in range(first, last):
        n = min(uint64(offsets[j + 1] - offsets[j]), slots)
        if wrap and n == 0:
            continue
        for c in range(channels):
            row, source = j * channels + c, uint64(starts[c] + offsets[j])
            filled = uint64(0)
            while filled < slots:
                m = min(n, slots - filled)
                i = uint64(0)
                while i < m and m >= lanes:
                    i = min(i, m - lanes)
                    x = (load(content, 0, source + i) - center[c]) * scale[c]
                    store(out, row, filled + i, _clean(x, low[c], high[c]))
                    i += lanes
                for rest in range(i, m):
                    x = (content[0, source + rest] - center[c]) * scale[c]
                    out[row, filled + rest] = _clean(x, low[c], high[c])
                filled += m
                if not wrap:
                    break
            for i in range(filled, slots):
                out[row, i] = pad_value[c]
