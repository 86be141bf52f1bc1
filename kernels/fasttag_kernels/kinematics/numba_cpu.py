"""Numba backend: blocks of 256 in one scratch buffer, so that LLVM proves the loops independent and packs them."""

import math

import numpy as np

from .. import _threads
from .._math import atan2, log
from .._numba import inputs, kernel

BLOCK = 256
ALONG_BEAM = 1e5
PX, PY, PZ, E, PT, RAPIDITY, ETA, PHI, MASS = range(9)


def run(p4, out, *, threads):
    _threads.over(p4.shape[1], threads, _kinematics, *inputs(*p4), out)


def backward(gradient, p4, grad_p4, *, threads):
    _threads.over(p4.shape[1], threads, _gradient, *inputs(gradient, *p4), grad_p4)


@kernel
def _kinematics(first, last, px, py, pz, e, out):
    block = np.ones((9, BLOCK))
    for start in range(first, last, BLOCK):
        size = min(BLOCK, last - start)
        for i in range(size):
            block[PX, i] = px[start + i]
        for i in range(size):
            block[PY, i] = py[start + i]
        for i in range(size):
            block[PZ, i] = pz[start + i]
        for i in range(size):
            block[E, i] = e[start + i]
        for i in range(BLOCK):
            z = block[PZ, i]
            pt2 = block[PX, i] * block[PX, i] + block[PY, i] * block[PY, i]
            m2 = max((block[E, i] + z) * (block[E, i] - z) - pt2, 0.0)
            pt = math.sqrt(pt2)
            along = pt == 0.0
            size_of_all = abs(block[PX, i]) + abs(block[PY, i]) + abs(z) + abs(block[E, i])
            nothing = 0.0 if size_of_all < np.inf else np.nan  # log and atan2 give finite numbers for NaN and inf
            rapidity = log((block[E, i] + abs(z)) / math.sqrt(pt2 + m2))
            rapidity = ALONG_BEAM + abs(z) if along and block[E, i] <= abs(z) else rapidity
            eta = ALONG_BEAM if along else log((math.sqrt(pt2 + z * z) + abs(z)) / pt)
            block[RAPIDITY, i] = (-rapidity if z < 0.0 else rapidity) + nothing
            block[ETA, i] = (-eta if z < 0.0 else eta) + nothing
            block[PHI, i] = (0.0 if along else atan2(block[PY, i], block[PX, i])) + nothing
            block[PT, i] = pt + nothing
            block[MASS, i] = math.sqrt(m2) + nothing
        for q in range(5):
            for i in range(size):
                out[q, start + i] = block[PT + q, i]


@kernel
def _gradient(first, last, gradient, px, py, pz, e, grad_p4):
    for i in range(first, last):
        # not float(): Numba leaves a float32 as it is
        x, y, z, energy = np.float64(px[i]), np.float64(py[i]), np.float64(pz[i]), np.float64(e[i])
        pt2 = x * x + y * y
        if pt2 == 0.0:
            grad_p4[0, i] = grad_p4[1, i] = grad_p4[2, i] = grad_p4[3, i] = 0.0
            continue
        pt = math.sqrt(pt2)
        p = math.sqrt(pt2 + z * z)
        mt2 = (energy + z) * (energy - z)
        g_pt, g_y, g_eta, g_phi, g_mass = gradient[0, i], gradient[1, i], gradient[2, i], gradient[3, i], gradient[4, i]
        by_pt = g_pt - g_eta * z / (pt * p)
        if mt2 > pt2:
            by_mass = g_mass / math.sqrt(mt2 - pt2)
            by_pt -= by_mass * pt
            by_pz = g_eta / p + g_y * energy / mt2 - by_mass * z
            by_e = by_mass * energy - g_y * z / mt2
        else:
            sign = -1.0 if z < 0.0 else 1.0
            by_pt -= g_y * sign / pt
            by_pz = g_eta / p + g_y / (energy + abs(z))
            by_e = g_y * sign / (energy + abs(z))
        grad_p4[0, i] = by_pt * x / pt - g_phi * y / pt2
        grad_p4[1, i] = by_pt * y / pt + g_phi * x / pt2
        grad_p4[2, i] = by_pz
        grad_p4[3, i] = by_e
