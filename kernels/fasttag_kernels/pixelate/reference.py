"""float64 oracle, one constituent at a time. Angles from atan2, where the kernels use half-angle formulas."""

import math

import numpy as np

CHANNELS = {"pt": range(5), "pt_neutral": (0, 4), "pt_track": (1, 2, 3), "n_track": (1, 2, 3), "n_muon": (3,)}


def pixelate(
    pt, eta, phi, offsets, *, kind=None, npix=40, half_width=0.8, center="centroid", rotate=True, flip=True,
    normalize=True, wrap=True, channels=("pt",),
):  # fmt: skip
    images = np.zeros((len(offsets) - 1, len(channels), npix, npix))
    for image, a, b in zip(images, offsets[:-1], offsets[1:]):
        jet = np.array([pt[a:b], eta[a:b], phi[a:b]], np.float64)
        kinds = np.zeros(b - a, np.int8) if kind is None else kind[a:b]
        if not (np.isfinite(jet[1:]).all() and (jet[0] < np.inf).all()):
            image[:] = np.nan
            continue
        jet, kinds = jet[:, jet[0] > 0], kinds[jet[0] > 0]
        if jet.shape[1] == 0:
            continue
        w, x, y = jet
        scale = npix / (2 * half_width)
        if center is not None:
            d = y - y[0]
            y = (d - 2 * np.pi * np.floor((d + np.pi) / (2 * np.pi)) if wrap else d) + y[0]
        if center == "pixel":
            col = np.ceil(x * scale - 0.5) - np.ceil(np.average(x, weights=w) * scale - 0.5) + npix // 2
            row = np.ceil(y * scale - 0.5) - np.ceil(np.average(y, weights=w) * scale - 0.5) + npix // 2
        else:
            if center == "centroid":
                x, y = x - x[0], y - y[0]
                x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
            if rotate:
                x, y = _rotated(w, x, y)
            if flip:
                x, y = _flipped(w, x), _flipped(w, y)
            col, row = np.floor((x + half_width) * scale), np.floor((y + half_width) * scale)
        inside = (col >= 0) & (col < npix) & (row >= 0) & (row < npix)
        total = w[inside].sum() if normalize and inside.any() else 1.0
        for i in np.flatnonzero(inside):
            for channel, name in enumerate(channels):
                if name == "pt" or kinds[i] in CHANNELS[name]:
                    image[channel, int(row[i]), int(col[i])] += 1.0 if name.startswith("n_") else w[i] / total
    return images


def _rotated(w, x, y):
    xx, yy, xy = (w * x * x).sum(), (w * y * y).sum(), (w * x * y).sum()
    if math.hypot(xx - yy, 2 * xy) <= 1e-10 * (xx + yy):
        return x, y
    angle = 0.5 * math.atan2(2 * xy + 0.0, xx - yy)
    return x * math.sin(angle) - y * math.cos(angle), x * math.cos(angle) + y * math.sin(angle)


def _flipped(w, x):
    return -x if w[x < 0].sum() > w[x > 0].sum() * (1 + 1e-12) else x
