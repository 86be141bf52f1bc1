"""float64 oracle, all n^2 pairs of a jet at once; weaver's definitions and clamps."""

from itertools import pairwise

import numpy as np

EPS, TINY = 1e-8, 1e-20  # of weaver: pt sum, z, kT, Delta and m^2; E - pz
METRIC = np.array([-1.0, -1.0, -1.0, 1.0])


def rapidity(pz, e):
    d = np.maximum(e - pz, TINY)
    return 0.5 * np.log(np.maximum(d + 2 * pz, TINY) / d)


def psi(x):
    return np.sign(x) * np.log1p(np.abs(x))


def jet_features(p4):
    """name -> (n, n) of one jet."""
    p4 = np.asarray(p4, np.float64)
    px, py, pz, e = p4
    pairs = lambda x: (x[..., :, None], x[..., None, :])
    with np.errstate(all="ignore"):
        pt, y, phi = np.sqrt(px**2 + py**2), rapidity(pz, e), np.arctan2(py, px)
        dphi = np.pi - np.abs(np.pi - np.abs(np.subtract(*pairs(phi))))
        delta = np.hypot(np.subtract(*pairs(y)), dphi)
        low, total = np.minimum(*pairs(pt)), np.add(*pairs(pt))
        square = lambda q: q[3] ** 2 - (q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
        a, b = pairs(p4)
        dot = a[3] * b[3] - (a[0] * b[0] + a[1] * b[1] + a[2] * b[2])
        features = {
            "ln_kt": np.log(np.maximum(low * delta, EPS)),
            "ln_z": np.log(np.maximum(low / np.maximum(total, EPS), EPS)),
            "ln_delta": np.log(np.maximum(delta, EPS)),
            "ln_m2": np.log(np.maximum(square(a + b), EPS)),
            "dot": dot,
            "m2_difference": square(a - b),
            "psi_dot": psi(dot),
            "psi_m2_difference": psi(square(a - b)),
        }
    finite = np.isfinite(p4).all(0)
    good = finite[:, None] & finite
    return {name: np.where(good, feature, np.nan) for name, feature in features.items()}


def pairwise_features(p4, offsets, *, features=("ln_kt", "ln_z", "ln_delta", "ln_m2"), triangle="full"):
    jets = []
    for a, b in pairwise(offsets):
        found = jet_features(np.asarray(p4)[:, a:b])
        keep = np.tril_indices(b - a) if triangle == "lower" else np.indices((b - a, b - a)).reshape(2, -1)
        jets.append(np.stack([found[name][tuple(keep)] for name in features]))
    return np.concatenate([np.empty((len(features), 0)), *jets], axis=1)


def rounding_scale(p4, offsets, features):
    """(F, M), all pairs: how many eps of the dtype of `p4` a feature may be off beyond an ulp or two of itself."""
    jets = []
    for a, b in pairwise(offsets):
        p = np.asarray(p4[:, a:b], np.float64)
        found, one = jet_features(p), np.ones((b - a, b - a))
        pairs = lambda x: (x[:, None], x[None])
        with np.errstate(all="ignore"):
            pt, e = np.hypot(p[0], p[1]), np.abs(p[3])
            y = 16 * (1 + np.maximum(*pairs(np.abs(rapidity(p[2], p[3])))))  # and phi: 4 ulp of each, and of pi
            angle = y / np.exp(found["ln_delta"])
            products, squares = 4 * np.multiply(*pairs(e)), 4 * np.add(*pairs(e)) ** 2
            ln_low = np.abs(np.log(np.maximum(np.minimum(*pairs(pt)), 1e-37)))
            single = {"ln_kt": 1 + ln_low + np.abs(found["ln_delta"]), "ln_z": 2 * one, "ln_delta": one, "ln_m2": one}
            double = {
                "ln_kt": angle,
                "ln_z": 0 * one,
                "ln_delta": angle,
                "ln_m2": squares / np.exp(found["ln_m2"]),
                "dot": products,
                "m2_difference": squares,
                "psi_dot": products,
                "psi_m2_difference": squares,
            }
        eps = 2.0**-52 / np.finfo(p4.dtype).eps
        jets.append(np.stack([(single.get(name, 0 * one) + eps * double[name]).ravel() for name in features]))
    return np.concatenate([np.empty((len(features), 0)), *jets], axis=1)


def jet_gradient(gradient, p4):
    """Derivative of sum(gradient[name] * jet_features(p4)[name]) by p4, (4, n), pair by pair."""
    p4 = np.asarray(p4, np.float64)
    n = p4.shape[1]
    out = np.zeros((4, n))
    found = jet_features(p4)
    pt, y, phi = np.hypot(p4[0], p4[1]), rapidity(p4[2], p4[3]), np.arctan2(p4[1], p4[0])
    d_pt, d_y, d_phi = (np.zeros((n, 4)) for _ in range(3))
    for i in range(n):
        px, py, pz, e = p4[:, i]
        if pt[i] > 0:
            d_pt[i, :2] = px / pt[i], py / pt[i]
            d_phi[i, :2] = -py / pt[i] ** 2, px / pt[i] ** 2
        d = max(e - pz, TINY)
        d_d = np.array([0, 0, -1.0, 1.0]) * (e - pz > TINY)
        d_top = (d_d + np.array([0, 0, 2, 0])) * (d + 2 * pz > TINY)
        d_y[i] = 0.5 * (d_top / max(d + 2 * pz, TINY) - d_d / d)
    for i in range(n):
        for j in range(n):
            g = {name: gradient[name][i, j] for name in gradient}
            dot, square = METRIC * p4[:, j], METRIC * (p4[:, i] - p4[:, j])
            d_dot = np.array([dot, METRIC * p4[:, i]])
            d_square = 2 * np.array([square, -square])
            by = g.get("dot", 0) * d_dot + g.get("m2_difference", 0) * d_square
            by += g.get("psi_dot", 0) / (1 + abs(found["dot"][i, j])) * d_dot
            by += g.get("psi_m2_difference", 0) / (1 + abs(found["m2_difference"][i, j])) * d_square
            if i != j:
                floor = np.log(EPS)
                unclamped = {name: g.get(name, 0) * (found[name][i, j] > floor) for name in found}
                dphi = (phi[i] - phi[j] + np.pi) % (2 * np.pi) - np.pi
                delta2 = (y[i] - y[j]) ** 2 + dphi**2
                if delta2 > 0:
                    d_delta = (
                        (y[i] - y[j]) * np.array([d_y[i], -d_y[j]]) + dphi * np.array([d_phi[i], -d_phi[j]])
                    ) / delta2
                    by += (unclamped["ln_delta"] + unclamped["ln_kt"]) * d_delta
                share = np.array([float(pt[i] < pt[j]), float(pt[j] < pt[i])]) + 0.5 * (pt[i] == pt[j])
                if min(pt[i], pt[j]) > 0:
                    d_low = share[:, None] * np.array([d_pt[i], d_pt[j]]) / min(pt[i], pt[j])
                    by += (unclamped["ln_kt"] + unclamped["ln_z"]) * d_low
                if pt[i] + pt[j] > EPS:
                    by -= unclamped["ln_z"] * np.array([d_pt[i], d_pt[j]]) / (pt[i] + pt[j])
                d_m2 = 2 * METRIC * (p4[:, i] + p4[:, j])
                if unclamped["ln_m2"]:
                    by += unclamped["ln_m2"] * d_m2 / np.exp(found["ln_m2"][i, j])
            out[:, i] += by[0]
            out[:, j] += by[1]
    return out
