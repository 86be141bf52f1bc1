"""CuPy backend: a warp per jet; each output element is written once."""

from .. import _cuda

THREADS = 128


def run(values, offsets, length, truncate, padded, valid, *, offsets_host):
    kernel = _cuda.kernel("pad/kernel.cu", "pad", REAL=_cuda.REAL[values.dtype.name])
    jets = len(offsets_host) - 1
    features, n = values.shape
    arrays = _cuda.inputs(values, offsets)
    _cuda.launch(kernel, -(jets * 32 // -THREADS), THREADS, *arrays, jets, n, features, length, padded, valid)
