"""Named input recipes: Jets -> what a tagger eats."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fasttag_kernels import _threads, get_threads

from . import interop
from .jets import Jets
from .ops import jet_p4, kinematics, pixelate, segment

# of ln pt, ln E, ln pt/pt_J, ln E/E_J, Delta: (value - center) * scale, clipped to +-5
CENTERS = np.array([1.7, 2.0, -4.7, -4.7, 0.2])
SCALES = np.array([0.7, 0.7, 0.7, 0.7, 4.0])
# JetClass's names and the numbers of `kind`, in the order of the inputs
KINDS = {"isChargedHadron": 1, "isNeutralHadron": 0, "isPhoton": 4, "isElectron": 2, "isMuon": 3}


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


def kin(jets: Jets) -> Inputs:
    """The seven kinematic inputs of Particle Transformer and ParticleNet (arXiv:2202.03772, table 2).

    x = (ln pt - 1.7) 0.7, (ln E - 2) 0.7, (ln pt/pt_J + 4.7) 0.7, (ln E/E_J + 4.7) 0.7, (Delta - 0.2) 4, these five
    clipped to +-5, then deta and dphi; pt and E in GeV. deta = (eta - eta_J) sign(eta_J) with sign(0) = +1,
    dphi = phi - phi_J in [-pi, pi), Delta = sqrt(deta^2 + dphi^2). points = (deta, dphi). In the dtype and library of
    the jets, computed in float64 and rounded once; differentiable in p4 (torch), except of constituents without pt.

    The jet J is the sum of its constituents, save for what labels `jet_pt`, `jet_eta`, `jet_phi` and `jet_energy` say
    otherwise, as in JetClass. All constituents are taken; weaver's configurations stop after 128.
    A NaN is 0, as in weaver, except that one in a four-vector stays in deta and dphi: the score of such a jet is NaN.

    >>> from fasttag import features, io
    >>> features.kin(io.read(io.sample_path(), stop=10)).x.shape[1]
    7
    """
    return _constituents(jets, lambda jets: [])


def kinpid(jets: Jets) -> Inputs:
    """`kin` with charge and kind of each constituent before deta and dphi: 13 inputs (arXiv:2202.03772, table 2).

    x[:, 5:11] = charge, then 1 or 0 for charged hadron, neutral hadron, photon, electron and muon, from the columns
    `charge` and `kind`, or JetClass's own isChargedHadron, isNeutralHadron, isPhoton, isElectron and isMuon where the
    jets have all five. Raises ValueError that names a missing column, and, on the CPU, for a kind that is neither 0 to
    4 nor NaN.
    """
    return _constituents(jets, lambda jets: _identity(jets, "kinpid"))


def full(jets: Jets) -> Inputs:
    """`kinpid` with impact parameters before deta and dphi: 17 inputs (arXiv:2202.03772, table 2).

    x[:, 11:15] = tanh(d0val), d0err, tanh(dzval), dzerr from the columns of these names, the errors clipped to 0..1.
    Raises ValueError that names a missing column.
    """
    return _constituents(jets, lambda jets: _identity(jets, "full") + _displacement(jets))


def _constituents(jets: Jets, more: Callable[[Jets], list[Any]]) -> Inputs:
    """`kin` with the rows (N,) of more(jets), in the dtype of p4, before deta and dphi. In float64, rounded once."""
    jets = jets.compact()
    if jets.device == "cpu" and not (jets.library == "torch" and jets.p4.requires_grad):
        host = jets if jets.library == "numpy" else jets.to(library="numpy")
        x = interop.like(_by_loop(host, more(host)), jets.p4)
    else:
        x = _by_arrays(jets, more(jets))
    max_n = int(jets.counts.max()) if len(jets) else 0
    return Inputs(x, x[:, -2:], jets.p4, jets.offsets, jets.offsets_host, max_n)


def _by_loop(jets: Jets, more: list[np.ndarray]) -> np.ndarray:
    """x (N, F)."""
    from fasttag_kernels._numba import inputs

    from ._constituents import fill

    out = np.empty((jets.p4.shape[1], 7 + len(more)), jets.p4.dtype)
    arrays = inputs(*jets.p4, jets.offsets, _given(jets), CENTERS, SCALES)
    _threads.over(len(jets), get_threads(), fill, *arrays, out)
    if more:
        out[:, 5:-2] = np.stack(more, 1)
        out[:, 5:-2][np.isnan(out[:, 5:-2])] = 0
    return out


def _by_arrays(jets: Jets, more: list[Any]) -> Any:
    """The same on other devices, and with gradients."""
    xp, n, jet = interop.require(jets.library), jets.p4.shape[1], _jet(jets)
    join = xp.cat if jets.library == "torch" else xp.concatenate
    p4 = jets.astype("float64").p4
    p4 = join([p4, segment(p4.T, jets.offsets, offsets_host=jets.offsets_host).T], 1)
    pt, _, eta, phi, _ = kinematics(p4)
    values = xp.stack([eta, phi, *xp.log(xp.stack([pt, p4[3]]))])
    given = _given(jets)
    axis = xp.where(given == given, given, values[:, n:])
    deta, dphi, *relative = values[:, :n] - axis[:, jet]
    deta = deta * (1.0 - 2.0 * (axis[0] < 0))[jet]
    dphi = dphi - 2 * math.pi * xp.floor(dphi / (2 * math.pi) + 0.5)
    delta = xp.sqrt(xp.clip(deta**2 + dphi**2, 1e-30, None))  # the gradient of hypot(0, 0) is NaN
    rows = [*values[2:, :n], *relative, delta]
    rows = [xp.clip((row - center) * scale, -5, 5) for row, center, scale in zip(rows, CENTERS, SCALES)]
    known = xp.stack([*rows, *more], 1)
    return _as_p4(jets, join([xp.where(known == known, known, 0), xp.stack([deta, dphi], 1)], 1))


def _given(jets: Jets) -> Any:
    """(4, J) float64, eta, phi, ln pt and ln E of each jet as the labels say, NaN where they do not."""
    xp = interop.require(jets.library)
    rows = interop.like(np.full((4, len(jets)), np.nan), jets.p4)
    for row, name in zip(rows, ("jet_eta", "jet_phi", "jet_pt", "jet_energy")):
        if name in jets.labels:
            row[:] = jets.labels[name]
            if name in ("jet_pt", "jet_energy"):
                with np.errstate(divide="ignore"):
                    row[:] = xp.log(row)
    return rows


def _identity(jets: Jets, recipe: str) -> list[Any]:
    """Charge and kind, rows (N,)."""
    charge = _column(jets, "charge", recipe)
    if jets.columns.keys() >= KINDS.keys():
        return [charge, *(_column(jets, name, recipe) for name in KINDS)]
    kind = _column(jets, "kind", recipe)
    flags = [kind == number for number in KINDS.values()]
    if jets.device == "cpu":  # on a GPU one would have to wait for it
        other = kind[~(functools.reduce(operator.or_, flags) | (kind != kind))]
        if len(other):
            raise ValueError(
                f"{recipe}: column 'kind' must be 0 neutral hadron, 1 charged hadron, 2 electron, 3 muon or 4 photon, "
                f"got {float(other[0]):g}; translate yours"
            )
    return [charge, *(_as_p4(jets, flag) for flag in flags)]


def _displacement(jets: Jets) -> list[Any]:
    """Impact parameters and their errors, rows (N,)."""
    d0, d0_error, dz, dz_error = (_column(jets, name, "full") for name in ("d0val", "d0err", "dzval", "dzerr"))
    xp = interop.require(jets.library)
    return [xp.tanh(d0), xp.clip(d0_error, 0, 1), xp.tanh(dz), xp.clip(dz_error, 0, 1)]


def _column(jets: Jets, name: str, recipe: str) -> Any:
    if name not in jets.columns:
        raise ValueError(
            f"{recipe}: jets must have a column {name!r}, got {', '.join(jets.columns) or 'none'}; "
            "add it by jets.with_columns, or take features.kin, which needs four-vectors only"
        )
    return _as_p4(jets, jets.columns[name])


def _as_p4(jets: Jets, values: Any) -> Any:
    """In the dtype of p4."""
    return values.to(jets.p4.dtype) if jets.library == "torch" else values.astype(jets.p4.dtype, copy=False)


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
