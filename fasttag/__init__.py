"""fasttag: compiled kernels and thin taggers for LHC jets, ragged from file to ROC curve.

Importing fasttag loads NumPy only; everything below is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fasttag_kernels import get_threads, set_threads

from .errors import CheckpointError, CorruptFileError, FasttagError, FormatError
from .jets import Jets

if TYPE_CHECKING:
    from . import compat, features, io, losses, metrics, models, ops, plots, training
    from ._backends import backends, warmup
    from .io import iter_read, read, write
    from .ops import (
        distance_correlation,
        distance_covariance,
        edge_conv,
        jet_p4,
        kinematics,
        knn,
        linear,
        pair_bias,
        pairwise_features,
        particle_attention,
        particle_encoder,
        particlenet_encoder,
        pixelate,
        residual,
        segment,
        segment_softmax,
    )

__version__ = "0.4.0"

_LAZY = {
    "backends": "_backends",
    "warmup": "_backends",
    "iter_read": "io",
    "read": "io",
    "write": "io",
    "distance_correlation": "ops",
    "distance_covariance": "ops",
    "edge_conv": "ops",
    "jet_p4": "ops",
    "kinematics": "ops",
    "knn": "ops",
    "linear": "ops",
    "pair_bias": "ops",
    "pairwise_features": "ops",
    "particle_attention": "ops",
    "particle_encoder": "ops",
    "particlenet_encoder": "ops",
    "pixelate": "ops",
    "residual": "ops",
    "segment": "ops",
    "segment_softmax": "ops",
}
_MODULES = ("compat", "features", "io", "losses", "metrics", "models", "ops", "plots", "training")

__all__ = [
    "CheckpointError",
    "CorruptFileError",
    "FasttagError",
    "FormatError",
    "Jets",
    "backends",
    "compat",
    "distance_correlation",
    "distance_covariance",
    "edge_conv",
    "features",
    "get_threads",
    "io",
    "iter_read",
    "jet_p4",
    "kinematics",
    "knn",
    "linear",
    "losses",
    "metrics",
    "models",
    "ops",
    "pair_bias",
    "pairwise_features",
    "particle_attention",
    "particle_encoder",
    "particlenet_encoder",
    "pixelate",
    "plots",
    "read",
    "residual",
    "segment",
    "segment_softmax",
    "set_threads",
    "training",
    "warmup",
    "write",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f"fasttag.{_LAZY[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"fasttag.{name}")
    else:
        raise AttributeError(f"module 'fasttag' has no attribute {name!r}")
    globals()[name] = value
    return value
