"""Standardised, clipped and padded network inputs from ragged columns."""

from typing import Any

from .. import _dispatch


def standardize(
    values: Any,
    offsets: Any,
    length: int,
    *,
    center: Any = None,
    scale: Any = None,
    low: Any = None,
    high: Any = None,
    pad_value: Any = None,
    wrap: bool = False,
    threads: int | None = None,
) -> Any:
    """What a weaver data configuration does to its inputs, in one pass: standardise, clip, pad.

    out[j, c, i] = clip((values[c, i-th of jet j] - center[c]) * scale[c], low[c], high[c]), in the dtype of `values`;
    NaN becomes 0. A value below `low` becomes `low` even where that lies above `high`. A channel that is not to be
    touched has center 0, scale 1 and limits -inf, inf, which are the defaults: its infinities stay.

    Parameters
    ----------
    values : (C, N) float32 or float64, one row per channel (stack columns with np.stack).
    offsets : (J+1,) int64; may start above zero.
    length : slots per jet, L >= 0. Of longer jets the first L constituents are kept.
    center, scale, low, high, pad_value : (C,) in the dtype of `values`; defaults 0, 1, -inf, inf, 0.
    wrap : fill empty slots by repeating the jet's constituents in order instead of with `pad_value`, which jets
        without constituents get all the same. `pad_value` is written as given, NaN included.
    threads : CPU threads, default `set_threads`.

    Returns
    -------
    (J, C, L) in the dtype of `values`.

    Raises
    ------
    TypeError: no arrays, mixed libraries, devices or dtypes. ValueError: wrong shapes, bad offsets, negative length.

    Not differentiable.

    >>> import numpy as np
    >>> pt = np.array([[1.0, 2.0, np.nan, 90.0]])
    >>> standardize(pt, np.array([0, 3, 4]), 4, center=np.ones(1), scale=np.full(1, 0.5), high=np.full(1, 5.0))[:, 0]
    array([[0. , 0.5, 0. , 0. ],
           [5. , 0. , 0. , 0. ]])
    """
    optional = {"center": center, "scale": scale, "low": low, "high": high, "pad_value": pad_value}
    given = {name: array for name, array in optional.items() if array is not None}
    _dispatch.check_arrays("standardize", values=values, offsets=offsets, **given)
    _dispatch.check_floats("standardize", values=values, **given)
    _dispatch.check_offsets("standardize", offsets)
    if values.ndim != 2:
        raise ValueError(
            f"standardize: values must have shape (C, N), got {tuple(values.shape)}; use values[None] for one channel"
        )
    for name, array in given.items():
        if tuple(array.shape) != (values.shape[0],):
            raise ValueError(
                f"standardize: {name} must have shape ({values.shape[0]},), got {tuple(array.shape)}; "
                "give one number per channel"
            )
    _dispatch.check_integer("standardize", "length", length, 0, "give the number of slots per jet")
    return _dispatch.call("standardize", values, offsets, *optional.values(), int(length), bool(wrap), threads=threads)


def check_values(values: Any, offsets: Any, *_: Any) -> None:
    _dispatch.check_offset_values("standardize", offsets, values.shape[1])


def outputs(values: Any, offsets: Any, *rest: Any) -> tuple:
    length = rest[-2]
    return (((offsets.shape[0] - 1, values.shape[0], length), _dispatch.dtype_of(values)),)
