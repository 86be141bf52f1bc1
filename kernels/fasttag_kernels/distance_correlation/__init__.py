"""Distance correlation and covariance of two variables."""

from typing import Any

from .. import _dispatch

__all__ = ["distance_correlation", "distance_covariance"]


def distance_correlation(
    x: Any, y: Any, *, weights: Any = None, unbiased: bool = False, threads: int | None = None
) -> Any:
    """Squared distance correlation of x and y: 0 where they are independent, 1 where y is a + b x.

    With p_i = w_i / sum(w), a_ij = |x_i - x_j|, b_ij = |y_i - y_j|, row means abar_i = sum_j p_j a_ij and total mean
    abar = sum_i p_i abar_i: A_ij = a_ij - abar_i - abar_j + abar, B likewise, V_xy = sum_ij p_i p_j A_ij B_ij, and
    dCorr^2 = V_xy / sqrt(V_xx V_yy) (Szekely, Rizzo and Bakirov, arXiv:0803.4101, eqs. 2.8 to 2.10; with weights as in
    DisCo, arXiv:2001.05310, eq. 8). Unbiased: the U-statistic of Szekely and Rizzo, arXiv:1310.2926, section 3,

        V_xy = [sum a_ij b_ij - 2 / (n-2) sum_i a_i. b_i. + a.. b.. / ((n-1)(n-2))] / (n (n-3)),

    which can be negative. Exact, O(n log n) time (GPU: O(n^1.5)) and O(n) memory (Huo and Szekely, arXiv:1410.1503;
    Chaudhuri and Hu, arXiv:1810.11332), for value and gradients. Sums in float64 whatever the input, rounded once: a
    relative error of up to n eps S / V, with S = sum_ij p_i p_j a_ij^2, of the variable for which that is more. A
    variance of no more than n eps S, as with all but 1e-15 of the weight on one value, counts as 0.

    Parameters
    ----------
    x, y : (n,) float32 or float64, any unit in which squares of differences are normal numbers. Copied once if not
        contiguous.
    weights : (n,) of the same dtype, >= 0, any sum; None: all equal. Points of weight 0 count as left out. On a GPU
        nobody looks at them: no weight above 0 gives 0 there, one below is undefined.
    unbiased : the U-statistic; not with weights.
    threads : accepted as in every CPU op; one problem runs on one thread.

    Returns
    -------
    dCorr^2, a scalar in the dtype of `x` (torch: 0-dimensional).
    Degenerate input: fewer than 2 points (unbiased: 4), or x or y without variance give 0 with gradient 0; so does
    an unbiased variance that is 0 but for rounding, as with one point apart and all others equal. NaN or inf in a point
    whose weight is not 0, or in a weight, gives NaN where there are points enough.

    Raises
    ------
    TypeError: no arrays, mixed libraries, devices or dtypes. ValueError: wrong shapes, a negative weight, points
    but no weight above 0, unbiased with weights.

    Differentiable in `x` and `y` (torch); |.| has derivative 0 at 0, as in torch, so ties do not push each other.

    >>> import numpy as np
    >>> x = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    >>> round(float(distance_correlation(x, x**2)), 4)  # their linear correlation is 0
    0.2662
    """
    return _call("distance_correlation", x, y, weights, unbiased, False, threads)


def distance_covariance(
    x: Any, y: Any, *, weights: Any = None, unbiased: bool = False, threads: int | None = None
) -> Any:
    """Squared distance covariance V_xy of x and y, in the unit of x times that of y: see `distance_correlation`.

    The same arguments, degenerate inputs, errors and gradients.

    >>> import numpy as np
    >>> float(distance_covariance(np.array([0.0, 1.0]), np.array([0.0, 4.0])))
    1.0
    """
    return _call("distance_covariance", x, y, weights, unbiased, True, threads)


def _call(name: str, x: Any, y: Any, weights: Any, unbiased: bool, covariance: bool, threads: int | None) -> Any:
    arrays = {"x": x, "y": y} | ({} if weights is None else {"weights": weights})
    library = _dispatch.check_arrays(name, **arrays)
    _dispatch.check_floats(name, **arrays)
    if x.ndim != 1:
        raise ValueError(f"{name}: x must have shape (n,), got {tuple(x.shape)}; pass one variable")
    for other, array in arrays.items():
        if array.shape != x.shape:
            raise ValueError(
                f"{name}: {other} must have the shape of x, {tuple(x.shape)}, got {tuple(array.shape)}; make them match"
            )
    if unbiased and weights is not None:
        raise ValueError(f"{name}: weights must be None where unbiased=True, got an array; leave out one of the two")
    found = _dispatch.call("distance_correlation", x, y, weights, bool(unbiased), covariance, threads=threads)
    return found if library == "torch" else found[()]


def check_values(x: Any, y: Any, weights: Any, unbiased: bool, covariance: bool, needed: list[bool]) -> None:
    if weights is None or not len(weights) or _dispatch.device_of(weights) != "cpu":
        return
    name = "distance_covariance" if covariance else "distance_correlation"
    least, most = weights.min(), weights.max()
    if least < 0:
        raise ValueError(f"{name}: weights must be 0 or more, got {least}; clip them, or leave these points out")
    if most == 0:
        raise ValueError(f"{name}: weights must not all be 0, got {len(weights)} zeros; pass no points at all for 0")


def outputs(x: Any, y: Any, weights: Any, unbiased: bool, covariance: bool, needed: list[bool]) -> tuple:
    dtype = _dispatch.dtype_of(x)
    return ((), dtype), *(((x.shape[0] if need else 0,), dtype) for need in needed)
