"""LayerNorm of dropout of GELU in float64 NumPy, and its derivatives."""

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


def kept(shape: tuple[int, int], dropout: float, seed: int, layer: int) -> np.ndarray:
    """(N, C) factors: 0 where dropped, else 1 / (1 - dropout)."""
    i, c = np.indices(shape)
    words = philox((layer, i, 0xFFFFFFFF, c // 4), (seed & 0xFFFFFFFF, seed >> 32))
    word = np.take_along_axis(words, (c % 4)[None], 0)[0]
    return np.where(word >= np.uint32(int(dropout * 2**32)), 1 / (1 - dropout), 0.0)


def normalised(
    x: Any, eps: float = 1e-5, dropout: float = 0.0, seed: int = 0, layer: int = 0
) -> tuple[np.ndarray, ...]:
    """(z - mean) / sqrt(var + eps), 1 / sqrt(var + eps) of each row, z = dropout(GELU(x)), and dz/dx."""
    z, slope = gelu(np.asarray(x, np.float64))
    factor = kept(z.shape, dropout, seed, layer) if dropout else 1.0
    z, slope = z * factor, slope * factor
    columns = max(z.shape[1], 1)
    centred = z - z.sum(1, keepdims=True) / columns
    scale = 1 / np.sqrt((centred * centred).sum(1, keepdims=True) / columns + eps)
    return centred * scale, scale, z, slope


def gelu_layer_norm(
    x: Any, weight: Any, bias: Any, eps: float = 1e-5, dropout: float = 0.0, seed: int = 0, layer: int = 0
) -> np.ndarray:
    return normalised(x, eps, dropout, seed, layer)[0] * weight + bias


def backward(
    gradient: Any, x: Any, weight: Any, eps: float = 1e-5, dropout: float = 0.0, seed: int = 0, layer: int = 0
) -> tuple[np.ndarray, ...]:
    """Gradients in x, weight and bias."""
    normal, scale, _, slope = normalised(x, eps, dropout, seed, layer)
    gradient = np.asarray(gradient, np.float64)
    g, columns = gradient * weight, max(normal.shape[1], 1)
    across = g - g.sum(1, keepdims=True) / columns - normal * (g * normal).sum(1, keepdims=True) / columns
    return across * scale * slope, (gradient * normal).sum(0), gradient.sum(0)
