"""CuPy backend: a warp per jet."""

import numpy as np

from .. import _cuda

THREADS = 128


def run(values, offsets, out, *, offsets_host):
    kernel = _cuda.kernel("segment/kernel.cu", "segment_sum", REAL=_cuda.REAL[values.dtype.name])
    jets, channels = out.shape
    _cuda.launch(kernel, _blocks(jets), THREADS, *_cuda.inputs(values, offsets), jets, channels, _width(channels), out)


def backward(gradient, values, offsets, grad_values, *, offsets_host):
    kernel = _cuda.kernel("segment/kernel.cu", "segment_spread", REAL=_cuda.REAL[gradient.dtype.name])
    jets, channels = gradient.shape
    sizes = (jets, values.shape[0], channels, _width(channels))
    _cuda.launch(kernel, _blocks(max(jets, 1)), THREADS, *_cuda.inputs(gradient, offsets), *sizes, grad_values)


def _blocks(jets):
    return -(jets * 32 // -THREADS)


def _width(channels):
    """Lanes side by side on channels: a power of two."""
    return np.int32(min(32, 1 << max(channels - 1, 0).bit_length()))
