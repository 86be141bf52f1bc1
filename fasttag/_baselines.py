"""The strongest plain NumPy or torch form of each operation that we know: vectorised over the whole batch, padded once.

The demo and the benchmarks time the kernels against these.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def kinematics(p4: np.ndarray) -> tuple[np.ndarray, ...]:
    """pt, rapidity, eta, phi, mass of p4 (4, N), in its dtype.

    In float64 between, as the kernel: in float32 m^2 loses all digits and massless hadrons weigh up to 0.1 GeV.
    """
    px, py, pz, e = p4.astype(np.float64)
    pt2 = px * px + py * py
    pt = np.sqrt(pt2)
    m2 = np.maximum((e + pz) * (e - pz) - pt2, 0)
    rapidity = np.copysign(np.log((e + np.abs(pz)) / np.sqrt(pt2 + m2)), pz)
    found = pt, rapidity, np.arcsinh(pz / pt), np.arctan2(py, px), np.sqrt(m2)
    return tuple(x.astype(p4.dtype) for x in found)


def segment(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sums over jets without empty jets, values (N, C)."""
    return np.add.reduceat(values, offsets[:-1], axis=0)


def pad(values: np.ndarray, offsets: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(J, length, F) and its validity by one boolean scatter, for jets no longer than `length`."""
    valid = np.arange(length) < np.diff(offsets)[:, None]
    out = np.zeros((*valid.shape, len(values)), values.dtype)
    out[valid] = values.T
    return out, valid


def pixelate(
    pt: np.ndarray,
    eta: np.ndarray,
    phi: np.ndarray,
    offsets: np.ndarray,
    *,
    npix: int = 40,
    half_width: float = 0.8,
    fixed_pixels: bool = False,
) -> np.ndarray:
    """Grey images (J, npix, npix) by np.bincount over the whole batch, jets without empty ones.

    With `fixed_pixels` only centred as EnergyFlow does, otherwise centred, rotated and flipped.
    """
    counts = np.diff(offsets)
    jet = np.repeat(np.arange(counts.size), counts)
    total = lambda x: np.add.reduceat(x, offsets[:-1])
    w = pt.astype(np.float64)
    sum_w = total(w)
    x0, y0 = eta[offsets[:-1]].astype(np.float64), phi[offsets[:-1]].astype(np.float64)
    x, y = eta - x0[jet], phi - y0[jet]
    y -= 2 * np.pi * np.floor((y + np.pi) / (2 * np.pi))
    xc, yc = total(w * x) / sum_w, total(w * y) / sum_w
    scale = npix / (2 * half_width)
    if fixed_pixels:
        col = np.ceil((x + x0[jet]) * scale - 0.5) - (np.ceil((xc + x0) * scale - 0.5) - npix // 2)[jet]
        row = np.ceil((y + y0[jet]) * scale - 0.5) - (np.ceil((yc + y0) * scale - 0.5) - npix // 2)[jet]
    else:
        x, y = x - xc[jet], y - yc[jet]
        angle = 0.5 * np.arctan2(2 * total(w * x * y), total(w * x * x) - total(w * y * y))
        cos, sin = np.cos(angle)[jet], np.sin(angle)[jet]
        x, y = x * sin - y * cos, x * cos + y * sin
        x *= np.where(total(w * (x < 0)) > total(w * (x > 0)), -1.0, 1.0)[jet]
        y *= np.where(total(w * (y < 0)) > total(w * (y > 0)), -1.0, 1.0)[jet]
        col, row = np.floor((x + half_width) * scale), np.floor((y + half_width) * scale)
    inside = (col >= 0) & (col < npix) & (row >= 0) & (row < npix)
    jet, w = jet[inside], w[inside]
    cell = (jet * npix + row[inside].astype(np.int64)) * npix + col[inside].astype(np.int64)
    w /= np.bincount(jet, w, counts.size)[jet]
    return np.bincount(cell, w, counts.size * npix * npix).reshape(-1, npix, npix).astype(pt.dtype)


def knn(x: Any, valid: Any, k: int) -> Any:
    """Indices (J, L, k) of the nearest others, x (J, L, C) and valid (J, L) padded torch tensors: a matrix and topk.

    Where a jet has too few, the rest are any slots without a constituent. phi must not wrap.
    """
    import torch

    d = torch.cdist(x, x)
    d.masked_fill_(~valid[:, None], torch.inf)
    d.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return d.topk(k, largest=False).indices


def pair_list(offsets: Any) -> tuple[Any, Any]:
    """Constituents i and j of all n^2 pairs of each jet, row-major, from offsets (J+1,) as a tensor."""
    import torch

    counts = offsets.diff()
    partners = counts.repeat_interleave(counts)
    i = torch.arange(len(partners)).repeat_interleave(partners)
    first = offsets[:-1].repeat_interleave(counts) - (partners.cumsum(0) - partners)
    return i, torch.arange(len(i)) + first.repeat_interleave(partners)


def pairwise_features(p4: Any, offsets: Any) -> Any:
    """weaver's ln kt, ln z, ln Delta, ln m^2 of all pairs (4, M) as tensors, over a list of pairs: no padding."""
    import math

    import torch

    i, j = pair_list(offsets)
    px, py, pz, e = p4
    pt, y, phi = (
        (px * px + py * py).sqrt(),
        torch.log1p(2 * pz / (e - pz).clamp(min=1e-20)).mul_(0.5),
        torch.atan2(py, px),
    )
    a, b = pt[i], pt[j]
    dphi = phi[i].sub_(phi[j]).add_(math.pi).remainder_(2 * math.pi).sub_(math.pi)
    delta = torch.hypot(y[i].sub_(y[j]), dphi)
    low = torch.minimum(a, b)
    x, y, z, e = (row[i].add_(row[j]) for row in p4)
    m2 = e.square_().sub_(x.square_()).sub_(y.square_()).sub_(z.square_())
    found = torch.stack([low * delta, low.div_(a.add_(b).clamp_(min=1e-8)), delta, m2])
    return found.clamp_(min=1e-8).log_()


def pfn(model: Any, x: Any, valid: Any) -> Any:
    """Logits of a fasttag PFN on padded inputs x (J, L, 3), valid (J, L): the usual dense torch form."""
    import torch

    latent = torch.relu_(model.phi(x)) * valid[..., None]
    return model.f(latent.sum(1))


def distance_correlation(x: Any, y: Any, weights: Any) -> Any:
    """dCorr^2 of torch tensors by its definition, a dozen n x n matrices; differentiable."""
    p = weights / weights.sum()
    a, b = (x[:, None] - x).abs(), (y[:, None] - y).abs()
    a, b = (d - m - m[:, None] + m @ p for d, m in ((a, a @ p), (b, b @ p)))
    v_xy, v_xx, v_yy = (p @ d @ p for d in (a * b, a * a, b * b))
    return v_xy / (v_xx * v_yy).sqrt()


def standardize(
    values: np.ndarray,
    offsets: np.ndarray,
    length: int,
    center: np.ndarray,
    scale: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> np.ndarray:
    """(J, C, length) from values (C, N): vectorised over all constituents, then one scatter; zeros in empty slots."""
    x = values - center[:, None]
    x *= scale[:, None]
    np.clip(x, low[:, None], high[:, None], out=x)
    x[np.isnan(x)] = 0
    counts = np.diff(offsets)
    slot = np.arange(len(x[0])) - np.repeat(offsets[:-1], counts)
    kept = slot < length
    out = np.zeros((counts.size, len(values), length), values.dtype)
    out[np.repeat(np.arange(counts.size), counts)[kept], :, slot[kept]] = x[:, kept].T
    return out
