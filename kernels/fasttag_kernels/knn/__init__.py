"""The nearest neighbours of each constituent among those of its jet."""

from typing import Any

from .. import _dispatch

LARGEST = {"k": 32, "C": 256}


def knn(
    x: Any,
    k: int = 16,
    *,
    offsets: Any = None,
    periodic: int | None = None,
    threads: int | None = None,
    offsets_host: Any = None,
) -> Any:
    """The k nearest other constituents of the same jet, nearest first: the graph of ParticleNet, arXiv:1902.08570.

    d^2_ij = sum over columns c of (x_ic - x_jc)^2, in the dtype of `x`, columns added in order, every operation rounded
    by itself (no fused multiply-add). Neighbours are ordered by d^2, those at the same distance by their index, and i
    is no neighbour of itself even where others lie on the same point. So the result is one and the same everywhere.

    With `periodic=1` column 1 is an angle in rad, as phi in (eta, phi). It is first reduced to one turn,
    phi - floor((phi + pi) / (2 pi)) 2 pi, then its difference d = |phi_i - phi_j| counts as min(d, 2 pi - d), with pi
    and 2 pi rounded to the dtype. Of numbers in [-pi, pi) the reduction changes none but those that round to pi.

    Parameters
    ----------
    x : (N, C) float32 or float64, 1 <= C <= 256, any unit. Copied once if not contiguous.
    k : neighbours per constituent, 1..32.
    offsets : (J+1,) int64, may start above zero; None: all points are one set.
    periodic : None or 1.
    threads : CPU threads over jets, default `set_threads`.
    offsets_host : `offsets` in NumPy, needed on a GPU, where nobody waits to look at them; `Jets` brings it.

    Returns
    -------
    (N, k) int32, positions within the jet, 0..n-1, as weaver's; -1 where the jet has too few constituents and in rows
    outside of all jets. For positions in `x`:
    `np.where(found < 0, -1, found + np.repeat(offsets[:-1], np.diff(offsets))[:, None])`, offsets from 0 to N.
    A distance that is not finite, from NaN or inf in `x` or by overflow, counts as infinite: such neighbours come last,
    by index.

    Raises
    ------
    TypeError: no arrays, mixed libraries or devices, wrong dtype. ValueError: wrong shapes, bad offsets, k, C or
    periodic.

    Not differentiable.

    >>> import numpy as np
    >>> knn(np.array([[0.0], [1.0], [5.0], [2.5]]), 2)
    array([[1, 3],
           [0, 3],
           [3, 1],
           [1, 0]], dtype=int32)
    """
    _dispatch.check_arrays("knn", **{"x": x} | ({} if offsets is None else {"offsets": offsets}))
    _dispatch.check_floats("knn", x=x)
    if offsets is not None:
        _dispatch.check_offsets("knn", offsets)
    if x.ndim != 2 or not 1 <= x.shape[1] <= LARGEST["C"]:
        raise ValueError(
            f"knn: x must have shape (N, C) with C in 1..{LARGEST['C']}, got {tuple(x.shape)}; one row per constituent"
        )
    _dispatch.check_integer("knn", "k", k, 1, "16 is usual")
    if k > LARGEST["k"]:
        raise ValueError(f"knn: k must be at most {LARGEST['k']}, got {k}; 16 is usual")
    if periodic is not None and (not isinstance(periodic, int) or isinstance(periodic, bool) or periodic != 1):
        raise ValueError(f"knn: periodic must be None or 1, got {periodic!r}; put the angle into column 1")
    if periodic is not None and x.shape[1] < 2:
        raise ValueError("knn: x must have a column 1 to be periodic, got (N, 1); put the angle into column 1")
    return _dispatch.call(
        "knn", x, int(k), offsets, None if periodic is None else 1, threads=threads, offsets_host=offsets_host
    )


def check_values(x: Any, k: int, offsets: Any, periodic: int | None) -> None:
    if offsets is not None:
        _dispatch.check_offset_values("knn", offsets, x.shape[0])


def outputs(x: Any, k: int, offsets: Any, periodic: int | None) -> tuple:
    return (((x.shape[0], k), "int32"),)
