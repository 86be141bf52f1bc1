"""float64 oracle. FastJet's limit for particles along the beam is 1e5."""

import numpy as np

ALONG_BEAM = 1e5


def kinematics(p4):
    px, py, pz, e = np.asarray(p4, np.float64)
    with np.errstate(all="ignore"):
        pt = np.sqrt(px**2 + py**2)
        m2 = np.maximum((e + pz) * (e - pz) - pt**2, 0.0)
        sign = np.where(pz < 0, -1.0, 1.0)
        rapidity = sign * np.log((e + np.abs(pz)) / np.sqrt(pt**2 + m2))
        rapidity = np.where((pt == 0) & (e <= np.abs(pz)), sign * (ALONG_BEAM + np.abs(pz)), rapidity)
        eta = np.where(pt == 0, sign * ALONG_BEAM, np.arcsinh(pz / pt))
        phi = np.where(pt == 0, 0.0, np.arctan2(py, px))
    finite = np.isfinite(px) & np.isfinite(py) & np.isfinite(pz) & np.isfinite(e)
    return tuple(np.where(finite, x, np.nan) for x in (pt, rapidity, eta, phi, np.sqrt(m2)))


def kinematics_backward(gradient, p4):
    px, py, pz, e = np.asarray(p4, np.float64)
    out = np.zeros((4, px.size))
    for i in range(px.size):
        pt = np.hypot(px[i], py[i])
        if pt == 0:
            continue
        p = np.sqrt(pt**2 + pz[i] ** 2)
        sign = -1.0 if pz[i] < 0 else 1.0
        mt2 = (e[i] + pz[i]) * (e[i] - pz[i])
        d_pt = np.array([px[i] / pt, py[i] / pt, 0, 0])
        d_pz, d_e = np.array([0, 0, 1.0, 0]), np.array([0, 0, 0, 1.0])
        d_phi = np.array([-py[i], px[i], 0, 0]) / pt**2
        d_eta = d_pz / p - pz[i] / (pt * p) * d_pt
        if mt2 > pt**2:
            mass = np.sqrt(mt2 - pt**2)
            d_rapidity = (e[i] * d_pz - pz[i] * d_e) / mt2
            d_mass = (e[i] * d_e - pz[i] * d_pz - pt * d_pt) / mass
        else:
            d_rapidity = (sign * d_e + d_pz) / (e[i] + abs(pz[i])) - sign / pt * d_pt
            d_mass = np.zeros(4)
        out[:, i] = np.asarray(gradient, np.float64)[:, i] @ np.array([d_pt, d_rapidity, d_eta, d_phi, d_mass])
    return out
