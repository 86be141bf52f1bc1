"""The CUDA backends against the CPU's on many jets: on a GPU, and emulated."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fasttag_kernels.distance_correlation import distance_correlation
from fasttag_kernels.kinematics import kinematics
from fasttag_kernels.knn import knn
from fasttag_kernels.pairwise_features import pairwise_features
from fasttag_kernels.pixelate import pixelate
from fasttag_kernels.segment import segment

PAIRS_AT_ONCE = 10_000  # jets, whose four features take 400 MB


def assert_gpu_is_cpu(
    p4: np.ndarray,
    offsets: np.ndarray,
    send: Callable[[np.ndarray], Any],
    fetch: Callable[[Any], Any],
    on_gpu: Callable[[], Any] = contextlib.nullcontext,
) -> None:
    """Within twice the error bounds of the design (1e-6 of pt, E, logarithms; 1e-6 E_i E_j of m^2); the same neighbours
    of the same points. `send` takes an array to the GPU, `fetch` a result back; what runs there runs in `on_gpu()`.
    """
    k = kinematics(p4)
    host = {"offsets_host": offsets}
    points = np.stack([k.eta, k.phi], 1)
    values = np.ascontiguousarray(p4.T)
    expected = {
        "knn": knn(points, offsets=offsets, periodic=1, threads=2),
        "pixelate": pixelate(k.pt, k.eta, k.phi, offsets, npix=33, threads=2),
        "segment": segment(values, offsets),
    }
    x, y = k.pt[:100_000], k.eta[:100_000]
    correlation = float(distance_correlation(x, y))
    blocks = [offsets[first : first + PAIRS_AT_ONCE + 1] for first in range(0, len(offsets) - 1, PAIRS_AT_ONCE)]

    with on_gpu():
        found_k = fetch(tuple(kinematics(send(p4))))
        there = send(offsets)
        neighbours = fetch(knn(send(points), offsets=there, periodic=1, **host))
        images = fetch(pixelate(send(k.pt), send(k.eta), send(k.phi), there, npix=33, **host))
        sums = fetch(segment(send(values), there, **host))
        found = float(fetch(distance_correlation(send(x), send(y))))
    assert abs(found - correlation) <= 2e-6 * correlation
    for name, cpu, gpu in zip(k._fields, k, found_k):
        if name == "mass":  # of massless constituents the root of the rounding of E^2
            np.testing.assert_allclose(gpu**2, cpu**2, rtol=0, atol=2e-6 * float(p4[3].max()) ** 2)
        else:
            np.testing.assert_allclose(gpu, cpu, rtol=2e-6, atol=2e-6, err_msg=name)
    assert np.array_equal(expected["knn"], neighbours)
    moved = int((np.abs(images - expected["pixelate"]) > 2e-6).any((1, 2, 3)).sum())
    assert moved <= 1 + len(offsets) // 10_000, (
        f"{moved} images differ: constituents on an edge, where rounding decides"
    )
    np.testing.assert_allclose(sums, expected["segment"], rtol=2e-6, atol=1e-4)
    with on_gpu():
        p4_there = send(p4)
    for part in blocks:
        cpu = pairwise_features(p4, part, threads=2)
        with on_gpu():
            gpu = fetch(pairwise_features(p4_there, send(part), offsets_host=part))
        error = np.abs(gpu - cpu) / np.maximum(1, np.abs(cpu))
        assert error.max() <= 2e-6, f"jets from {part[0]}: {error.max(axis=1)}"
