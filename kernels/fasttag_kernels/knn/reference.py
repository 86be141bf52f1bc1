"""Oracle, in the dtype of x: rounding decides between neighbours at almost the same distance."""

from itertools import pairwise

import numpy as np


def knn(x, k=16, *, offsets=None, periodic=None):
    x = np.array(x)
    pi, two_pi = x.dtype.type(np.pi), x.dtype.type(2 * np.pi)
    found = np.full((len(x), k), -1, np.int32)
    offsets = [0, len(x)] if offsets is None else offsets
    with np.errstate(all="ignore"):
        if periodic is not None:
            x[:, periodic] -= np.floor((x[:, periodic] + pi) / two_pi) * two_pi
        for a, b in pairwise(offsets):
            for i in range(a, b):
                d2 = np.zeros(b - a, x.dtype)
                for c in range(x.shape[1]):
                    d = np.abs(x[i, c] - x[a:b, c])
                    d = np.minimum(d, two_pi - d) if c == periodic else d
                    d2 += d * d
                d2 = np.where(d2 < np.inf, d2, np.inf)
                order = np.argsort(d2, kind="stable")
                order = order[order != i - a][:k]
                found[i, : len(order)] = order
    return found
