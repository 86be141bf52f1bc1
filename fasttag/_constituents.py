"""The loop of `features.kin` on the CPU: for one jet a tenth of what array operations cost."""

from __future__ import annotations

import math

import numpy as np

from fasttag_kernels._numba import helper, kernel

ALONG_BEAM = 1e5  # as fasttag_kernels.kinematics


@helper
def _eta(pt, z):
    along = -ALONG_BEAM if z < 0.0 else ALONG_BEAM
    return math.asinh(z / pt) if pt > 0.0 or pt != pt else along


@kernel
def fill(first, last, px, py, pz, e, offsets, given, centers, scales, out):
    """Columns 0-4, -2 and -1 of `out` (N, F) for jets first..last; given (4, J): eta, phi, ln pt, ln E, or NaN."""
    deta, dphi = out.shape[1] - 2, out.shape[1] - 1
    values = np.empty(5)
    for j in range(first, last):
        x = y = z = energy = size = 0.0
        for i in range(offsets[j], offsets[j + 1]):
            x += px[i]
            y += py[i]
            z += pz[i]
            energy += e[i]
            size += abs(px[i]) + abs(py[i]) + abs(pz[i]) + abs(e[i])
        nothing = 0.0 if size < np.inf else np.nan
        pt = math.sqrt(x * x + y * y)
        eta = given[0, j] if given[0, j] == given[0, j] else _eta(pt, z)
        phi = given[1, j] if given[1, j] == given[1, j] else math.atan2(y, x)
        ln_pt = given[2, j] if given[2, j] == given[2, j] else math.log(pt)
        ln_e = given[3, j] if given[3, j] == given[3, j] else math.log(energy)
        sign = -1.0 if eta < 0.0 else 1.0
        for i in range(offsets[j], offsets[j + 1]):
            x, y, z = np.float64(px[i]), np.float64(py[i]), np.float64(pz[i])
            pt = math.sqrt(x * x + y * y)
            across = (_eta(pt, z) - eta) * sign + nothing
            around = math.atan2(y, x) - phi + nothing
            around -= 2 * math.pi * math.floor(around / (2 * math.pi) + 0.5)
            values[0] = math.log(pt)
            values[1] = math.log(np.float64(e[i]))
            values[2] = values[0] - ln_pt
            values[3] = values[1] - ln_e
            values[4] = math.sqrt(across * across + around * around)
            for c in range(5):
                value = (values[c] - centers[c]) * scales[c]
                out[i, c] = min(max(value, -5.0), 5.0) if value == value else 0.0
            out[i, deta] = across
            out[i, dphi] = around
