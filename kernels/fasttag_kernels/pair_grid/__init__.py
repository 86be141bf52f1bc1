"""Weaver's features of the pairs of two broadcast sets of particles."""

import numbers
from typing import Any

from .. import _dispatch

ROWS = ("px", "py", "pz", "E", "pt", "rapidity", "phi")
COUNTS = (1, 3, 4, 5)
LEAST_EPS = 1.2e-38  # the least normal float32


def pair_grid(first: Any, second: Any, features: int = 4, *, eps: float = 1e-8, threads: int | None = None) -> Any:
    """ln kT, ln z, ln Delta, ln m^2 and ln(-(p_i - p_j)^2) of pairs (i, j), to weaver's definitions and clamps.

    Delta = sqrt((y_i - y_j)^2 + dphi^2) with dphi wrapped to [-pi, pi);  kT = min(pt_i, pt_j) Delta;
    z = min(pt_i, pt_j) / (pt_i + pt_j);  m^2 = (E_i + E_j)^2 - |p_i + p_j|^2.
    What stands under a logarithm or a fraction line is clamped at `eps` from below. All of it is evaluated in the dtype
    of the input, in the order of weaver-core and without fused multiplications, so that a logarithm's argument has
    weaver's bits, rounding noise of m^2 included, but for the root in Delta, which torch rounds less well (1 ulp); the
    logarithms are good to 1 ulp. Rapidity and phi are arguments because formulas for them differ.

    Parameters
    ----------
    first, second : (A, 7, R, C) float32 or float64, rows px, py, pz, E, pt (GeV), rapidity, phi (in [-pi, pi]).
        A, R and C broadcast: (1, 7, R, 1) and (1, 7, 1, C) give all pairs, twice (1, 7, R, C) pairs one by one.
    features : 1 (only ln Delta), 3 (ln kT, ln z, ln Delta), 4 (and ln m^2) or 5 (and ln(-(p_i - p_j)^2)).
    eps : the least argument of a logarithm, 1.2e-38 or more, below 1.
    threads : CPU threads, default `set_threads`.

    Returns
    -------
    (A, features, R, C) in the dtype of the input. NaN for particles with NaN in E, pt, rapidity and phi.

    Raises
    ------
    TypeError: no arrays, mixed libraries, devices or dtypes. ValueError: shapes that are not (A, 7, R, C) or do not
    broadcast, another number of features, eps too small.

    Not differentiable.

    Paper: Particle Transformer, arXiv:2202.03772, eq. (3).

    >>> import numpy as np
    >>> one = np.array([3.0, 4.0, 0.0, 5.0, 5.0, 0.0, 0.0]).reshape(1, 7, 1, 1)
    >>> np.exp(pair_grid(one, one)[0, :, 0, 0]).round(9)
    array([1.e-08, 5.e-01, 1.e-08, 1.e-08])
    """
    _dispatch.check_arrays("pair_grid", first=first, second=second)
    _dispatch.check_floats("pair_grid", first=first, second=second)
    for name, array in (("first", first), ("second", second)):
        if array.ndim != 4 or array.shape[1] != len(ROWS):
            raise ValueError(
                f"pair_grid: {name} must have shape (A, 7, R, C), rows {', '.join(ROWS)}, got {tuple(array.shape)}; "
                "add axes of length 1"
            )
    for axis in (0, 2, 3):
        if first.shape[axis] != second.shape[axis] and 1 not in (first.shape[axis], second.shape[axis]):
            raise ValueError(
                f"pair_grid: first and second must broadcast, got {tuple(first.shape)} and {tuple(second.shape)}; "
                "axes other than the second must be equal or 1"
            )
    if isinstance(features, bool) or features not in COUNTS:
        raise ValueError(f"pair_grid: features must be 1, 3, 4 or 5, got {features!r}; 4 is usual")
    if not isinstance(eps, numbers.Real) or not LEAST_EPS <= eps < 1:
        raise ValueError(f"pair_grid: eps must be {LEAST_EPS} or more and below 1, got {eps!r}; 1e-8 is usual")
    return _dispatch.call("pair_grid", first, second, int(features), float(eps), threads=threads)


def check_values(*_: Any) -> None:
    """Any values will do."""


def outputs(first: Any, second: Any, features: int, eps: float) -> tuple:
    a, r, c = (first.shape[axis] if second.shape[axis] == 1 else second.shape[axis] for axis in (0, 2, 3))
    return (((a, features, r, c), _dispatch.dtype_of(first)),)
