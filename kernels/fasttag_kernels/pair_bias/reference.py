"""float64 oracle: all pairs i >= j of all jets through the layers, one matrix at a time."""

import math
from itertools import pairwise

import numpy as np

from ..pairwise_features import reference as pairwise_features
from . import EPS

NAMES = ("ln_kt", "ln_z", "ln_delta", "ln_m2")


def gelu(x):
    return 0.5 * x * np.vectorize(math.erfc, otypes=[float])(-x / np.sqrt(2))


def weavers_ln_m2(p4):
    """(n, n) of one jet: the sums and products rounded one by one in the dtype of p4, the logarithm in float64."""
    with np.errstate(all="ignore"):
        x, y, z, e = p4[:, :, None] + p4[:, None]
        m2 = e * e - ((x * x + y * y) + z * z)
        return np.log(np.maximum(m2, p4.dtype.type(1e-8)).astype(np.float64))


def lower_features(p4, offsets, m2="reference"):
    """(4, pairs i >= j)."""
    jets = [np.empty((4, 0))]
    for a, b in pairwise(offsets):
        found = pairwise_features.jet_features(p4[:, a:b])
        if m2 == "reference":
            found["ln_m2"] = np.where(np.isnan(found["ln_m2"]), np.nan, weavers_ln_m2(p4[:, a:b]))
        jets.append(np.stack([found[name][np.tril_indices(b - a)] for name in NAMES]))
    return np.concatenate(jets, axis=1)


def counts(offsets, ordered=False, remove_self_pair=False):
    """How often each pair i >= j counts."""
    found = [np.empty(0)]
    for n in np.diff(offsets):
        i, j = np.tril_indices(n)
        found.append(np.where(i == j, 0.0 if remove_self_pair else 1.0, 2.0 if ordered else 1.0))
    return np.concatenate(found)


def to_full(lower, offsets):
    """(H, pairs i >= j) -> (H, M), symmetric."""
    jets, start = [np.empty((len(lower), 0))], 0
    for n in np.diff(offsets):
        i, j = np.tril_indices(n)
        square = np.empty((len(lower), n, n))
        square[:, i, j] = square[:, j, i] = lower[:, start : start + i.size]
        start += i.size
        jets.append(square.reshape(len(lower), -1))
    return np.concatenate(jets, axis=1)


def pair_bias(
    p4,
    offsets,
    weights,
    running,
    *,
    statistics="running",
    last_activation=False,
    ordered=False,
    remove_self_pair=False,
    m2="reference",
):
    """The bias, and with statistics="batch" the moments."""
    weights, running = [w.astype(np.float64) for w in weights], [r.astype(np.float64) for r in running]
    weight = counts(offsets, ordered, remove_self_pair)
    moments: list[tuple] = []

    def normalised(x, gamma, beta):
        if statistics == "running":
            mean, variance = running[2 * len(moments) : 2 * len(moments) + 2]
        else:
            total = max(weight.sum(), 1)
            mean = (x * weight).sum(1) / total
            variance = ((x - mean[:, None]) ** 2 * weight).sum(1) / total
        moments.append((mean, variance))
        return (x - mean[:, None]) / np.sqrt(variance + EPS)[:, None] * gamma[:, None] + beta[:, None]

    x = normalised(lower_features(p4, offsets, m2), *weights[:2])
    for k in range(2, len(weights), 4):
        matrix, bias, gamma, beta = weights[k : k + 4]
        x = normalised(matrix @ x + bias[:, None], gamma, beta)
        if last_activation or k + 4 < len(weights):
            x = gelu(x)
    bias = to_full(np.where(weight > 0, x, 0), offsets)
    return bias if statistics == "running" else (bias, np.concatenate(moments, axis=1))


def rounding_scale(p4, offsets, weights, running):
    """(H, M): how many eps of the dtype the bias may be off with known statistics: what every rounding can become.

    The slope of GELU is at most 1.13; a sum of C products is rounded C times, each time by eps / 2 of the sum of the
    absolute values, BN's scale and shift come on top.
    """
    weights, running = [w.astype(np.float64) for w in weights], [r.astype(np.float64) for r in running]
    features = np.abs(lower_features(p4, offsets))
    jets = pairwise_features.rounding_scale(p4, offsets, NAMES)
    lower = np.concatenate([np.empty(0, bool), *(np.tri(n, dtype=bool).ravel() for n in np.diff(offsets))])
    error = jets[:, lower] + 2 * features
    error[3] = 2 * features[3]  # m^2 has the oracle's bits
    size = features
    gamma, beta = weights[:2]
    mean, variance = running[:2]
    spread = np.abs(gamma) / np.sqrt(variance + EPS)
    size, error = (spread[:, None] * (size + np.abs(mean)[:, None]) + np.abs(beta)[:, None]), spread[:, None] * error
    for layer, k in enumerate(range(2, len(weights), 4)):
        matrix, bias, gamma, beta = (np.abs(w) for w in weights[k : k + 4])
        mean, variance = running[2 * layer + 2 : 2 * layer + 4]
        spread = gamma / np.sqrt(variance + EPS)
        total = matrix @ size + bias[:, None] + np.abs(mean)[:, None]
        error = spread[:, None] * (matrix @ error + (matrix.shape[1] / 2 + 2) * total)
        size = spread[:, None] * total + beta[:, None]
        error = 1.13 * (error + 2 * size) + 6 * size
    return to_full(error, offsets)
