"""Oracle: exact sums, rounded once to float64."""

import math

import numpy as np


def segment(values, offsets):
    values = np.asarray(values, np.float64)
    sums = np.zeros((len(offsets) - 1, *values.shape[1:]))
    for index in np.ndindex(sums.shape):
        j, *channel = index
        sums[index] = math.fsum(values[(slice(offsets[j], offsets[j + 1]), *channel)])
    return sums
