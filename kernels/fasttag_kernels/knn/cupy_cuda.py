"""CuPy backend: a warp per 32 constituents of a jet, one of them per lane."""

import numpy as np

from .. import _cuda

THREADS = 128
QUERIES = 32  # per warp


def run(x, k, offsets, periodic, out, *, offsets_host):
    n, columns = x.shape
    if offsets is None:
        offsets, items, warps = _cuda.NULL, _cuda.NULL, -(n // -QUERIES)
    else:
        out[: int(offsets_host[0])] = -1
        out[int(offsets_host[-1]) :] = -1
        (offsets,) = _cuda.inputs(offsets)
        items = _cuda.work_list(offsets, offsets_host, QUERIES)
        warps = len(items)
    real = _cuda.REAL[x.dtype.name]
    kernel = _cuda.kernel("knn/kernel.cu", "knn", fmad=False, REAL=real, K=8 if k <= 8 else 16)
    period = np.inf if periodic is None else 2 * np.pi
    sizes = (warps, n, np.int32(columns), np.int32(k), period)
    _cuda.launch(kernel, -(warps * 32 // -THREADS), THREADS, *_cuda.inputs(x), offsets, items, *sizes, out)
