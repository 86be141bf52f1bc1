"""CuPy backend: sorts by counting and merging, then quadrant sums by tiles, O(n^1.5). See README.md."""

import numpy as np

from .. import _cuda

WARP, RUN, THREADS = 32, 256, 128  # these and the sizes of rows as in kernel.cu
COLUMNS, PLACES, ORIGIN, SUMS = 13, 5, 7, 9
WAYS = 48  # runs that are merged at once, at most


def run(x, y, weights, unbiased, covariance, needed, out, dx, dy):
    n = x.shape[0]
    if n < (4 if unbiased else 2):
        for array in (out, dx, dy):
            array.fill(0)
        return
    x, y = _cuda.inputs(x, y)
    weights = _cuda.NULL if weights is None else _cuda.inputs(weights)[0]
    tile = _tile(n)
    runs, tiles, orders = -(n // -RUN), -(n // -tile), 2 if needed[0] else 1
    key = (2,) if x.dtype.itemsize == 8 else ()
    keys, merged = (_cuda.empty((2, n, *key), np.uint64) for _ in range(2))
    places = _cuda.empty((2, PLACES, n), np.int32)
    rows = _cuda.empty((2, COLUMNS, n), np.float64)
    origins = _cuda.empty((runs, ORIGIN), np.float64)
    table = _cuda.empty((3, tiles + 1, tiles + 1), np.float64)
    sums = _cuda.empty((orders * tiles, SUMS), np.float64)

    def launch(function, blocks, threads, *arguments):
        kernel = _cuda.kernel("distance_correlation/kernel.cu", function, REAL=_cuda.REAL[x.dtype.name])
        integers = (np.int32(value) if isinstance(value, int) else value for value in arguments)
        _cuda.launch(kernel, blocks, threads, *integers)

    launch("distance_runs", 2 * runs, RUN, x, y, weights, n, keys, places, origins)
    spare, length = 0, RUN
    for ways in _ways(runs):
        step = 1 << length.bit_length() - 1
        launch("distance_merge", 2 * -(n // -WARP), RUN, n, length, ways, step, spare, keys, merged, places)
        keys, merged, spare, length = merged, keys, 1 - spare, length * ways
    sizes = (n, tile, tiles)
    launch("distance_table", tiles, THREADS, x, y, weights, n, tile, runs, spare, origins, places, rows, table)
    launch("distance_columns", -(3 * (tiles + 1) // -THREADS), THREADS, tiles, table)
    launch("distance_quadrants", 2 * -(n // -THREADS), THREADS, *sizes, rows, table)
    launch("distance_sums", orders * tiles, THREADS, *sizes, keys, places, rows, sums)
    derivatives = (array if need else _cuda.NULL for array, need in zip((dx, dy), needed))
    form = (spare, unbiased, covariance)
    launch("distance_gradients", orders * tiles, THREADS, *sizes, *form, places, rows, sums, out, *derivatives)


def backward(gradient, x, y, weights, unbiased, covariance, needed, dx, dy, grad_x, grad_y):
    kernel = _cuda.kernel("distance_correlation/kernel.cu", "distance_scale", REAL=_cuda.REAL[x.dtype.name])
    n = x.shape[0]
    derivatives = [_cuda.inputs(d)[0] if d.shape[0] == n else _cuda.NULL for d in (dx, dy)]
    _cuda.launch(kernel, -(n // -RUN), RUN, *_cuda.inputs(gradient), np.int32(n), *derivatives, grad_x, grad_y)


def _tile(n):
    """About sqrt(n / 2), where the pairs within tiles and the table cost the same."""
    tile = THREADS
    while 2 * tile * tile < n:
        tile *= 2
    return tile


def _ways(runs):
    """How many runs each pass merges: as few passes as there can be, at least one, of about the same size."""
    passes = 1
    while WAYS**passes < runs:
        passes += 1
    ways = 1
    while ways**passes < runs:
        ways += 1
    return [ways] * passes
