"""Ragged rows to a padded block."""

from typing import Any

from .. import _dispatch


def pad(
    values: Any,
    offsets: Any,
    length: int,
    *,
    truncate: bool = False,
    threads: int | None = None,
    offsets_host: Any = None,
) -> Any:
    """Lay the constituents of each jet side by side in a zero-padded block.

    Parameters
    ----------
    values : (F, N) float32 or float64, F numbers per constituent, constituents last (as in Jets.p4).
    offsets : (J+1,) int64; may start above zero.
    length : slots per jet, L >= 0.
    truncate : keep the first L constituents of longer jets instead of raising.
    threads : CPU threads, default `set_threads`.
    offsets_host : `offsets` in NumPy, needed on a GPU, where nobody waits to look at them; `Jets` brings it.

    Returns
    -------
    padded : (J, L, F) in the dtype of `values`, zeros in empty slots.
    valid : (J, L) bool, True where there is a real constituent.

    Raises
    ------
    TypeError: no arrays, mixed libraries or devices, wrong dtype. ValueError: wrong shapes, bad offsets, negative
    length, or a jet longer than `length` without `truncate`.

    Not differentiable.

    >>> import numpy as np
    >>> pad(np.array([[1.0, 2.0, 3.0]]), np.array([0, 2, 3]), 2)[0][:, :, 0]
    array([[1., 2.],
           [3., 0.]])
    """
    _dispatch.check_arrays("pad", values=values, offsets=offsets)
    _dispatch.check_floats("pad", values=values)
    _dispatch.check_offsets("pad", offsets)
    if values.ndim != 2:
        raise ValueError(f"pad: values must have shape (F, N), got {tuple(values.shape)}; use values[None] for one row")
    _dispatch.check_integer("pad", "length", length, 0, "give the number of slots per jet")
    return _dispatch.call(
        "pad", values, offsets, int(length), bool(truncate), threads=threads, offsets_host=offsets_host
    )


def check_values(values: Any, offsets: Any, length: int, truncate: bool) -> None:
    _dispatch.check_offset_values("pad", offsets, values.shape[1])
    counts = offsets[1:] - offsets[:-1]
    if not truncate and counts.size and counts.max() > length:
        raise ValueError(
            f"pad: length must be at least {counts.max()}, the longest jet (jet {counts.argmax()}), got {length}; "
            "raise it or pass truncate=True"
        )


def outputs(values: Any, offsets: Any, length: int, truncate: bool) -> tuple:
    jets = offsets.shape[0] - 1
    return ((jets, length, values.shape[0]), _dispatch.dtype_of(values)), ((jets, length), "bool")
