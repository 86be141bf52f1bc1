"""The loops between the products: they work on points first..last, whose edges are the rows of z from 0 on."""

import numpy as np

from .._numba import kernel
from .._simd import LANES, load, store, store_first


@kernel
def locate(first, last, neighbours, offsets, ghost, index):
    """Positions within jets first..last to rows counted from the first jet on; a missing neighbour is row `ghost`."""
    start = offsets[0]
    for j in range(first, last):
        for i in range(offsets[j], offsets[j + 1]):
            for n in range(neighbours.shape[1]):
                found = neighbours[i, n]
                index[i - start, n] = found + offsets[j] - start if found >= 0 else ghost


@kernel
def edges(first, last, nodes, side, index, width, z):
    """W_1 e of each edge; zeros where there is none."""
    k = index.shape[1]
    for i in range(first, last):
        for n in range(k):
            row, j = (i - first) * k + n, np.int64(index[i, n])
            if j < 0:
                z[row] = 0
            else:
                for c in range(0, width, LANES):
                    store(z, row, c, load(nodes, i, c) + load(nodes, j, side + c))


@kernel
def activate(rows, width, z, scale, shift, h):
    """max(0, BN(z)); NaN stays NaN."""
    zero = z.dtype.type(0)
    for row in range(rows):
        for c in range(0, width, LANES):
            at = c // LANES
            store(h, row, c, max(zero, load(z, row, c) * load(scale, at, 0) + load(shift, at, 0)))


@kernel
def pool(first, last, z, index, scale, shift, added, column, added_scale, added_shift, out):
    """Mean over the edges of each point, plus the shortcut, whose products lie in `added` from `column` on."""
    k, width, zero = index.shape[1], out.shape[1], z.dtype.type(0)
    for i in range(first, last):
        count = 0
        for n in range(k):
            count += index[i, n] >= 0
        part = z.dtype.type(1 / max(count, 1))
        for c in range(0, width, LANES):
            at = c // LANES
            by, to = load(scale, at, 0), load(shift, at, 0)
            total = by * zero
            for n in range(k):
                if index[i, n] >= 0:
                    total = total + max(zero, load(z, (i - first) * k + n, c) * by + to)
            own = load(added, i, column + c) * load(added_scale, at, 0) + load(added_shift, at, 0)
            store_first(out[i], c, max(zero, total * part + own), min(LANES, width - c))


@kernel
def moments(first, last, z, index, sums):
    """Add the sums of z and of z^2 over edges."""
    k = index.shape[1]
    for i in range(first, last):
        for n in range(k):
            if index[i, n] >= 0:
                row = (i - first) * k + n
                for c in range(sums.shape[1]):
                    value = np.float64(z[row, c])
                    sums[0, c] += value
                    sums[1, c] += value * value


@kernel
def spread(first, last, gradient, index, up):
    """The gradient in a mean to each of its edges."""
    k = index.shape[1]
    for i in range(first, last):
        count = 0
        for n in range(k):
            count += index[i, n] >= 0
        part = gradient.dtype.type(1 / max(count, 1))
        for n in range(k):
            row = (i - first) * k + n
            for c in range(gradient.shape[1]):
                up[row, c] = gradient[i, c] * part


@kernel
def gradient_sums(first, last, z, up, index, scale, shift, mean, sums):
    """Add the sums over edges of g and g (z - mean), with g the gradient behind the normalisation."""
    k, zero = index.shape[1], z.dtype.type(0)
    for i in range(first, last):
        for n in range(k):
            if index[i, n] >= 0:
                row = (i - first) * k + n
                for c in range(sums.shape[1]):
                    g = np.float64(up[row, c] if z[row, c] * scale[c] + shift[c] > 0 else zero)
                    sums[0, c] += g
                    sums[1, c] += g * (z[row, c] - mean[c])


@kernel
def normalise_backward(first, last, z, up, index, scale, shift, mean, constant, slope):
    """up, the gradient behind max(0, BN(z)), becomes that in z: scale g + constant + slope (z - mean)."""
    k, zero = index.shape[1], z.dtype.type(0)
    for i in range(first, last):
        for n in range(k):
            row = (i - first) * k + n
            if index[i, n] < 0:
                up[row] = 0
            else:
                for c in range(len(slope)):
                    g = up[row, c] if z[row, c] * scale[c] + shift[c] > 0 else zero
                    up[row, c] = scale[c] * g + constant[c] + slope[c] * (z[row, c] - mean[c])


@kernel
def collect(first, last, up, offsets, index, nodes, side, scale, shift, mean, constant, slope, grad_nodes):
    """What the edges of jets first..last give to both their ends: a jet has one owner, so there is one order."""
    k, zero = index.shape[1], up.dtype.type(0)
    for jet in range(first, last):
        a, b = offsets[jet], offsets[jet + 1]
        for i in range(a, b):
            for n in range(k):
                j, row = index[i, n], i * k + n
                if j < 0:
                    continue
                for c in range(len(slope)):
                    z = nodes[i, c] + nodes[j, side + c]
                    g = up[row, c] if z * scale[c] + shift[c] > 0 else zero
                    g = scale[c] * g + constant[c] + slope[c] * (z - mean[c])
                    up[row, c] = g
                    grad_nodes[i, c] += g
                if j < b:
                    for c in range(len(slope)):
                        grad_nodes[j, side + c] += up[row, c]
