"""Linear layer of LayerNorm of dropout of GELU in float64 NumPy, and its derivatives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..particle_attention.reference import philox

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """GELU and its derivative."""
    below = _erfc(-x / math.sqrt(2)) / 2
    return x * below, below + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def kept(shape: tuple[int, int], dropout: float, seed: int, layer: int, which: int = 0xFFFFFFFF) -> np.ndarray:
    """(N, K) factors: 0 where dropped, else 1 / (1 - dropout); `which` is a word of the counter."""
    i, c = np.indices(shape)
    words = philox((layer, i, which, c // 4), (seed & 0xFFFFFFFF, seed >> 32))
    word = np.take_along_axis(words, (c % 4)[None], 0)[0]
    return np.where(word >= np.uint32(int(dropout * 2**32)), 1 / (1 - dropout), 0.0)


def before(
    x: Any,
    norm: Any = None,
    activation: str = "none",
    eps: float = 1e-5,
    dropout: float = 0.0,
    seed: int = 0,
    layer: int = 0,
) -> tuple[np.ndarray, ...]:
    """What gamma and beta are applied to, 1 / sqrt(var + eps) of each row (1 without norm), z and dz/dx."""
    z = np.asarray(x, np.float64)
    z, slope = gelu(z) if activation == "gelu" else (z, np.ones(z.shape))
    factor = kept(z.shape, dropout, seed, layer) if dropout else 1.0
    z, slope = z * factor, slope * factor
    if norm is None:
        return z, np.ones((len(z), 1)), z, slope
    centred = z - z.mean(1, keepdims=True)
    scale = 1 / np.sqrt((centred * centred).mean(1, keepdims=True) + eps)
    return centred * scale, scale, z, slope


def linear(x: Any, weight: Any, bias: Any, norm: Any = None, **options: Any) -> np.ndarray:
    u = before(x, norm, **options)[0]
    if norm is not None:
        u = u * norm[0] + norm[1]
    return u @ np.asarray(weight, np.float64).T + bias


def backward(gradient: Any, x: Any, weight: Any, norm: Any = None, **options: Any) -> tuple[np.ndarray, ...]:
    """Gradients in x, weight, bias and, where there are such, gamma and beta."""
    normal, scale, _, slope = before(x, norm, **options)
    gradient = np.asarray(gradient, np.float64)
    h, total = gradient @ np.asarray(weight, np.float64), gradient.sum(0)
    if norm is None:
        return h * slope, gradient.T @ normal, total
    g = h * norm[0]
    across = g - g.mean(1, keepdims=True) - normal * (g * normal).mean(1, keepdims=True)
    of_weight = gradient.T @ (normal * norm[0] + norm[1])
    return across * scale * slope, of_weight, total, (h * normal).sum(0), h.sum(0)
