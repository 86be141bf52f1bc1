"""EnergyFlow 1.4: change `from energyflow.utils import ...` into `from fasttag.compat.energyflow import ...`."""

from __future__ import annotations

import numpy as np

from fasttag_kernels.pixelate import images

CHARGED = (11, 13, 211, 321, 2212)  # of all ids tried on EnergyFlow 1.4.0 the only ones it counts


def pixelate(
    jet: np.ndarray,
    npix: int = 33,
    img_width: float = 0.8,
    nb_chan: int = 1,
    norm: bool = True,
    charged_counts_only: bool = False,
) -> np.ndarray:
    """The image of one jet, (npix, npix, nb_chan) float64, with EnergyFlow's numbers.

    jet : (n, 3) or (n, 4), rows pt, y, phi and, where charged particles are counted, the PDG id.
    Centred on the pixel that holds the pt-weighted mean, not rotated, not flipped. As in EnergyFlow phi is not wrapped:
    unwrap a jet across +-pi first, or use `fasttag.pixelate`, which wraps. The second channel counts particles.

    Raises ZeroDivisionError for a jet without pt and FloatingPointError where nothing falls inside the window, as
    EnergyFlow does; ValueError for another number of channels or columns.
    """
    jet = np.asarray(jet, np.float64)
    if nb_chan not in (1, 2):
        raise ValueError(f"pixelate: nb_chan must be 1 or 2, got {nb_chan}; 2 adds counts")
    needed = 4 if nb_chan == 2 and charged_counts_only else 3
    if jet.ndim != 2 or jet.shape[1] < needed:
        raise ValueError(f"pixelate: jet must have shape (n, {needed}) or more columns, got {jet.shape}; add columns")
    if not (jet[:, 0] > 0).any():
        raise ZeroDivisionError("pixelate: the pt of the jet sum to zero")
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
