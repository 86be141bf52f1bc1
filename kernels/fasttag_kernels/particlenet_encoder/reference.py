"""The network in float64, by the references of its operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..edge_conv import reference as edge_conv
from ..knn import reference as knn
from ..segment import reference as segment

SIZE = 2.0**-23  # of the disturbances: as in float32, so that they exchange neighbours at almost the same distance


def particlenet_encoder(
    x: np.ndarray,
    points: np.ndarray,
    offsets: np.ndarray,
    weights: np.ndarray,
    *,
    convs: Sequence[tuple[int, Sequence[int]]],
    missing: str = "real",
    reduce: str = "mean",
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """rng : disturbs each step by up to about SIZE times what its reference says of its rounding."""
    mean, scale, shift, layers = _unpacked(weights.astype(np.float64), x.shape[1], convs)
    x, space = x.astype(np.float64), points.astype(np.float64)

    def rounded(value: np.ndarray, size: np.ndarray) -> np.ndarray:
        return value if rng is None else value + SIZE * size * rng.standard_normal(value.shape)

    with np.errstate(invalid="ignore"):
        x = rounded((x - mean) * scale + shift, (np.abs(x) + np.abs(mean)) * np.abs(scale) + np.abs(shift))
        for (k, _), (matrices, running) in zip(convs, layers):
            arguments = x, knn.knn(space, k, offsets=offsets), offsets, matrices, running
            found = edge_conv.edge_conv(*arguments, missing=missing)
            space = x = rounded(found, edge_conv.rounding_scale(*arguments, missing=missing))
        return segment.segment(x, offsets, reduce)


def rounding_scale(*arrays: np.ndarray, **options: Any) -> np.ndarray:
    """How far the numbers of a jet move, (J, 1), when each step is rounded to 1 / (its scale): largest of channels.

    Where neighbours are at almost the same distance it is the step to those that others would be.
    """
    exact = particlenet_encoder(*arrays, **options)
    rngs = [np.random.default_rng(seed) for seed in range(4)]
    moved = [np.abs(particlenet_encoder(*arrays, **options, rng=rng) - exact) for rng in rngs]
    return np.max(moved, axis=(0, 2), initial=0)[:, None] / SIZE


def _unpacked(weights: np.ndarray, columns: int, convs: Sequence[tuple[int, Sequence[int]]]) -> tuple:
    """Mean, scale and shift of the features; weights and running statistics as `edge_conv` takes them."""

    def take(*shape: int) -> np.ndarray:
        nonlocal weights
        taken, weights = weights[: math.prod(shape)], weights[math.prod(shape) :]
        return taken.reshape(shape)

    def up(number: int) -> int:
        return -(-number // 32) * 32

    found, channels = [], columns
    for _, widths in convs:
        first, last, most = widths[0], widths[-1], up(max(widths))
        shortcut = last != channels
        nodes = take(channels, 2 * up(first) + up(last) * shortcut).T
        matrices = [np.concatenate([nodes[:first], nodes[up(first) :][:first]], 1)]
        turned = take(len(widths) - 1, most, most)
        matrices += [matrix.T[:b, :a] for matrix, a, b in zip(turned, widths, widths[1:])]
        scales, shifts = take(len(widths) + 1, most), take(len(widths) + 1, most)
        if shortcut:
            matrices.append(nodes[2 * up(first) :][:last])
        listed = []
        for matrix, scale, shift in zip(matrices, scales, shifts):
            listed += [matrix, scale[: len(matrix)], shift[: len(matrix)]]
        given = [np.full(len(matrix), value) for matrix in matrices for value in (0.0, 1 - edge_conv.EPS)]
        found.append((listed, given))
        channels = last
    return *take(3, columns), found
