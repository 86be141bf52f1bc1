"""Residual connection around LayerNorm and dropout of a branch in float64 NumPy, and its derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..linear.reference import before, kept

DROPPED = 0xFFFFFFFE


def _parts(
    branch: Any, norm: Any, eps: float, dropout: float, seed: int, layer: int
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Normalised branch, 1 / sqrt(var + eps) of each row, and factors of dropout."""
    normal, per_sd, *_ = before(branch, norm, eps=eps)
    return normal, per_sd, kept(normal.shape, dropout, seed, layer, DROPPED) if dropout else np.ones(normal.shape)


def residual(
    x: Any,
    branch: Any,
    norm: Any = None,
    scale: Any = 1.0,
    eps: float = 1e-5,
    dropout: float = 0.0,
    seed: int = 0,
    layer: int = 0,
) -> np.ndarray:
    normal, _, factor = _parts(branch, norm, eps, dropout, seed, layer)
    gamma, beta = (1.0, 0.0) if norm is None else norm
    return np.asarray(x, np.float64) * scale + factor * (normal * gamma + beta)


def backward(
    gradient: Any,
    x: Any,
    branch: Any,
    norm: Any = None,
    scale: Any = 1.0,
    eps: float = 1e-5,
    dropout: float = 0.0,
    seed: int = 0,
    layer: int = 0,
) -> tuple[np.ndarray, ...]:
    """Gradients in x, branch, gamma, beta and scale."""
    normal, per_sd, factor = _parts(branch, norm, eps, dropout, seed, layer)
    gradient = np.asarray(gradient, np.float64)
    h, of_scale = gradient * factor, (gradient * x).sum(0)
    if norm is None:
        return gradient * scale, h, (h * normal).sum(0), h.sum(0), of_scale
    g = h * norm[0]
    across = g - g.mean(1, keepdims=True) - normal * (g * normal).mean(1, keepdims=True)
    return gradient * scale, across * per_sd, (h * normal).sum(0), h.sum(0), of_scale
