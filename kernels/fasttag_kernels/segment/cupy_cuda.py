"""CuPy backend: a warp per jet."""

import numpy as np

from .. import _cuda

THREADS = 128


def run(values, offsets, reduce, out, *, offsets_host):
    jets, channels = out.shape
    arguments = (*_cuda.inputs(values, offsets), jets, channels, _width(channels))
    if reduce == "max":
        _launch("segment_max", jets, *arguments, out)
    else:
        _launch("segment_sum", jets, *arguments, np.int32(reduce == "mean"), out)


def backward(gradient, values, offsets, reduce, grad_values, *, offsets_host):
    jets, channels = gradient.shape
    sizes = (jets, values.shape[0], channels, _width(channels))
    if reduce == "max":
        arrays = _cuda.inputs(gradient, values, offsets)
        _launch("segment_to_largest", max(jets, 1), *arrays, *sizes, grad_values)
    else:
        arrays = _cuda.inputs(gradient, offsets)
        _launch("segment_spread", max(jets, 1), *arrays, *sizes, np.int32(reduce == "mean"), grad_values)


def _launch(function, warps, *arguments):
    kernel = _cuda.kernel("segment/kernel.cu", function, REAL=_cuda.REAL[arguments[-1].dtype.name])
    _cuda.launch(kernel, -(warps * 32 // -THREADS), THREADS, *arguments)


def _width(channels):
    """Lanes side by side on channels: a power of two."""
    return np.int32(min(32, 1 << max(channels - 1, 0).bit_length()))
