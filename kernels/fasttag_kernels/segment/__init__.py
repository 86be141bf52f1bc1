"""Sums, means and maxima over the constituents of each jet."""

from typing import Any

from .. import _dispatch

REDUCTIONS = ("sum", "mean", "max")


def segment(
    values: Any, offsets: Any, *, reduce: str = "sum", threads: int | None = None, offsets_host: Any = None
) -> Any:
    """Reduce rows over each jet: out[j] = sum, mean or max of values[i] for offsets[j] <= i < offsets[j+1].

    The permutation-invariant sum of Deep Sets (arXiv:1703.06114, Theorem 2) and of energy flow and particle flow
    networks (arXiv:1810.05165, eqs. 1.1 and 1.2), and the mean pooling of ParticleNet (arXiv:1902.08570, section 3.3),
    without padding. Sums are accumulated in float64, and divided there for the mean.

    Parameters
    ----------
    values : (N, C) or (N,) float32 or float64, one row per constituent; any unit. Copied once if not contiguous.
    offsets : (J+1,) int64; may start above zero; rows outside of all jets are ignored.
    reduce : "sum", "mean" (the sum over the number of constituents) or "max" (by column).
    threads : CPU threads, default `set_threads`.
    offsets_host : `offsets` in NumPy, needed on a GPU, where nobody waits to look at them; `Jets` brings it.

    Returns
    -------
    (J, C) or (J,) in the dtype of `values`; 0 for a jet without constituents, the maximum included. NaN and inf
    propagate: the maximum of a column with NaN is NaN.

    Raises
    ------
    TypeError: no arrays, mixed libraries or devices, wrong dtype. ValueError: wrong shapes, an unknown reduction,
    falling or out-of-range offsets.

    Differentiable in `values` (torch). The gradient of a maximum goes to the first row that attains it, or to the first
    NaN; torch's `amax` divides it among all rows that do.

    >>> import numpy as np
    >>> segment(np.array([1.0, 2.0, 4.0]), np.array([0, 2, 3]))
    array([3., 4.])
    >>> segment(np.array([1.0, 2.0, 4.0]), np.array([0, 2, 3]), reduce="mean")
    array([1.5, 4. ])
    """
    _dispatch.check_arrays("segment", values=values, offsets=offsets)
    _dispatch.check_floats("segment", values=values)
    _dispatch.check_offsets("segment", offsets)
    if values.ndim not in (1, 2):
        raise ValueError(f"segment: values must have shape (N, C) or (N,), got {tuple(values.shape)}; reshape them")
    if reduce not in REDUCTIONS:
        raise ValueError(f"segment: reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}; choose one")
    rows = values[:, None] if values.ndim == 1 else values
    found = _dispatch.call("segment", rows, offsets, reduce, threads=threads, offsets_host=offsets_host)
    return found[:, 0] if values.ndim == 1 else found


def check_values(values: Any, offsets: Any, reduce: str) -> None:
    _dispatch.check_offset_values("segment", offsets, values.shape[0])


def outputs(values: Any, offsets: Any, reduce: str) -> tuple:
    return (((offsets.shape[0] - 1, values.shape[1]), _dispatch.dtype_of(values)),)
