"""EnergyFlow 1.4: change `from energyflow.utils import ...` into `from fasttag.compat.energyflow import ...`."""

from __future__ import annotations

from typing import Any

import numpy as np

from fasttag_kernels.kinematics import kinematics
from fasttag_kernels.pixelate import images

__all__ = ["p4s_from_ptyphims", "pixelate", "ptyphims_from_p4s"]

BLOCK = 8192  # four-vectors at a time, so that intermediate results stay in the cache
CHARGED = (11, 13, 211, 321, 2212)  # of all ids tried on EnergyFlow 1.4.0 the only ones it counts


def pixelate(
    jet: np.ndarray,
    npix: int = 33,
    img_width: float = 0.8,
    nb_chan: int = 1,
    norm: bool = True,
    charged_counts_only: bool = False,
) -> np.ndarray:
    """The image of one jet, (npix, npix, nb_chan) float64, with EnergyFlow's numbers to 1e-12.

    jet : (n, 3) or (n, 4), rows pt, y, phi and, where charged particles are counted, the PDG id.
    Centred on the pixel that holds the pt-weighted mean, not rotated, not flipped. As in EnergyFlow phi is not wrapped:
    unwrap a jet across +-pi first, or use `fasttag.pixelate`, which wraps. The second channel counts particles.

    Raises ZeroDivisionError for a jet without pt and FloatingPointError where nothing falls inside the window, as
    EnergyFlow does; ValueError for another number of channels or columns, and for NaN or inf in a particle with pt,
    where EnergyFlow raises IndexError. A particle on the edge of a pixel may fall on its other side.
    """
    jet = np.asarray(jet, np.float64)
    if nb_chan not in (1, 2):
        raise ValueError(f"pixelate: nb_chan must be 1 or 2, got {nb_chan}; 2 adds counts")
    needed = 4 if nb_chan == 2 and charged_counts_only else 3
    if jet.ndim != 2 or jet.shape[1] < needed:
        raise ValueError(f"pixelate: jet must have shape (n, {needed}) or more columns, got {jet.shape}; add columns")
    if not (jet[:, 0] > 0).any():
        raise ZeroDivisionError("pixelate: the pt of the jet sum to zero")
    jet = jet[jet[:, 0] > 0]
    if not np.isfinite(jet[:, :3]).all():
        raise ValueError("pixelate: jet must be finite where pt is above 0, got NaN or inf; drop such particles")
    kind = np.ones(len(jet), np.int8)
    if needed == 4:
        kind[:] = np.isin(np.abs(jet[:, 3]), CHARGED)
    pt, y, phi = np.ascontiguousarray(jet[:, :3].T)
    channels, half_width = ("pt", "n_track")[:nb_chan], img_width / 2
    offsets = np.array([0, len(jet)])
    found = images(
        pt, y, phi, offsets, kind, npix, half_width, "pixel", False, False, norm, False, channels, None, None
    )
    image = found[0].transpose(1, 2, 0)
    if norm and not image[..., 0].any():
        raise FloatingPointError("pixelate: no particle inside the window")
    return image


def ptyphims_from_p4s(p4s: Any, phi_ref: Any = None, mass: bool = True) -> np.ndarray:
    """pt, rapidity, phi and, with `mass`, m of four-vectors (..., 4) in the order E, px, py, pz: (..., 4) or (..., 3).

    float64 whatever the input. phi is in [0, 2 pi), or within pi of `phi_ref`: a number, an array of shape
    p4s.shape[:-2], or "hardest" for the phi of the particle with the largest pt of each event. m has the sign of
    E^2 - p^2. Zeros stay zeros.

    EnergyFlow's bits, except that where rounding makes E <= |pz| of a particle with pt, as float32 does for |y| > 8,
    rapidity follows FastJet (mass 0) where EnergyFlow gives inf or NaN. There are no warnings. Both run on NumPy's
    functions; here in blocks that stay in the cache.

    Raises ValueError where the last axis is not 4 long.
    """
    p4s = np.asarray(p4s, np.float64)
    if p4s.shape[-1:] != (4,):
        raise ValueError(f"ptyphims_from_p4s: p4s must have shape (..., 4), got {p4s.shape}; order E, px, py, pz")
    out = np.empty((*p4s.shape[:-1], 4 if mass else 3))
    rows, columns = p4s.reshape(-1, 4), out.reshape(-1, out.shape[-1])
    for start in range(0, len(rows), BLOCK):
        _coordinates(rows[start : start + BLOCK].T, columns[start : start + BLOCK].T)
    if phi_ref is not None:
        out[..., 2] = _near(out[..., 2], phi_ref, out[..., 0])
    return out


def _coordinates(p4: np.ndarray, out: np.ndarray) -> None:
    e, px, py, pz = p4
    with np.errstate(all="ignore"):
        out[0] = np.sqrt(px**2 + py**2)
        out[1] = np.arctanh(pz / e)
        out[2] = np.arctan2(py, px)
        out[2][out[2] < 0] += 2 * np.pi
        if len(out) == 4:
            m2 = e**2 - px**2 - py**2 - pz**2
            out[3] = np.sign(m2) * np.sqrt(np.abs(m2))
    out[1][(p4 == 0).all(0)] = 0
    rounded = ~np.isfinite(out[1]) & (e > 0) & (out[0] > 0)
    if rounded.any():
        out[1][rounded] = kinematics(np.stack((px, py, pz, e))[:, rounded]).rapidity


def _near(phi: np.ndarray, phi_ref: Any, pt: np.ndarray) -> np.ndarray:
    if isinstance(phi_ref, str) and phi_ref == "hardest":
        if phi.ndim == 0:
            return phi
        phi_ref = np.take_along_axis(phi, pt.argmax(-1, keepdims=True), -1)[..., 0]
    phi_ref = np.asarray(phi_ref, np.float64)
    away = phi - (phi_ref[..., None] if phi_ref.ndim else phi_ref)
    return phi - 2 * np.pi * (away > np.pi) + 2 * np.pi * (away < -np.pi)


def p4s_from_ptyphims(ptyphims: Any) -> np.ndarray:
    """Four-vectors (..., 4), order E, px, py, pz, from (..., 4) pt, rapidity, phi and m, or (..., 3) without: m = 0.

    float64 whatever the input; EnergyFlow's bits, by NumPy's functions as there.
    """
    pt, y, phi, *m = np.moveaxis(np.asarray(ptyphims, np.float64), -1, 0)
    mt = np.sqrt(pt**2 + m[0] ** 2) if len(m) == 1 else np.abs(pt)
    return np.stack((mt * np.cosh(y), pt * np.cos(phi), pt * np.sin(phi), mt * np.sinh(y)), -1)
