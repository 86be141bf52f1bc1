"""EdgeConv edge by edge as the papers write it, in float64."""

from itertools import pairwise

import numpy as np

EPS = 1e-5


def edge_conv(x, neighbours, offsets, weights, running, *, statistics="running", padded=0, missing="real"):
    """The contract is in the docstring of `edge_conv`; padded rows and their edges are really there."""
    x, layers, shortcut, given = _arranged(x, weights, running)
    if statistics == "batch":
        given = [None] * len(given)
    zeros = sum(padded - n for n in np.diff(offsets)) if padded else 0
    owner, own, other = _pairs(x, neighbours, offsets, missing)
    e = np.concatenate([own, other - own], 1)
    e = np.concatenate([e, np.zeros((zeros * neighbours.shape[1], e.shape[1]))])
    moments = []
    for (weight, gamma, beta), statistic in zip(layers, given):
        e, found = _normalised(e @ weight.T, gamma, beta, statistic)
        e = np.maximum(e, 0)
        moments.append(found)
    a, b = offsets[0], offsets[-1]
    added = x
    if shortcut:
        rows = np.concatenate([x[a:b], np.zeros((zeros, x.shape[1]))])
        rows, found = _normalised(rows @ shortcut[0].T, shortcut[1], shortcut[2], given[-1])
        added = np.concatenate([np.zeros((a, rows.shape[1])), rows[: b - a], np.zeros((len(x) - b, rows.shape[1]))])
        moments.append(found)
    out = np.maximum(added + _mean(e[: len(owner)], owner, len(x)), 0)
    out[:a] = out[b:] = 0
    return out if statistics == "running" else (out, np.concatenate(moments, 1))


def rounding_scale(x, neighbours, offsets, weights, running, *, missing="real"):
    """Running statistics: half of the number of roundings behind each result, times what they are at most relative to.

    That is the result with every term of every sum taken by its absolute value.
    """
    x, layers, shortcut, given = _arranged(x, weights, running)
    x = np.abs(x)
    owner, own, other = _pairs(x, neighbours, offsets, missing)
    e = np.concatenate([own, other + own], 1)

    def largest(e, layer, statistic):
        scale = np.abs(layer[1]) / np.sqrt(statistic[1] + EPS)
        return (e @ np.abs(layer[0]).T + np.abs(statistic[0])) * scale + np.abs(layer[2])

    for layer, statistic in zip(layers, given):
        e = largest(e, layer, statistic)
    out = _mean(e, owner, len(x)) + (largest(x, shortcut, given[-1]) if shortcut else x)
    roundings = sum(layer[0].shape[1] + 6 for layer in layers) + neighbours.shape[1]
    return roundings / 2 * out


def _arranged(x, weights, running):
    """In float64: x, (weight, gamma, beta) of the layers, of the shortcut or None, (mean, variance) of each."""
    x, weights, running = (
        x.astype(np.float64),
        *([array.astype(np.float64) for array in arrays] for arrays in (weights, running)),
    )
    layers = [weights[i : i + 3] for i in range(0, len(weights), 3)]
    shortcut = layers.pop() if layers[-1][0].shape[0] != x.shape[1] else None
    return x, layers, shortcut, list(zip(running[::2], running[1::2]))


def _pairs(x, neighbours, offsets, missing):
    """i of each edge, x_i and x_j."""
    owner, own, other = [], [], []
    for a, b in pairwise(offsets):
        for i in range(a, b):
            for j in neighbours[i]:
                if j >= 0 or missing == "ghost":
                    owner.append(i)
                    own.append(x[i])
                    other.append(x[a + j] if j >= 0 else np.zeros(x.shape[1]))
    return owner, *(np.array(side).reshape(-1, x.shape[1]) for side in (own, other))


def _normalised(z, gamma, beta, statistic):
    """z with mean 0 and variance 1, then gamma and beta; its mean, biased variance and number of values."""
    if statistic is None:
        columns = np.ascontiguousarray(z.T)  # NumPy adds along rows in pairs, along columns one by one
        statistic = (columns.mean(1), columns.var(1)) if len(z) else np.zeros((2, z.shape[1]))
    mean, variance = statistic
    return (z - mean) / np.sqrt(variance + EPS) * gamma + beta, np.array([mean, variance, np.full(len(mean), len(z))])


def _mean(e, owner, rows):
    total, count = np.zeros((rows, e.shape[1])), np.zeros((rows, 1))
    np.add.at(total, owner, e)
    np.add.at(count, owner, 1)
    return total / np.maximum(count, 1)
