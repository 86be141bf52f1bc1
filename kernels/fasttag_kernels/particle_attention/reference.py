"""Attention among the constituents of each jet in float64 NumPy, and its derivatives."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

LOW = np.uint64(0xFFFFFFFF)


def philox(counter: Any, key: Any) -> np.ndarray:
    """Philox4x32-10 (doi:10.1145/2063384.2063405): (4, ...) uint32 of counters (4, ...) and a key of two words."""
    c = [np.asarray(word).astype(np.uint64) for word in counter]
    k = [np.uint64(word) for word in key]
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> np.uint64(32)) ^ c[1] ^ k[0], b & LOW, (a >> np.uint64(32)) ^ c[3] ^ k[1], a & LOW]
        k = [(k[0] + np.uint64(0x9E3779B9)) & LOW, (k[1] + np.uint64(0xBB67AE85)) & LOW]
    return np.stack(np.broadcast_arrays(*c)).astype(np.uint32)


def kept(n: int, dropout: float, seed: int, layer: int, jet: int, head: int) -> np.ndarray:
    """(n, n) factors: 0 where dropped, else 1 / (1 - dropout)."""
    i, j = np.indices((n, n))
    words = philox((layer, jet, head, i // 4 * n + j), (seed & 0xFFFFFFFF, seed >> 32))
    word = np.take_along_axis(words, (i % 4)[None], 0)[0]
    return np.where(word >= np.uint32(int(dropout * 2**32)), 1 / (1 - dropout), 0.0)


def _parts(qkv: np.ndarray, offsets: np.ndarray, bias: Any, dropout: float, seed: int, layer: int) -> Iterator:
    """Of each jet and head: rows, head, pairs, scaled q, k, v, softmax, factors of dropout; all in float64."""
    _, _, heads, head_dim = qkv.shape
    at = 0
    for jet, (a, b) in enumerate(itertools.pairwise(offsets)):
        n = int(b - a)
        pairs = slice(at, at + n * n)
        at += n * n
        for head in range(heads):
            q, k, v = qkv[a:b, :, head].astype(np.float64).transpose(1, 0, 2)
            q = q / np.sqrt(head_dim)
            s = q @ k.T + (0 if bias is None else bias[head, pairs].reshape(n, n).astype(np.float64))
            top = s.max(1, keepdims=True, initial=-np.inf)
            e = np.exp(s - np.where(top == -np.inf, 0, top))
            total = e.sum(1, keepdims=True)
            p = e / np.where(total == 0, 1, total)
            yield slice(a, b), head, pairs, q, k, v, p, kept(n, dropout, seed, layer, jet, head) if dropout else 1.0


def particle_attention(
    qkv: np.ndarray, offsets: np.ndarray, bias: Any = None, dropout: float = 0.0, seed: int = 0, layer: int = 0
) -> np.ndarray:
    out = np.zeros((qkv.shape[0], *qkv.shape[2:]))
    with np.errstate(invalid="ignore"):
        for rows, head, _, _, _, v, p, z in _parts(qkv, offsets, bias, dropout, seed, layer):
            out[rows, head] = (p * z) @ v
    return out


def rounding_scale(qkv: np.ndarray, offsets: np.ndarray, bias: Any = None) -> np.ndarray:
    """How many rounding errors a result may have, times what they are relative to.

    A score is rounded D + 2 times, half an ulp of A = |q| . |k| / sqrt(D) + |bias| each, and less its maximum once
    more; its exponential to 1.1 ulp. These are in the numerator and in the sum below, each of n terms.
    """
    out = np.zeros((qkv.shape[0], *qkv.shape[2:]))
    n_channels = qkv.shape[3]
    with np.errstate(invalid="ignore"):
        for rows, head, pairs, q, k, v, p, _ in _parts(qkv, offsets, bias, 0.0, 0, 0):
            size = np.abs(q) @ np.abs(k).T
            if bias is not None:
                size += np.abs(np.where(np.isinf(given := bias[head, pairs].reshape(size.shape)), 0, given))
            largest = size.max(1, keepdims=True, initial=0)
            out[rows, head] = ((n_channels + 4) * largest + len(q) + 4) * (p @ np.abs(v))
    return out


def particle_attention_backward(
    gradient: np.ndarray,
    qkv: np.ndarray,
    offsets: np.ndarray,
    bias: Any = None,
    dropout: float = 0.0,
    seed: int = 0,
    layer: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients in qkv and, per pair, in the scores: that in the bias."""
    by_qkv = np.zeros(qkv.shape)
    by_bias = np.zeros((qkv.shape[2], int((np.diff(offsets) ** 2).sum())))
    for rows, head, pairs, q, k, v, p, z in _parts(qkv, offsets, bias, dropout, seed, layer):
        g = gradient[rows, head].astype(np.float64)
        by_p = (g @ v.T) * z
        by_s = p * (by_p - (p * by_p).sum(1, keepdims=True))
        by_qkv[rows, 0, head] = by_s @ k / np.sqrt(qkv.shape[3])
        by_qkv[rows, 1, head] = by_s.T @ q
        by_qkv[rows, 2, head] = (p * z).T @ g
        by_bias[head, pairs] = by_s.ravel()
    return by_qkv, by_bias
