"""Numba backend: 128 pairs at a time in one scratch buffer; what the two sides repeat is loaded once."""

import math

import numpy as np

from .. import _threads
from .._math import log
from .._numba import exact, helper, inputs

BLOCK = 128
PX, PY, PZ, E, PT, Y, PHI = range(7)
SECOND, FOUND = 7, 14
LN_KT, LN_Z, LN_DELTA, LN_M2, LN_DS2 = range(FOUND, FOUND + 5)


def run(first, second, features, eps, out, *, threads):
    number = out.dtype.type
    units = out.shape[0] * -(-out.shape[3] // BLOCK)
    constants = number(eps), number(math.pi), number(2 * math.pi)
    _threads.over(units, threads, _pairs, *inputs(first, second), *constants, out)


@helper
def _ln(x, eps):
    clamped = eps if x < eps else x
    return log(clamped) if clamped < math.inf else clamped  # log gives a number for NaN and inf


@helper
def _load(side, a, r, start, size, block, to):
    a, r = min(a, side.shape[0] - 1), min(r, side.shape[2] - 1)
    for q in range(7):
        if side.shape[3] > 1:
            for i in range(size):
                block[to + q, i] = side[a, q, r, start + i]
        else:
            block[to + q] = side[a, q, r, 0]


@exact
def _pairs(begin, end, first, second, eps, pi, two_pi, out):
    _, features, rows, width = out.shape
    blocks = (width + BLOCK - 1) // BLOCK
    block = np.ones((FOUND + 5, BLOCK), out.dtype)
    top = LN_DELTA if features == 1 else LN_KT
    for unit in range(begin, end):
        a, start = unit // blocks, unit % blocks * BLOCK
        size = min(BLOCK, width - start)
        for r in range(rows):
            if r == 0 or first.shape[2] > 1:
                _load(first, a, r, start, size, block, 0)
            if r == 0 or second.shape[2] > 1:
                _load(second, a, r, start, size, block, SECOND)
            for i in range(BLOCK):
                dy = block[Y, i] - block[SECOND + Y, i]
                turned = block[PHI, i] - block[SECOND + PHI, i] + pi
                turned = turned - two_pi if turned >= two_pi else turned
                turned = turned + two_pi if turned < 0 else turned
                dphi = turned - pi
                delta = math.sqrt(dy * dy + dphi * dphi)
                pt, other = block[PT, i], block[SECOND + PT, i]
                least = pt if pt < other else other
                both = pt + other
                px, py = block[PX, i] + block[SECOND + PX, i], block[PY, i] + block[SECOND + PY, i]
                pz, e = block[PZ, i] + block[SECOND + PZ, i], block[E, i] + block[SECOND + E, i]
                block[LN_KT, i] = _ln(least * delta, eps)
                block[LN_Z, i] = _ln(least / (eps if both < eps else both), eps)
                block[LN_DELTA, i] = _ln(delta, eps)
                block[LN_M2, i] = _ln(e * e - (px * px + py * py + pz * pz), eps)
            if features == 5:
                for i in range(BLOCK):
                    px, py = block[PX, i] - block[SECOND + PX, i], block[PY, i] - block[SECOND + PY, i]
                    pz, e = block[PZ, i] - block[SECOND + PZ, i], block[E, i] - block[SECOND + E, i]
                    block[LN_DS2, i] = _ln(-(e * e - (px * px + py * py + pz * pz)), eps)
            for f in range(features):
                for i in range(size):
                    out[a, f, r, start + i] = block[top + f, i]
