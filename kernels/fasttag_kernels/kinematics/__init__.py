"""Transverse momentum, rapidity, pseudorapidity, azimuth and mass of four-vectors."""

from typing import Any, NamedTuple

from .. import _dispatch


class Kinematics(NamedTuple):
    """Five arrays of shape (N,): pt and mass in GeV, phi in rad, rapidity and eta (pseudorapidity) without unit."""

    pt: Any
    rapidity: Any
    eta: Any
    phi: Any
    mass: Any


def kinematics(p4: Any, *, threads: int | None = None) -> Kinematics:
    """pt, rapidity, eta, phi and mass of each four-vector.

    pt = sqrt(px^2 + py^2);  eta = asinh(pz / pt);  phi = atan2(py, px) in [-pi, pi];
    m^2 = (E + pz)(E - pz) - pt^2, clamped at 0;  |rapidity| = ln((E + |pz|) / sqrt(pt^2 + m^2)) with the sign of pz,
    which is FastJet's form (arXiv:1111.6097): it stays finite where rounding makes E < |p|.
    Evaluated in float64 whatever the input, then rounded once.

    Parameters
    ----------
    p4 : (4, N) float32 or float64, rows px, py, pz, E in GeV. Rows that are not contiguous are copied once.
    threads : CPU threads, default `set_threads`.

    Returns
    -------
    Kinematics(pt, rapidity, eta, phi, mass), each (N,) in the dtype of `p4`.
    Degenerate input: pt = 0 gives phi = 0, eta = +-1e5 and, where also E <= |pz|, rapidity = +-(1e5 + |pz|), as in
    FastJet. A four-vector with NaN or inf in it gives NaN in all five.

    Raises
    ------
    TypeError: not an array, or not float32/float64. ValueError: not of shape (4, N).

    Differentiable in `p4` (torch): exact derivatives, 0 for mass where m^2 is clamped and 0 everywhere at pt = 0.

    >>> import numpy as np
    >>> float(kinematics(np.array([[3.0], [4.0], [0.0], [13.0]])).mass[0])
    12.0
    """
    _dispatch.check_arrays("kinematics", p4=p4)
    _dispatch.check_floats("kinematics", p4=p4)
    if p4.ndim != 2 or p4.shape[0] != 4:
        raise ValueError(
            f"kinematics: p4 must have shape (4, N), rows px, py, pz, E, got {tuple(p4.shape)}; transpose it"
        )
    return Kinematics(*_dispatch.call("kinematics", p4, threads=threads))


def check_values(p4: Any) -> None:
    """Any values will do."""


def outputs(p4: Any) -> tuple:
    return (((5, p4.shape[1]), _dispatch.dtype_of(p4)),)
