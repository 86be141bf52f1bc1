"""Oracle."""

from itertools import pairwise

import numpy as np


def standardize(values, offsets, center, scale, low, high, pad_value, length, wrap=False):
    column = lambda x: np.asarray(x, np.float64)[:, None]
    with np.errstate(all="ignore"):
        x = (np.asarray(values, np.float64) - column(center)) * column(scale)
    x = np.where(x < column(low), column(low), np.where(x > column(high), column(high), x))
    x = np.where(np.isnan(x), 0.0, x)
    out = np.empty((len(offsets) - 1, len(values), length))
    out[:] = column(pad_value)
    for j, (a, b) in enumerate(pairwise(offsets)):
        if wrap and b > a:
            out[j] = x[:, a + np.arange(length) % (b - a)]
        else:
            n = min(b - a, length)
            out[j, :, :n] = x[:, a : a + n]
    return out
