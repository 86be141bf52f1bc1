"""Softmax over the constituents of each jet."""

from typing import Any

from .. import _dispatch


def segment_softmax(values: Any, offsets: Any, *, threads: int | None = None, offsets_host: Any = None) -> Any:
    """Softmax over the rows of each jet, column by column: out[i] = exp(values[i]) / sum_k exp(values[k]).

    Attention weights of constituents without padding, as in attention pooling (arXiv:1901.11463) and graph attention
    (arXiv:1710.10903, eq. 3). The largest value of the jet is subtracted first, the sum is in float64.

    Parameters
    ----------
    values : (N, C) or (N,) float32 or float64, one row per constituent. Copied once if not contiguous.
    offsets : (J+1,) int64; may start above zero.
    threads : CPU threads, default `set_threads`.
    offsets_host : `offsets` in NumPy, as in `segment`; nothing needs it yet.

    Returns
    -------
    The shape and dtype of `values`; the rows of a jet add up to 1 in each column, rows outside of all jets are 0. A
    value of -inf gets 0, and a jet's column of nothing but -inf is 0; NaN or +inf makes the whole column of its jet
    NaN. A row 87.3 (float32) or 708 (float64) below the largest of its jet is 0.

    Raises
    ------
    TypeError: no arrays, mixed libraries or devices, wrong dtype. ValueError: wrong shapes, falling or out-of-range
    offsets.

    Differentiable in `values` (torch).

    >>> import numpy as np
    >>> segment_softmax(np.log([1.0, 3.0, 5.0]), np.array([0, 2, 3]))
    array([0.25, 0.75, 1.  ])
    """
    _dispatch.check_arrays("segment_softmax", values=values, offsets=offsets)
    _dispatch.check_floats("segment_softmax", values=values)
    _dispatch.check_offsets("segment_softmax", offsets)
    if values.ndim not in (1, 2):
        raise ValueError(
            f"segment_softmax: values must have shape (N, C) or (N,), got {tuple(values.shape)}; reshape them"
        )
    rows = values[:, None] if values.ndim == 1 else values
    found = _dispatch.call("segment_softmax", rows, offsets, threads=threads, offsets_host=offsets_host)
    return found[:, 0] if values.ndim == 1 else found


def check_values(values: Any, offsets: Any) -> None:
    _dispatch.check_offset_values("segment_softmax", offsets, values.shape[0])


def outputs(values: Any, offsets: Any) -> tuple:
    return ((tuple(values.shape), _dispatch.dtype_of(values)),)
