"""Which operation runs where, and compiling ahead of time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fasttag_kernels import TABLE
from fasttag_kernels.particlenet_encoder import pack

STATUS = {
    "numba": "cpu",
    "cuda": "compiled and emulated, not yet run on a GPU",
    "triton": "compiled and interpreted, not yet run on a GPU",
}


def backends() -> dict[str, dict[str, str]]:
    """op -> backend -> "cpu", or of a GPU backend whether it has ever run on one."""
    return {op: {name: STATUS[name] for name in row["backends"]} for op, row in TABLE.items()}


def warmup(ops: Iterable[str] | None = None) -> None:
    """Compile the CPU kernels of `ops` (default: all) for float32 and float64, or load them from the cache on disk.

    Takes two minutes the first time on a machine, some seconds afterwards. Left to their first use: the kernels of
    gradients, and those of `knn` for k below 9 or above 16. Raises ValueError for unknown ops.
    """
    from . import ops as functions

    names = list(TABLE if ops is None else ops)
    unknown = sorted(set(names) - set(TABLE))
    if unknown:
        raise ValueError(f"warmup: ops must be some of {', '.join(TABLE)}, got {', '.join(unknown)}; rename them")
    offsets = np.array([0, 1])
    for dtype in (np.float32, np.float64):
        one = np.ones(1, dtype)
        many = np.ones(300, dtype)  # more than distance_correlation takes pair by pair
        four = one.repeat(4)
        layers = [four[None], one, one, one, one[None], one, one, one]
        edges = [one[None].repeat(2, 1), one, one, one[None], one, one], [one] * 4
        arguments: dict[str, tuple] = {
            "kinematics": (np.ones((4, 1), dtype),),
            "segment": (one, offsets),
            "pad": (one[None], offsets, 1),
            "pixelate": (one, one, one, offsets),
            "knn": (one[:, None],),
            "distance_correlation": (one.repeat(9), one.repeat(9)),
            "pairwise_features": (np.ones((4, 1), dtype), offsets),
            "pair_grid": (np.ones((1, 7, 1, 1), dtype), np.ones((1, 7, 1, 1), dtype)),
            "standardize": (one[None], offsets, 1),
            "segment_softmax": (one, offsets),
            "linear": (one[None], one[None], one),
            "residual": (one[None], one[None]),
            "pair_bias": (np.ones((4, 1), dtype), offsets, [four, four, *layers], [four, four, one, one, one, one]),
            "particle_attention": (np.ones((1, 3, 1, 1), dtype), offsets),
            "edge_conv": (one[None], np.full((1, 1), -1, np.int32), offsets, *edges),
            "particle_encoder": (one[None], offsets, one[None], one.repeat(42)),
            "particlenet_encoder": (one[None], np.ones((1, 2), dtype), offsets, pack([one] * 3, [edges])),
        }
        options: dict[str, dict[str, Any]] = {
            "particle_encoder": {"embed_dims": (8,), "heads": 1, "layers": 0, "cls_layers": 0},
            "particlenet_encoder": {"convs": [(1, (1, 1))]},
        }
        for name in names:
            getattr(functions, name)(*arguments[name], **options.get(name, {}))
        if "segment" in names:
            functions.segment(one, offsets, reduce="max")
        if "distance_correlation" in names:
            functions.distance_correlation(many, many)
