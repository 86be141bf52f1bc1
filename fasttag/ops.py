"""The operations on Jets: unpacks them and calls the kernels, whose documentation it carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fasttag_kernels.distance_correlation import distance_correlation, distance_covariance
from fasttag_kernels.edge_conv import edge_conv
from fasttag_kernels.kinematics import Kinematics
from fasttag_kernels.kinematics import kinematics as _kinematics
from fasttag_kernels.knn import knn as _knn
from fasttag_kernels.linear import linear
from fasttag_kernels.pad import pad
from fasttag_kernels.pair_bias import pair_bias as _pair_bias
from fasttag_kernels.pair_grid import pair_grid
from fasttag_kernels.pairwise_features import count_pairs
from fasttag_kernels.pairwise_features import pairwise_features as _pairwise_features
from fasttag_kernels.particle_attention import particle_attention
from fasttag_kernels.particle_encoder import particle_encoder
from fasttag_kernels.particlenet_encoder import particlenet_encoder
from fasttag_kernels.pixelate import pixelate as _pixelate
from fasttag_kernels.residual import residual
from fasttag_kernels.segment import segment
from fasttag_kernels.segment_softmax import segment_softmax
from fasttag_kernels.standardize import standardize

from . import interop
from .jets import Jets

__all__ = [
    "Kinematics",
    "distance_correlation",
    "distance_covariance",
    "edge_conv",
    "jet_p4",
    "kinematics",
    "knn",
    "linear",
    "pad",
    "pair_bias",
    "pair_grid",
    "pairwise_features",
    "particle_attention",
    "particle_encoder",
    "particlenet_encoder",
    "pixelate",
    "residual",
    "segment",
    "segment_softmax",
    "standardize",
]


def _documented(kernel: Callable, unpacked: str) -> Callable[[Callable], Callable]:
    """Give a function on Jets the kernel's documentation, and say what a Jets stands for."""

    def decorate(function: Callable) -> Callable:
        function.__doc__ = f"`fasttag.{function.__name__}` takes a `Jets` for {unpacked}.\n\n{kernel.__doc__}"
        return function

    return decorate


@_documented(_kinematics, "p4")
def kinematics(jets: Any, *, threads: int | None = None) -> Kinematics:
    return _kinematics(jets.p4 if isinstance(jets, Jets) else jets, threads=threads)


@_documented(_pixelate, "pt, eta, phi, offsets and, from its column `kind`, kind")
def pixelate(jets: Any, *arrays: Any, **options: Any) -> Any:
    if not isinstance(jets, Jets):
        return _pixelate(jets, *arrays, **options)
    if arrays:
        raise TypeError(f"pixelate: options must be given by name, got {len(arrays)} more arguments; write npix=...")
    jets = jets.compact()
    k = _kinematics(jets.p4, threads=options.get("threads"))
    return _pixelate(
        k.pt,
        k.eta,
        k.phi,
        jets.offsets,
        **{"kind": jets.columns.get("kind"), "offsets_host": jets.offsets_host, **options},
    )


@_documented(_knn, "x = (eta, phi), periodic=1 and offsets; rows of the result are constituents of its `p4`")
def knn(jets: Any, k: int = 16, *, threads: int | None = None, **options: Any) -> Any:
    if not isinstance(jets, Jets):
        return _knn(jets, k, threads=threads, **options)
    if options:
        raise TypeError(f"knn: offsets and periodic must not be given with Jets, got {', '.join(options)}; drop them")
    _, _, eta, phi, _ = _kinematics(jets.p4, threads=threads)
    points = interop.require(jets.library).stack([eta, phi], 1)
    return _knn(points, k, offsets=jets.offsets, periodic=1, threads=threads, offsets_host=jets.offsets_host)


@_documented(_pairwise_features, "p4, offsets and, from its `offsets_host`, pairs")
def pairwise_features(jets: Any, *arrays: Any, **options: Any) -> Any:
    if not isinstance(jets, Jets):
        return _pairwise_features(jets, *arrays, **options)
    if arrays:
        raise TypeError(
            f"pairwise_features: options must be given by name, got {len(arrays)} more arguments; write features=..."
        )
    pairs = count_pairs(jets.offsets_host, options.get("triangle", "full"))
    return _pairwise_features(jets.p4, jets.offsets, **{"pairs": pairs, "offsets_host": jets.offsets_host, **options})


@_documented(_pair_bias, "p4, offsets and, from its `offsets_host`, pairs")
def pair_bias(jets: Any, *arrays: Any, **options: Any) -> Any:
    if not isinstance(jets, Jets):
        return _pair_bias(jets, *arrays, **options)
    pairs = count_pairs(jets.offsets_host, "full")
    return _pair_bias(jets.p4, jets.offsets, *arrays, **{"pairs": pairs, "offsets_host": jets.offsets_host, **options})


def jet_p4(jets: Jets, *, threads: int | None = None) -> Any:
    """Four-vector of each jet, the sum of its constituents: (4, J), rows px, py, pz, E in GeV, in the dtype of p4.

    Sums are accumulated in float64; 0 for a jet without constituents. Differentiable in p4 (torch). Raises ValueError
    for a wrong `threads`.
    """
    rows = [segment(row, jets.offsets, threads=threads, offsets_host=jets.offsets_host) for row in jets.p4]
    return interop.require(jets.library).stack(rows)
