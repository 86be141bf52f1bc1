"""Named input recipes: Jets -> what a tagger eats."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import interop
from .jets import Jets
from .ops import jet_p4, kinematics, pixelate, segment


class Inputs(NamedTuple):
    """Ragged inputs of a tagger; constituent arrays hold jet j at offsets[j]:offsets[j+1], offsets start at zero.

    x (N, F) features, points (N, 2) eta- and phi-like coordinates, p4 (4, N) in GeV, offsets (J+1,) int64 on the device
    and in NumPy, max_n the constituents of the longest jet.
    """

    x: Any
    points: Any
    p4: Any
    offsets: Any
    offsets_host: np.ndarray
    max_n: int


def energy_flow(jets: Jets) -> Inputs:
    """Inputs of energy flow and particle flow networks (arXiv:1810.05165, section 4).

    x = (z, y - y_J, phi - phi_J) with z = pt / sum of pt; (y_J, phi_J) is the pt-weighted centroid in rapidity and
    azimuth, differences of phi in [-pi, pi). points = x[:, 1:]. A constituent without pt is (0, 0, 0).
    In the dtype and library of the jets; differentiable in p4 (torch).
    """
    jets = jets.compact()
    xp = interop.require(jets.library)
    pt, y, _, phi, _ = kinematics(jets.p4)
    jet = _jet(jets)
    dphi = phi - kinematics(jet_p4(jets)).phi[jet]
    dphi = dphi - 2 * math.pi * xp.floor((dphi + math.pi) / (2 * math.pi))
    sums = segment(xp.stack([pt, pt * y, pt * dphi], 1), jets.offsets, offsets_host=jets.offsets_host)
    total = xp.where(sums[:, 0] > 0, sums[:, 0], 1)
    mean = (sums[:, 1:] / total[:, None])[jet]
    has_direction = pt != 0  # true of NaN: it goes on
    angles = [xp.where(has_direction, a - m, 0) for a, m in ((y, mean[:, 0]), (dphi, mean[:, 1]))]
    x = xp.stack([pt / total[jet], *angles], 1)
    max_n = int(jets.counts.max()) if len(jets) else 0
    return Inputs(x, x[:, 1:], jets.p4, jets.offsets, jets.offsets_host, max_n)


def _jet(jets: Jets) -> Any:
    """(N,) int64, the jet of each constituent of compact jets, made where they are: on a GPU nothing is sent there."""
    if jets.device == "cpu":
        return interop.like(np.repeat(np.arange(len(jets)), jets.counts), jets.p4)
    return _jet_by_search(jets)


def _jet_by_search(jets: Jets) -> Any:
    xp = interop.require(jets.library)
    device = {"device": jets.p4.device} if jets.library == "torch" else {}
    return xp.searchsorted(jets.offsets[1:], xp.arange(jets.p4.shape[1], **device), side="right")


def grey_image(jets: Jets) -> Any:
    """(J, 1, 40, 40) grey pt images with all preprocessing of arXiv:1803.00107, half-width 0.8. See `pixelate`."""
    return pixelate(jets)
