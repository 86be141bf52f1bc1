"""The loops between the products: they work on points first..last, whose edges are the rows of z from 0 on."""

import numpy as np

from .._numba import kernel


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
def edges(first, last, nodes, index, z):
    """W_1 e of each edge; zeros where there is none, and in the rows behind."""
    k, channels = index.shape[1], z.shape[1]
    for i in range(first, last):
        for n in range(k):
            row, j = (i - first) * k + n, index[i, n]
            if j < 0:
                z[row] = 0
            else:
                for c in range(channels):
                    z[row, c] = nodes[i, c] + nodes[j, channels + c]
    z[(last - first) * k :] = 0


@kernel
def activate(z, scale, shift, h):
    """max(0, BN(z)); NaN stays NaN."""
    for row in range(z.shape[0]):
        for c in range(z.shape[1]):
            u = z[row, c] * scale[c] + shift[c]
            h[row, c] = 0 if u < 0 else u


@kernel
def pool(first, last, z, index, scale, shift, added, column, added_scale, added_shift, out):
    """Mean over the edges of each point, plus the shortcut, whose products lie in `added` from `column` on."""
    k, channels = index.shape[1], z.shape[1]
    total = np.empty(channels, z.dtype)
    for i in range(first, last):
        total[:] = 0
        count = 0
        for n in range(k):
            if index[i, n] >= 0:
                count += 1
                row = (i - first) * k + n
                for c in range(channels):
                    u = z[row, c] * scale[c] + shift[c]
                    total[c] += 0 if u < 0 else u
        part = z.dtype.type(1 / max(count, 1))
        for c in range(channels):
            u = total[c] * part + (added[i, column + c] * added_scale[c] + added_shift[c])
            out[i, c] = 0 if u < 0 else u


@kernel
def moments(first, last, z, index, sums):
    """Add the sums of z and of z^2 over edges."""
    k = index.shape[1]
    for i in range(first, last):
        for n in range(k):
            if index[i, n] >= 0:
                row = (i - first) * k + n
                for c in range(z.shape[1]):
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
            for c in range(up.shape[1]):
                up[row, c] = gradient[i, c] * part


@kernel
def gradient_sums(first, last, z, up, index, scale, shift, mean, sums):
    """Add the sums over edges of g and g (z - mean), with g the gradient behind the normalisation."""
    k = index.shape[1]
    for i in range(first, last):
        for n in range(k):
            if index[i, n] >= 0:
                row = (i - first) * k + n
                for c in range(z.shape[1]):
                    g = np.float64(up[row, c] if z[row, c] * scale[c] + shift[c] > 0 else 0)
                    sums[0, c] += g
                    sums[1, c] += g * (z[row, c] - mean[c])


@kernel
def normalise_backward(first, last, z, up, index, scale, shift, mean, constant, slope):
    """up, the gradient behind max(0, BN(z)), becomes that in z: scale g + constant + slope (z - mean)."""
    k = index.shape[1]
    for i in range(first, last):
        for n in range(k):
            row = (i - first) * k + n
            if index[i, n] < 0:
                up[row] = 0
            else:
                for c in range(z.shape[1]):
                    g = up[row, c] if z[row, c] * scale[c] + shift[c] > 0 else 0
                    up[row, c] = scale[c] * g + constant[c] + slope[c] * (z[row, c] - mean[c])
    up[(last - first) * k :] = 0


@kernel
def collect(first, last, up, offsets, index, nodes, scale, shift, mean, constant, slope, grad_nodes):
    """What the edges of jets first..last give to both their ends: a jet has one owner, so there is one order."""
    k, channels = index.shape[1], up.shape[1]
    for jet in range(first, last):
        a, b = offsets[jet] - offsets[0], offsets[jet + 1] - offsets[0]
        grad_nodes[a:b, : 2 * channels] = 0
        for i in range(a, b):
            for n in range(k):
                j, row = index[i, n], i * k + n
                if j < 0:
                    continue
                for c in range(channels):
                    z = nodes[i, c] + nodes[j, channels + c]
                    g = up[row, c] if z * scale[c] + shift[c] > 0 else 0
                    g = scale[c] * g + constant[c] + slope[c] * (z - mean[c])
                    up[row, c] = g
                    grad_nodes[i, c] += g
                if j < b:
                    for c in range(channels):
                        grad_nodes[j, channels + c] += up[row, c]
