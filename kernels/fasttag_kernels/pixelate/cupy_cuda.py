"""CuPy backend: eight lanes per jet find the pixels, a warp draws the image."""

import numpy as np

from .. import _cuda
from . import CHANNELS

THREADS, JETS = 128, 16  # per block
CENTERS = ("centroid", "pixel", "none")
AT_ONCE = 9  # channels of 7 bits in 64


def run(
    pt, eta, phi, offsets, kind, npix, half_width, center, rotate, flip, normalize, wrap, channels, dtype, out, *,
    offsets_host,
):  # fmt: skip
    if npix >= 1 << 16:
        raise ValueError(f"pixelate: npix must be 65535 or less on a GPU, got {npix}; pixels have 32-bit numbers there")
    kernel = _cuda.kernel("pixelate/kernel.cu", "pixelate", REAL=_cuda.REAL[pt.dtype.name], IMAGE=_cuda.REAL[dtype])
    jets = len(offsets_host) - 1
    arrays = _cuda.inputs(pt, eta, phi, offsets)
    kinds = _cuda.NULL if kind is None else _cuda.inputs(kind)[0]
    steps = map(np.int32, (CENTERS.index(center), rotate, flip, normalize, wrap and center != "none"))
    settings = (jets, np.int32(npix), half_width, *steps)
    for first in range(0, len(channels), AT_ONCE):
        codes = [_code(*CHANNELS[name]) for name in channels[first : first + AT_ONCE]]
        packed = np.uint64(sum(code << 7 * i for i, code in enumerate(codes)))
        some = (packed, np.int32(len(codes)), first, len(channels))
        _cuda.launch(kernel, -(jets // -JETS), THREADS, *arrays, kinds, *settings, *some, out)


def _code(kinds, counts):
    """A bit for each of the five kinds, one for any other number, and whether constituents are counted."""
    return (0b111111 if kinds is None else sum(1 << kind for kind in kinds)) | counts << 6
