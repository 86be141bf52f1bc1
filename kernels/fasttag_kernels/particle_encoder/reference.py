"""The network in float64 NumPy, jet by jet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import EPS

ERFC = np.vectorize(math.erfc, otypes=[float])


class _Weights:
    """The flat array, taken from its beginning on."""

    def __init__(self, flat: np.ndarray) -> None:
        self.flat = flat.astype(np.float64)

    def take(self, *shape: int) -> np.ndarray:
        number = math.prod(shape)
        taken, self.flat = self.flat[:number], self.flat[number:]
        return taken.reshape(shape)

    def norm(self, width: int) -> tuple:
        return self.take(width), self.take(width)

    def dense(self, out: int, width: int) -> tuple:
        return self.take(out, width), self.take(out)

    def block(self, e: int) -> dict[str, Any]:
        return {
            "norm": self.norm(e),
            "in_proj": self.dense(3 * e, e),
            "out_proj": self.dense(e, e),
            "post_norm": self.norm(e),
            "fc_norm": self.norm(e),
            "fc1": self.dense(4 * e, e),
            "post_fc_norm": self.norm(4 * e),
            "fc2": self.dense(e, 4 * e),
            "w_resid": self.take(e),
        }


class Exact:
    """The steps, in float64."""

    def rounded(self, value: np.ndarray) -> np.ndarray:
        return value

    def norm(self, x: np.ndarray, weights: tuple) -> np.ndarray:
        mean = x.mean(1, keepdims=True)
        normal = (x - mean) / np.sqrt(((x - mean) ** 2).mean(1, keepdims=True) + EPS)
        return self.rounded(normal * weights[0] + weights[1])

    def dense(self, x: np.ndarray, weights: tuple) -> np.ndarray:
        return self.rounded(x @ weights[0].T + weights[1])

    def gelu(self, x: np.ndarray) -> np.ndarray:
        return self.rounded(0.5 * x * ERFC(-x / math.sqrt(2)))

    def attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray | None, heads: int) -> np.ndarray:
        parts = []
        for h, (a, b, c) in enumerate(zip(*(np.split(y, heads, 1) for y in (q, k, v)))):
            s = a @ b.T / math.sqrt(a.shape[1])
            s = self.rounded(s if bias is None else s + bias[h])
            top = s.max(1, keepdims=True, initial=-np.inf)
            p = np.exp(s - np.where(top == -np.inf, 0, top))
            total = p.sum(1, keepdims=True)
            parts.append(p @ c / np.where(total == 0, 1, total))
        return self.rounded(np.concatenate(parts, 1))

    def after(self, x: np.ndarray, attended: np.ndarray, w: dict[str, Any]) -> np.ndarray:
        x = self.rounded(x + self.norm(self.dense(attended, w["out_proj"]), w["post_norm"]))
        t = self.norm(self.gelu(self.dense(self.norm(x, w["fc_norm"]), w["fc1"])), w["post_fc_norm"])
        return self.rounded(self.dense(t, w["fc2"]) + w["w_resid"] * x)

    def network(
        self,
        x: np.ndarray,
        offsets: np.ndarray,
        bias: np.ndarray,
        weights: np.ndarray,
        embed_dims: Sequence[int],
        heads: int,
        layers: int,
        cls_layers: int,
    ) -> np.ndarray:
        w, e = _Weights(weights), embed_dims[-1]
        embed = [(w.norm(a), w.dense(b, a)) for a, b in itertools.pairwise((x.shape[1], *embed_dims))]
        blocks = [w.block(e) for _ in range(layers)]
        token = w.take(1, e)
        classes = [w.block(e) for _ in range(cls_layers)]
        last = w.norm(e)
        out = np.empty((len(offsets) - 1, e))
        at = 0
        for jet, (a, b) in enumerate(itertools.pairwise(offsets)):
            n = int(b - a)
            pairs = bias[:, at : at + n * n].reshape(heads, n, n).astype(np.float64)
            at += n * n
            y = x[a:b].astype(np.float64)
            for norm, dense in embed:
                y = self.gelu(self.dense(self.norm(y, norm), dense))
            for block in blocks:
                q, k, v = np.split(self.dense(self.norm(y, block["norm"]), block["in_proj"]), 3, 1)
                y = self.after(y, self.attend(q, k, v, pairs, heads), block)
            c = token
            for block in classes:
                matrix, b_qkv = block["in_proj"]
                u = self.norm(np.concatenate([c, y]), block["norm"])
                q = self.dense(c, (matrix[:e], b_qkv[:e]))
                k, v = np.split(self.dense(u, (matrix[e:], b_qkv[e:])), 2, 1)
                c = self.after(c, self.attend(q, k, v, None, heads), block)
            out[jet] = self.norm(c, last)[0]
        return out


class Disturbed(Exact):
    """Each result of a step is changed by a random part of about SIZE of the largest of its token."""

    SIZE = 2.0**-30

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def rounded(self, value: np.ndarray) -> np.ndarray:
        size = np.abs(np.where(np.isinf(value), 0, value)).max(1, keepdims=True, initial=0)
        return value + self.SIZE * size * self.rng.standard_normal(value.shape)


def particle_encoder(*arrays: Any, **sizes: Any) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return Exact().network(*arrays, **sizes)


def rounding_scale(*arrays: Any, **sizes: Any) -> np.ndarray:
    """How far the numbers of a jet move, (J, 1), when each step is rounded to 1 / (its own size): largest of channels.

    A hundred steps, each of which may shrink or magnify what was rounded before it, are followed by changing each of
    their results at random, in float64 where the rounding of the computation itself is 2^-23 of these changes.
    """
    with np.errstate(invalid="ignore"):
        exact = Exact().network(*arrays, **sizes)
        moved = [np.abs(Disturbed(seed).network(*arrays, **sizes) - exact) for seed in range(4)]
    return np.max(moved, axis=(0, 2), initial=0)[:, None] / Disturbed.SIZE
