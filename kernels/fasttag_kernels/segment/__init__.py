"""Sums over the constituents of each jet."""

from typing import Any

from .. import _dispatch


def segment(values: Any, offsets: Any, *, threads: int | None = None, offsets_host: Any = None) -> Any:
    """Sum rows over each jet: out[j] = sum of values[i] for offsets[j] <= i < offsets[j+1].

    The permutation-invariant sum of Deep Sets (arXiv:1703.06114, Theorem 2) and of energy flow and particle flow
    networks (arXiv:1810.05165, eqs. 1.1 and 1.2), without padding. Sums are accumulated in float64.

    Parameters
    ----------
    values : (N, C) or (N,) float32 or float64, one row per constituent; any unit. Copied once if not contiguous.
    offsets : (J+1,) int64; may start above zero; rows outside of all jets are ignored.
    threads : CPU threads, default `set_threads`.
    offsets_host : `offsets` in NumPy, needed on a GPU, where nobody waits to look at them; `Jets` brings it.

    Returns
    -------
    (J, C) or (J,) in the dtype of `values`; 0 for a jet without constituents. NaN and inf propagate.

    Raises
    ------
    TypeError: no arrays, mixed libraries or devices, wrong dtype. ValueError: wrong shapes, falling or out-of-range
    offsets.

    Differentiable in `values` (torch).

    >>> import numpy as np
    >>> segment(np.array([1.0, 2.0, 4.0]), np.array([0, 2, 3]))
    array([3., 4.])
    """
    _dispatch.check_arrays("segment", values=values, offsets=offsets)
    _dispatch.check_floats("segment", values=values)
    _dispatch.check_offsets("segment", offsets)
    if values.ndim not in (1, 2):
        raise ValueError(f"segment: values must have shape (N, C) or (N,), got {tuple(values.shape)}; reshape them")
    rows = values[:, None] if values.ndim == 1 else values
    sums = _dispatch.call("segment", rows, offsets, threads=threads, offsets_host=offsets_host)
    return sums[:, 0] if values.ndim == 1 else sums


def check_values(values: Any, offsets: Any) -> None:
    _dispatch.check_offset_values("segment", offsets, values.shape[0])


def outputs(values: Any, offsets: Any) -> tuple:
    return (((offsets.shape[0] - 1, values.shape[1]), _dispatch.dtype_of(values)),)
