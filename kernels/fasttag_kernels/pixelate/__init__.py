"""Jet images."""

import numbers
from typing import Any

from .. import _dispatch

# channel -> (kinds that enter, whether constituents are counted instead of their pt summed); None: all, kind or not
CHANNELS: dict[str, tuple[tuple[int, ...] | None, bool]] = {
    "pt": (None, False),
    "pt_neutral": ((0, 4), False),
    "pt_track": ((1, 2, 3), False),
    "n_track": ((1, 2, 3), True),
    "n_muon": ((3,), True),
}
CENTERS = ("centroid", "pixel", None)


def pixelate(
    pt: Any,
    eta: Any,
    phi: Any,
    offsets: Any,
    *,
    kind: Any = None,
    npix: int = 40,
    half_width: float = 0.8,
    center: str | None = "centroid",
    rotate: bool = True,
    flip: bool = True,
    normalize: bool = True,
    channels: tuple[str, ...] = ("pt",),
    dtype: Any = None,
    threads: int | None = None,
    offsets_host: Any = None,
) -> Any:
    """Images of jets in the (eta, phi) plane: centre, rotate, flip, pixelate, crop, normalise, in this order.

    The preprocessing of arXiv:1803.00107 (section 2) on continuous constituents, before they are binned:

    1. centre on the pt-weighted mean of eta and phi ("centroid"), on the middle of the pixel that holds it, the pixels
       being fixed in the detector, as in EnergyFlow ("pixel"), or not at all (None);
    2. `rotate` the major principal axis of the pt-weighted second moments onto the phi axis, unless the two moments
       agree to 1e-10;
    3. `flip` each axis so that the half with more pt is the upper (phi) and the right (eta) one; ties stay;
    4. sum pt (or count) in npix x npix square pixels over [-half_width, half_width), dropping what falls outside;
    5. `normalize`: divide the pt channels by the pt of all constituents inside the window; counts stay raw.

    Differences of phi are taken in [-pi, pi); only center=None takes phi as it is. Coordinates are evaluated in float64
    whatever the input. Constituents with pt <= 0 count nothing.

    Parameters
    ----------
    pt, eta, phi : (N,) float32 or float64; GeV, unitless, rad. Any rapidity-like coordinate may stand for eta.
    offsets : (J+1,) int64; may start above zero.
    kind : (N,) int8, needed by every channel but "pt": 0 neutral hadron, 1 charged hadron, 2 electron, 3 muon,
        4 photon. On a GPU, where nobody waits to look, a constituent of any other kind enters "pt" alone.
    npix : pixels per side, P >= 1 (below 65536 on a GPU).  half_width : half the side of the window, > 0.
    channels : any of "pt", "pt_neutral" (kinds 0, 4), "pt_track" (1, 2, 3), "n_track" (1, 2, 3), "n_muon" (3).
    dtype : "float32", "float64" or None for the dtype of `pt`.
    threads : CPU threads, default `set_threads`.
    offsets_host : `offsets` in NumPy, needed on a GPU, where nobody waits to look at them; `Jets` brings it.

    Returns
    -------
    (J, C, P, P); row index grows with phi, column index with eta: plot with origin="lower".
    A jet with no constituent inside the window gives zeros; one with NaN or inf in pt, eta or phi gives NaN.

    Raises
    ------
    TypeError: no arrays, mixed libraries or devices, wrong dtype. ValueError: wrong shapes, bad offsets, an unknown
    channel or centre, a missing or out-of-range kind, center="pixel" with rotate or flip.

    Not differentiable.

    >>> import numpy as np
    >>> one = np.ones(1)
    >>> pixelate(one, one, one, np.array([0, 1]), npix=3)[0, 0]
    array([[0., 0., 0.],
           [0., 1., 0.],
           [0., 0., 0.]])
    """
    return images(
        pt, eta, phi, offsets, kind, npix, half_width, center, rotate, flip, normalize, True, channels, dtype, threads,
        offsets_host,
    )  # fmt: skip


def images(
    pt: Any,
    eta: Any,
    phi: Any,
    offsets: Any,
    kind: Any,
    npix: int,
    half_width: float,
    center: str | None,
    rotate: bool,
    flip: bool,
    normalize: bool,
    wrap: bool,
    channels: tuple[str, ...],
    dtype: Any,
    threads: int | None,
    offsets_host: Any = None,
) -> Any:
    """`pixelate` for those who have to leave differences of phi unwrapped, as EnergyFlow does."""
    present = {"pt": pt, "eta": eta, "phi": phi, "offsets": offsets} | ({} if kind is None else {"kind": kind})
    _dispatch.check_arrays("pixelate", **present)
    _dispatch.check_floats("pixelate", pt=pt, eta=eta, phi=phi)
    _dispatch.check_offsets("pixelate", offsets)
    for name in ("eta", "phi", "kind"):
        if name in present and tuple(present[name].shape) != tuple(pt.shape):
            raise ValueError(
                f"pixelate: {name} must have the shape of pt, {tuple(pt.shape)}, got {tuple(present[name].shape)}; "
                "give one value per constituent"
            )
    if pt.ndim != 1:
        raise ValueError(f"pixelate: pt must have shape (N,), got {tuple(pt.shape)}; flatten it")
    if kind is not None and _dispatch.dtype_of(kind) != "int8":
        raise TypeError(f"pixelate: kind must be int8, got {_dispatch.dtype_of(kind)}; convert it")
    _dispatch.check_integer("pixelate", "npix", npix, 1, "40 is usual")
    if not isinstance(half_width, numbers.Real) or not 0 < half_width < float("inf"):
        raise ValueError(f"pixelate: half_width must be positive and finite, got {half_width!r}; 0.8 is usual")
    if center not in CENTERS:
        raise ValueError(f'pixelate: center must be "centroid", "pixel" or None, got {center!r}; choose one')
    if center == "pixel" and (rotate or flip):
        raise ValueError(
            'pixelate: center must be "centroid" or None to rotate or flip, got "pixel"; '
            "pass rotate=False, flip=False for EnergyFlow's fixed pixels"
        )
    if not isinstance(channels, (tuple, list)) or not channels or not set(channels) <= set(CHANNELS):
        raise ValueError(f"pixelate: channels must be a tuple of {', '.join(CHANNELS)}, got {channels!r}; rename them")
    if all(CHANNELS[name][0] is None for name in channels):
        kind = None
    elif kind is None:
        raise ValueError(
            f"pixelate: kind must be given for channels {list(channels)}, got None; pass kind=, or Jets that have it"
        )
    name = _dispatch.dtype_of(pt) if dtype is None else str(dtype).removeprefix("torch.")
    name = getattr(dtype, "__name__", name) if isinstance(dtype, type) else name
    if name not in _dispatch.FLOATS:
        raise TypeError(f"pixelate: dtype must be float32 or float64, got {dtype!r}; choose one")
    settings = (int(npix), float(half_width), center or "none", bool(rotate), bool(flip), bool(normalize), bool(wrap))
    arrays = (pt, eta, phi, offsets, kind)
    return _dispatch.call(
        "pixelate", *arrays, *settings, list(channels), name, threads=threads, offsets_host=offsets_host
    )


def check_values(pt: Any, eta: Any, phi: Any, offsets: Any, kind: Any, *_: Any) -> None:
    _dispatch.check_offset_values("pixelate", offsets, pt.shape[0])
    on_host = kind is not None and _dispatch.device_of(kind) == "cpu"
    if on_host and kind.size and not (kind.min() >= 0 and kind.max() <= 4):
        raise ValueError(
            f"pixelate: kind must lie in 0..4, got {kind.min()}..{kind.max()}; drop or relabel other constituents"
        )


def outputs(pt: Any, eta: Any, phi: Any, offsets: Any, kind: Any, npix: int, *rest: Any) -> tuple:
    channels, dtype = rest[-2:]
    return (((offsets.shape[0] - 1, len(channels), npix, npix), dtype),)
