"""Oracle: exact sums, rounded once to float64; their mean; maxima."""

import math

import numpy as np


def segment(values, offsets, reduce="sum"):
    values = np.asarray(values, np.float64)
    found = np.zeros((len(offsets) - 1, *values.shape[1:]))
    for index in np.ndindex(found.shape):
        j, *channel = index
        column = values[(slice(offsets[j], offsets[j + 1]), *channel)]
        if reduce == "max":
            found[index] = np.max(column) if column.size else 0
        else:
            found[index] = math.fsum(column) / (max(column.size, 1) if reduce == "mean" else 1)
    return found
