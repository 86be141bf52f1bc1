"""Oracle: the definition, all n^2 pairs, a block of rows at a time."""

import numpy as np

ROWS = 256  # 10 MB per matrix for 5000 points


def distance_correlation(x, y, weights=None, unbiased=False):
    v_xy, v_xx, v_yy = variances(x, y, weights, unbiased)
    return v_xy / np.sqrt(v_xx * v_yy) if v_xx * v_yy != 0 else v_xx * v_yy


def distance_covariance(x, y, weights=None, unbiased=False):
    return variances(x, y, weights, unbiased)[0]


def variances(x, y, weights=None, unbiased=False):
    """V_xy, V_xx, V_yy; 0 where there are too few points, or only one value of x or y."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    x, y, w = x[w != 0], y[w != 0], w[w != 0]
    n = len(x)
    if n < (4 if unbiased else 2) or (x == x[0]).all() or (y == y[0]).all():
        return np.zeros(3)
    # U-centring divides sums by n - 2 and (n - 1)(n - 2), leaves out the diagonal, and averages over n (n - 3) pairs
    p = np.full(n, 1 / (n - 2)) if unbiased else w / w.sum()
    outer = np.full(n, 1 / (n - 1)) if unbiased else p
    pairs = np.full(n, (n * (n - 3)) ** -0.5) if unbiased else p
    blocks = [np.arange(start, min(start + ROWS, n)) for start in range(0, n, ROWS)]
    found = np.zeros(3)
    with np.errstate(invalid="ignore"):  # inf - inf
        means = [np.concatenate([np.abs(v[block, None] - v) @ p for block in blocks]) for v in (x, y)]
        for block in blocks:
            a, b = (np.abs(v[block, None] - v) - m[block, None] - m + m @ outer for v, m in zip((x, y), means))
            if unbiased:
                a[np.arange(len(block)), block] = b[np.arange(len(block)), block] = 0
            found += [pairs[block] @ (m @ pairs) for m in (a * b, a * a, b * b)]
    return found


def rounding_scale(x, y, weights=None):
    """n/2 (S_xx / V_xx + S_yy / V_yy), S = sum_ij p_i p_j a_ij^2: V comes from n additions of terms that S bounds."""
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    s = [2 * np.cov(np.asarray(v, np.float64), aweights=w, ddof=0) for v in (x, y)]
    v = variances(x, y, weights)[1:]
    return len(x) / 2 * sum(np.divide(s, v, out=np.ones(2), where=v > 0))
