"""Oracle: arguments of the logarithms in the dtype of the input and in weaver's order, logarithms in float64."""

import numpy as np


def pair_grid(first, second, features=4, eps=1e-8):
    dtype = first.dtype.type
    pi, eps = dtype(np.pi), dtype(eps)
    px, py, pz, e, pt, y, phi = zip(first.swapaxes(0, 1), second.swapaxes(0, 1))
    with np.errstate(all="ignore"):
        dphi = np.mod(phi[0] - phi[1] + pi, 2 * pi) - pi
        delta = np.sqrt((y[0] - y[1]) ** 2 + dphi**2)
        least = np.minimum(*pt)
        square = lambda sign: (
            (e[0] + sign * e[1]) ** 2
            - ((px[0] + sign * px[1]) ** 2 + (py[0] + sign * py[1]) ** 2 + (pz[0] + sign * pz[1]) ** 2)
        )
        found = [least * delta, least / np.maximum(pt[0] + pt[1], eps), delta, square(dtype(1)), -square(dtype(-1))]
        chosen = [found[2]] if features == 1 else found[:features]
        return np.stack([np.log(np.maximum(x, eps).astype(np.float64)) for x in chosen], 1)
