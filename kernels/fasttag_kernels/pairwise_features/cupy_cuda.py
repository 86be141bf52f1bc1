"""CuPy backend: 64 constituents of a jet per block, tiles of 16x16 pairs; gradients by constituents."""

from typing import Any

import numpy as np

from .. import _cuda
from . import FEATURES

ITEM = 64  # constituents per block, and its threads
CHUNK = 1024  # jets of a block in the sum over jets


def run(p4, offsets, pairs, features, triangle, m2, out, *, offsets_host):
    arguments = _arguments(p4, offsets, triangle, offsets_host)
    for group in (FEATURES[:4], FEATURES[4:]):  # eight at once would take the shared memory of more blocks
        wanted = [name for name in features if name in group]
        if wanted:
            kernel = _kernel("pair_features", p4, wanted, m2)
            _cuda.launch(kernel, len(arguments[-2]), ITEM, *arguments, *_rows(out, features, wanted))


def backward(gradient, p4, offsets, pairs, features, triangle, m2, grad_p4, *, offsets_host):
    grad_p4[:, : offsets_host[0]] = 0
    grad_p4[:, offsets_host[-1] :] = 0
    arguments = _arguments(p4, offsets, triangle, offsets_host)
    (gradient,) = _cuda.inputs(gradient)
    rows = _rows(gradient, features, features)
    kernel = _kernel("pair_gradient", p4, features, m2)
    _cuda.launch(kernel, len(arguments[-2]), ITEM, *rows, *arguments, p4.shape[1], grad_p4)


def _kernel(function, p4, wanted, m2):
    macros: dict[str, Any] = {
        "REAL": _cuda.REAL[p4.dtype.name],
        "FEATURES": sum(1 << FEATURES.index(name) for name in wanted),
        "REFERENCE": int(m2 == "reference" and "ln_m2" in wanted),
    }
    return _cuda.kernel("pairwise_features/kernel.cu", function, **macros)


def _arguments(p4, offsets, triangle, offsets_host):
    *p4, offsets = _cuda.inputs(*p4, offsets)
    full = np.int32(triangle == "full")
    return *p4, offsets, _starts(offsets, full), _cuda.work_list(offsets, offsets_host, ITEM), full


def _rows(array, features, wanted):
    """Row by row in the order of FEATURES."""
    return [array[features.index(name)] if name in wanted else _cuda.NULL for name in FEATURES]


def _starts(offsets, full):
    """Where the pairs of each jet begin."""
    jets = offsets.shape[0] - 1
    chunks = -(jets // -CHUNK)
    sums, starts = _cuda.empty(chunks, np.int64), _cuda.empty(jets, np.int64)
    kernel = lambda function: _cuda.kernel("pairwise_features/starts.cu", function)
    _cuda.launch(kernel("pair_sums"), -(chunks * 32 // -128), 128, offsets, jets, full, CHUNK, chunks, sums)
    _cuda.launch(kernel("pair_starts"), chunks, CHUNK, offsets, jets, full, sums, starts)
    return starts
