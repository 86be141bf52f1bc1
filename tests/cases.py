"""Ragged cases and operations for the contract test: every op runs on every case."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fasttag_kernels.distance_correlation import distance_correlation
from fasttag_kernels.distance_correlation import reference as distance_correlation_reference
from fasttag_kernels.edge_conv import edge_conv
from fasttag_kernels.edge_conv import reference as edge_conv_reference
from fasttag_kernels.kinematics import kinematics
from fasttag_kernels.kinematics import reference as kinematics_reference
from fasttag_kernels.knn import knn
from fasttag_kernels.knn import reference as knn_reference
from fasttag_kernels.linear import linear
from fasttag_kernels.linear import reference as linear_reference
from fasttag_kernels.pad import pad
from fasttag_kernels.pad import reference as pad_reference
from fasttag_kernels.pair_bias import pair_bias
from fasttag_kernels.pair_bias import reference as pair_bias_reference
from fasttag_kernels.pair_grid import pair_grid
from fasttag_kernels.pair_grid import reference as pair_grid_reference
from fasttag_kernels.pairwise_features import FEATURES, pairwise_features
from fasttag_kernels.pairwise_features import reference as pairwise_features_reference
from fasttag_kernels.particle_attention import particle_attention
from fasttag_kernels.particle_attention import reference as particle_attention_reference
from fasttag_kernels.particle_encoder import length_of, particle_encoder
from fasttag_kernels.particle_encoder import reference as particle_encoder_reference
from fasttag_kernels.particlenet_encoder import pack, particlenet_encoder
from fasttag_kernels.particlenet_encoder import reference as particlenet_encoder_reference
from fasttag_kernels.pixelate import CHANNELS, pixelate
from fasttag_kernels.pixelate import reference as pixelate_reference
from fasttag_kernels.residual import reference as residual_reference
from fasttag_kernels.residual import residual
from fasttag_kernels.segment import REDUCTIONS, segment
from fasttag_kernels.segment import reference as segment_reference
from fasttag_kernels.segment_softmax import reference as segment_softmax_reference
from fasttag_kernels.segment_softmax import segment_softmax
from fasttag_kernels.standardize import reference as standardize_reference
from fasttag_kernels.standardize import standardize
from tolerances import TOLERANCES


def _jets(counts: Any, seed: int = 1, phi: float = 0.7, before: int = 0, after: int = 0, mass: float = 0.0) -> tuple:
    """p4 (4, N) float64 and offsets of jets around (eta, phi) = (0.4, phi)."""
    rng = np.random.default_rng(seed)
    n = int(np.sum(counts)) + before + after
    pt = rng.exponential(12.0, n) + 0.1
    eta, angle = rng.normal(0.4, 0.3, n), rng.normal(phi, 0.3, n)
    p4 = np.array([pt * np.cos(angle), pt * np.sin(angle), pt * np.sinh(eta), np.hypot(pt * np.cosh(eta), mass)])
    return p4, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64) + before


def _duplicates() -> tuple:
    p4, offsets = _jets([5, 4])
    p4[:, 1:5] = p4[:, :1]
    return p4, offsets


def _zero_pt() -> tuple:
    p4, offsets = _jets([4, 2, 1])
    p4[:, 1] = [0, 0, -30.0, 30.0]
    p4[:, 3] = [0, 0, 7.0, 9.0]
    p4[:, 6] = 0.0
    p4[:, 0] = [0, 0, 30.0, 29.999]  # rounding: E < |pz|
    return p4, offsets


def _not_finite() -> tuple:
    p4, offsets = _jets([3, 3, 3, 3, 3, 3, 1])
    for i, (row, value) in enumerate([(0, np.nan), (2, np.nan), (3, np.nan), (0, np.inf), (2, -np.inf), (3, np.inf)]):
        p4[row, 3 * i + i % 3] = value
    return p4, offsets


CASES: dict[str, Callable[[], tuple]] = {
    "no jets": lambda: _jets([]),
    "empty jets": lambda: _jets([0, 0, 0]),
    "one constituent": lambda: _jets([1]),
    "mixed": lambda: _jets([3, 0, 46, 1, 17, 64, 65, 0, 200, 2]),
    "offsets above zero": lambda: _jets([4, 0, 13], before=3, after=5),
    "longer than any block": lambda: _jets([2, 5000, 3]),
    "duplicates": _duplicates,
    "zero pt": _zero_pt,
    "not finite": _not_finite,
    "across pi": lambda: _jets([30, 40], phi=np.pi),
    "massive": lambda: _jets([20, 30], mass=5.0),
}


@dataclasses.dataclass(frozen=True)
class Op:
    """How to run an op on a case: arguments from (p4, offsets) in a dtype, the kernel, the oracle, the error scale."""

    arguments: Callable[[np.ndarray, np.ndarray], tuple]
    run: Callable[..., Any]
    oracle: Callable[..., Any]
    scale: Callable[..., Any] = lambda *arguments: 1.0
    ragged: bool = True  # takes offsets as its argument number `offsets_at`
    offsets_at: int = 1
    pairs_at: int | None = None  # has a number per pair, (..., M), in its argument of this number
    of_jet: Callable[..., Any] = lambda output, offsets, j: output[j]  # what of an output belongs to jet j


def _kinematics_scale(p4: np.ndarray) -> np.ndarray:
    """E + pz cancels in m^2 to eps E^2; a mass is the root of that, a rapidity sees it relative to mT^2."""
    px, py, _, e = p4.astype(np.float64)
    pt2 = np.maximum(px**2 + py**2, 1e-300)
    one = np.ones_like(e)
    return np.array([0 * one, np.minimum(e**2 / pt2, 1e6) + 1, one, one, e / np.sqrt(8 * 2.0**-52)])


def _angles(p4: np.ndarray, offsets: np.ndarray) -> tuple:
    k = kinematics_reference.kinematics(p4)
    kind = (np.arange(p4.shape[1]) % 5).astype(np.int8)
    return *(x.astype(p4.dtype) for x in (k[0], k[2], k[3])), offsets, kind


def _values(p4: np.ndarray, offsets: np.ndarray) -> tuple:
    return np.random.default_rng(2).normal(size=(p4.shape[1], 7)).astype(p4.dtype), offsets


def _segment(values: Any, offsets: Any, **options: Any) -> tuple:
    return tuple(segment(values, offsets, reduce=reduce, **options) for reduce in REDUCTIONS)


def _segment_oracle(values: np.ndarray, offsets: np.ndarray) -> tuple:
    return tuple(segment_reference.segment(values, offsets, reduce) for reduce in REDUCTIONS)


def _segment_scale(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """n/2 times the sum of the absolute values, n the constituents of the jet: n additions, half an ulp each.

    Of a mean the n-th part, and a division more; a maximum is exact.
    """
    counts = np.diff(offsets)[:, None]
    sizes = segment_reference.segment(np.abs(values), offsets)
    return np.stack([counts / 2 * sizes, (counts + 1) / 2 * sizes / np.maximum(counts, 1), 0 * sizes])


def _pixelate(pt: Any, eta: Any, phi: Any, offsets: Any, kind: Any, **options: Any) -> Any:
    return pixelate(pt, eta, phi, offsets, kind=kind, channels=tuple(CHANNELS), **options)


def _pixelate_oracle(pt: Any, eta: Any, phi: Any, offsets: Any, kind: Any) -> np.ndarray:
    return pixelate_reference.pixelate(pt, eta, phi, offsets, kind=kind, channels=tuple(CHANNELS))


def _pixelate_scale(*arguments: np.ndarray) -> np.ndarray:
    """n/2 times the pixel: at most n additions of positive numbers, half an ulp each."""
    return (np.diff(arguments[3]) / 2)[:, None, None, None] * _pixelate_oracle(*arguments)


def _variables(p4: np.ndarray, offsets: np.ndarray) -> tuple:
    """pt, a saturated score with many ties that depends on it, and weights some of which are 0."""
    pt, longitudinal = np.hypot(p4[0], p4[1]), p4[2]
    score = np.clip(np.round(0.05 * pt + 0.02 * longitudinal, 1), 0, 1)
    weights = np.random.default_rng(3).exponential(size=pt.size) * (np.arange(pt.size) % 7 != 2)
    return tuple(np.ascontiguousarray(x, p4.dtype) for x in (pt, score, weights))


def _distance_correlation(x: Any, y: Any, weights: Any, **options: Any) -> Any:
    return distance_correlation(x, y, weights=weights, **options)


def _distance_correlation_scale(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    used = weights > 0
    if used.sum() < 2 or not np.isfinite(x + y)[used].all():
        return 1.0  # the result is 0 or NaN
    return distance_correlation_reference.rounding_scale(x, y, weights)


def _short_jets(p4: np.ndarray, offsets: np.ndarray) -> tuple:
    """At most 300 constituents each: 5000 have 25 million pairs, which test_pairwise_features.py looks at."""
    counts = np.minimum(np.diff(offsets), 300)
    return p4, offsets[:1] + np.concatenate([[0], np.cumsum(counts)])


def _pairwise_features(p4: Any, offsets: Any, **options: Any) -> Any:
    return pairwise_features(p4, offsets, features=FEATURES, **options)


def _pairwise_features_oracle(p4: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return pairwise_features_reference.pairwise_features(p4, offsets, features=FEATURES)


def pairs_of_jet(output: np.ndarray, offsets: np.ndarray, j: int) -> np.ndarray:
    """Of (..., M) what belongs to jet j."""
    start, stop = np.concatenate([[0], np.cumsum(np.diff(offsets) ** 2)])[j : j + 2]
    return output[..., start:stop]


SLOTS = 70


def _columns(p4: np.ndarray, offsets: np.ndarray) -> tuple:
    """p4 as four channels: one clipped on both sides, one with low above high, one untouched, one padded with NaN."""
    settings = [
        (0.5, 3.0, 0.0, -20.0),
        (0.07, -0.2, 1.0, 1e-3),
        (-1.0, 2.0, -np.inf, -np.inf),
        (1.0, -2.0, np.inf, np.inf),
        (0.0, -3.0, 7.0, np.nan),
    ]
    return p4, offsets, *(np.array(numbers, p4.dtype) for numbers in settings)


def _standardize(values: Any, offsets: Any, *settings: Any, **options: Any) -> Any:
    names = ("center", "scale", "low", "high", "pad_value")
    return standardize(values, offsets, SLOTS, **dict(zip(names, settings)), **options)


def _queries_keys_values(p4: np.ndarray, offsets: np.ndarray) -> tuple:
    """Two heads of 17 channels, with what is not finite in p4 in one of the three, and a bias that leaves out pairs."""
    p4, offsets = _short_jets(p4, offsets)
    rng = np.random.default_rng(10)
    qkv = rng.normal(size=(p4.shape[1], 3, 2, 17)).astype(p4.dtype)
    for c, row in enumerate((0, 2, 3)):
        qkv[:, c, 1, 16] = np.where(np.isfinite(p4[row]), qkv[:, c, 1, 16], p4[row])
    bias = rng.normal(0, 2, (2, int((np.diff(offsets) ** 2).sum()))).astype(p4.dtype)
    bias[rng.random(bias.shape) < 0.1] = -np.inf
    return qkv, offsets, bias


def _grid_of_pairs(p4: np.ndarray, offsets: np.ndarray) -> tuple:
    """Each constituent with itself, then with the one before."""
    pt, y, _, phi, _ = kinematics_reference.kinematics(p4)
    rows = np.concatenate([p4, np.stack([pt, y, phi]).astype(p4.dtype)])[None, :, None]
    return np.repeat(rows, 2, 2), np.concatenate([rows, np.roll(rows, 1, -1)], 2)


def _segment_softmax_scale(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Rounding in the exponents |d| below 0, the row's and the mean of its jet's; of float64 also of n additions."""
    p = segment_softmax_reference.segment_softmax(values, offsets)
    scale = np.zeros(p.shape)
    for a, b in itertools.pairwise(offsets):
        below = np.abs(values[a:b] - values[a:b].max(0, initial=-np.inf))
        scale[a:b] = p[a:b] * (below + (p[a:b] * below).sum(0) + (b - a if values.dtype == np.float64 else 0))
    return scale


BAD_DROPOUT = [
    ({"dropout": 1.0}, ValueError, "dropout must lie in 0..1, 1 left out, got 1.0; it is the part dropped"),
    ({"dropout": float("nan")}, ValueError, "dropout must lie in 0..1, 1 left out, got nan"),
    ({"dropout": -0.1}, ValueError, "dropout must lie in 0..1"),
    ({"dropout": "0.1"}, TypeError, "dropout must be a number, got '0.1'; 0.0 is none"),
    ({"dropout": True}, TypeError, "dropout must be a number, got True"),
    ({"dropout": None}, TypeError, "dropout must be a number, got None"),
    ({"dropout": np.zeros(1)}, TypeError, "dropout must be a number"),
    *(
        ({name: value}, error, message)
        for name, end in (("seed", 1 << 63), ("layer", 1 << 32))
        for value, error, message in (
            (-1, ValueError, f"{name} must lie in 0..{end - 1}, got -1; take it modulo {end}"),
            (end, ValueError, f"{name} must lie in 0..{end - 1}, got {end}"),
            (np.int64(-1), ValueError, f"{name} must lie in 0.."),
            *(
                (value, TypeError, f"{name} must be an integer, got ")
                for value in (0.5, True, np.True_, "0", None, [1], np.array(1), torch.tensor(1), np.float32(1))
            ),
        )
    ),
]
DROPOUT = ({}, {"dropout": 0.3, "seed": 5 + (1 << 40), "layer": 2})


def _dense(p4: np.ndarray, offsets: np.ndarray) -> tuple:
    """x, weight, bias, gamma, beta of `linear`."""
    rng = np.random.default_rng(4)
    shapes = (p4.shape[1], 37), (21, 37), (21,), (37,), (37,)
    return tuple((2 * rng.normal(size=shape) - 0.3).astype(p4.dtype) for shape in shapes)


# whether there is a LayerNorm, and options
LINEAR: tuple[tuple[bool, dict[str, Any]], ...] = (
    (False, {}),
    (True, {}),
    (False, {"activation": "gelu"}),
    *((True, {"activation": "gelu", **dropout}) for dropout in DROPOUT),
)


def _linear(x: Any, weight: Any, bias: Any, *norm: Any, **options: Any) -> tuple:
    return tuple(linear(x, weight, bias, norm=norm if has else None, **more, **options) for has, more in LINEAR)


def _linear_oracle(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *norm: np.ndarray) -> tuple:
    return tuple(linear_reference.linear(x, weight, bias, norm if has else None, **more) for has, more in LINEAR)


def _linear_scale(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *norm: np.ndarray) -> np.ndarray:
    """Ulps of what is multiplied and of the folded matrix, and of half of the roundings of a sum, half an ulp each."""
    scales = []
    for has, options in LINEAR:
        given = norm if has else None
        normal, *_ = linear_reference.before(x, given, **options)
        matrix, shift = np.abs(weight * norm[0] if has else weight), np.abs(weight) @ np.abs(norm[1]) if has else 0
        error = before_scale(x, given, **options) + np.abs(normal) * (1 + weight.shape[1] / 4)
        scales.append(error @ matrix.T + np.abs(bias) + shift)
    return np.stack(scales)


def before_scale(x: np.ndarray, norm: Any, activation: str = "none", **options: Any) -> np.ndarray:
    """The bound of GELU and half an ulp of dropout, in the number itself, the mean and the variance; 3 products."""
    normal, scale, z, _ = linear_reference.before(x, norm, activation, **options)
    ulps = (6.5 if x.dtype == np.float32 else 4.5 + 2 * x * x) if activation == "gelu" else 0
    error, size = scale * np.abs(z) * ulps, np.abs(normal)
    if norm is None:
        return error
    mean, deviation = error.mean(1, keepdims=True), (size * error).mean(1, keepdims=True)
    return error + mean + scale * np.abs(z.mean(1, keepdims=True)) / 2 + size * (deviation + 2)


def _branch(p4: np.ndarray, offsets: np.ndarray) -> tuple:
    """x, branch, gamma, beta, scale of `residual`."""
    rng = np.random.default_rng(5)
    shapes = (p4.shape[1], 37), (p4.shape[1], 37), (37,), (37,), (37,)
    return tuple((2 * rng.normal(size=shape) - 0.3).astype(p4.dtype) for shape in shapes)


# whether there are a LayerNorm and a scale, and options
RESIDUAL: tuple[tuple[bool, bool, dict[str, Any]], ...] = (
    (False, False, {}),
    (True, False, {}),
    *((has, True, dropout) for has in (False, True) for dropout in DROPOUT),
)


def _residual(x: Any, branch: Any, gamma: Any, beta: Any, scale: Any, **options: Any) -> tuple:
    return tuple(
        residual(x, branch, norm=(gamma, beta) if norm else None, scale=scale if scaled else None, **more, **options)
        for norm, scaled, more in RESIDUAL
    )


def _residual_oracle(x: np.ndarray, branch: np.ndarray, *rest: np.ndarray) -> tuple:
    return tuple(
        residual_reference.residual(x, branch, rest[:2] if norm else None, rest[2] if scaled else 1.0, **more)
        for norm, scaled, more in RESIDUAL
    )


def _residual_scale(x: np.ndarray, branch: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    """Ulps of the normalised branch; half an ulp of each product and of the sum, of which none is larger than all."""
    scales = []
    for norm, scaled, _ in RESIDUAL:
        given = rest[:2] if norm else None
        gamma, beta = np.abs(given if norm else (np.ones(37), np.zeros(37)))
        size = gamma * np.abs(linear_reference.before(branch, given)[0]) + beta
        error = gamma * before_scale(branch, given) + 1.5 * size
        scales.append(error / 0.7 + np.abs(x * (rest[2] if scaled else 1.0)))  # what dropout keeps is larger
    return np.stack(scales)


def pair_network(widths: tuple = (20, 17, 3), seed: int = 4, dtype: str = "float64") -> tuple[list, list]:
    """weights and running of `pair_bias`; statistics are about those of features of jets."""
    rng = np.random.default_rng(seed)
    weights, running, below = [rng.uniform(0.5, 1.5, 4), rng.normal(0, 0.2, 4)], [-np.ones(4), np.full(4, 3.0)], 4
    for width in widths:
        weights += [rng.normal(0, below**-0.5, (width, below)), rng.normal(0, 0.2, width)]
        weights += [rng.uniform(0.5, 1.5, width), rng.normal(0, 0.2, width)]
        running += [rng.normal(0, 0.3, width), rng.uniform(0.5, 2, width)]
        below = width
    return [w.astype(dtype) for w in weights], [r.astype(dtype) for r in running]


def _with_network(p4: np.ndarray, offsets: np.ndarray) -> tuple:
    weights, running = pair_network(dtype=p4.dtype.name)
    return *_short_jets(p4, offsets), *weights, *running


def _lists(arrays: tuple) -> tuple[list, list]:
    return list(arrays[:14]), list(arrays[14:])


def edge_conv_weights(columns: int, widths: tuple[int, ...], dtype: Any = np.float64, seed: int = 4) -> list:
    """Weights, then running statistics, for outputs of order one."""
    rng = np.random.default_rng(seed)
    shapes = list(zip((2 * columns, *widths), widths)) + [(columns, widths[-1])] * (columns != widths[-1])
    weights, running = [], []
    for a, b in shapes:
        weights += [rng.normal(size=(b, a)) / a**0.5, rng.uniform(0.5, 1.5, b), rng.normal(0, 0.2, b)]
        running += [rng.normal(0, 0.3, b), rng.uniform(0.5, 2, b)]
    return [array.astype(dtype) for array in (*weights, *running)]


def _neighbourhood(p4: np.ndarray, offsets: np.ndarray) -> tuple:
    """Five columns, four neighbours; NaN where p4 is not finite: inf - inf depends on who subtracts first."""
    x = np.random.default_rng(5).normal(size=(p4.shape[1], 5)).astype(p4.dtype)
    x[~np.isfinite(p4).all(0)] = np.nan
    neighbours = knn_reference.knn(x[:, :2], 4, offsets=offsets)
    return x, neighbours, offsets, *edge_conv_weights(5, (6, 7, 8), p4.dtype)


def _edge_conv(x: Any, neighbours: Any, offsets: Any, *arrays: Any, **options: Any) -> Any:
    return edge_conv(x, neighbours, offsets, arrays[:12], arrays[12:], **options)


ENCODER = {"embed_dims": (16, 8), "heads": 2, "layers": 2, "cls_layers": 2}


def encoder_weights(columns: int, sizes: dict[str, Any], dtype: Any = np.float64) -> np.ndarray:
    """Layers of all kinds at their usual size, and none of a scale of one or a shift of zero."""
    number = length_of(columns, sizes["embed_dims"], sizes["layers"], sizes["cls_layers"])
    return np.random.default_rng(12).normal(0.1, 0.4, number).astype(dtype)


def _encoded(p4: np.ndarray, offsets: np.ndarray) -> tuple:
    """Five columns, NaN where p4 is not finite, and a bias that leaves out pairs and is not symmetric."""
    p4, offsets = _short_jets(p4, offsets)
    rng = np.random.default_rng(11)
    x = rng.normal(size=(p4.shape[1], 5)).astype(p4.dtype)
    x[~np.isfinite(p4).all(0), 3] = np.nan
    bias = rng.normal(0, 2, (2, int((np.diff(offsets) ** 2).sum()))).astype(p4.dtype)
    bias[rng.random(bias.shape) < 0.1] = -np.inf
    return x, offsets, bias, encoder_weights(5, ENCODER, p4.dtype)


# with a shortcut, and without one
PARTICLENET: dict[str, Any] = {"convs": [(4, (6, 7)), (3, (9, 8, 7))], "missing": "ghost"}


def particlenet_lists(columns: int, convs: Any, dtype: Any = np.float64, seed: int = 4) -> tuple:
    """What `pack` takes, of order one."""
    rng = np.random.default_rng(seed)
    norm = rng.normal(size=columns), rng.uniform(0.5, 1.5, columns), rng.normal(size=columns)
    lists = []
    for i, (_, widths) in enumerate(convs):
        arrays = edge_conv_weights(columns, widths, dtype, seed + i)
        many = 3 * (len(widths) + (columns != widths[-1]))
        lists.append((arrays[:many], arrays[many:]))
        columns = widths[-1]
    return [array.astype(dtype) for array in norm], lists


def _network_on_points(p4: np.ndarray, offsets: np.ndarray) -> tuple:
    """Five columns, NaN where p4 is not finite: inf - inf depends on who subtracts first."""
    p4, offsets = _short_jets(p4, offsets)
    rng = np.random.default_rng(13)
    x, points = rng.normal(size=(p4.shape[1], 5)).astype(p4.dtype), rng.normal(size=(p4.shape[1], 2)).astype(p4.dtype)
    x[~np.isfinite(p4).all(0), 3] = np.nan
    return x, points, offsets, pack(*particlenet_lists(5, PARTICLENET["convs"], p4.dtype))


OPS: dict[str, Op] = {
    "kinematics": Op(
        lambda p4, offsets: (p4,), kinematics, kinematics_reference.kinematics, _kinematics_scale, ragged=False
    ),
    "segment": Op(_values, _segment, _segment_oracle, _segment_scale),
    "pad": Op(
        lambda p4, offsets: (p4, offsets),
        lambda values, offsets, **options: pad(values, offsets, 5001, **options),
        lambda values, offsets: pad_reference.pad(values, offsets, 5001),
    ),
    "pixelate": Op(_angles, _pixelate, _pixelate_oracle, _pixelate_scale, offsets_at=3),
    "knn": Op(
        lambda p4, offsets: (np.stack(_angles(p4, offsets)[1:3], 1), offsets),
        lambda x, offsets, **options: knn(x, offsets=offsets, periodic=1, **options),
        lambda x, offsets: knn_reference.knn(x, offsets=offsets, periodic=1),
        of_jet=lambda output, offsets, j: output[offsets[j] : offsets[j + 1]],
    ),
    "distance_correlation": Op(
        _variables,
        _distance_correlation,
        distance_correlation_reference.distance_correlation,
        _distance_correlation_scale,
        ragged=False,
    ),
    "pairwise_features": Op(
        _short_jets,
        _pairwise_features,
        _pairwise_features_oracle,
        lambda p4, offsets: pairwise_features_reference.rounding_scale(p4, offsets, FEATURES),
        of_jet=pairs_of_jet,
    ),
    "standardize": Op(
        _columns,
        _standardize,
        lambda *arguments: standardize_reference.standardize(*arguments, SLOTS),
        lambda *arguments: np.abs(arguments[2] * arguments[3])[:, None].astype(np.float64),
    ),
    "pair_grid": Op(
        _grid_of_pairs,
        lambda first, second, **options: pair_grid(first, second, 5, **options),
        lambda first, second: pair_grid_reference.pair_grid(first, second, 5),
        ragged=False,
    ),
    "segment_softmax": Op(
        _values,
        segment_softmax,
        segment_softmax_reference.segment_softmax,
        _segment_softmax_scale,
        of_jet=lambda output, offsets, j: output[offsets[j] : offsets[j + 1]],
    ),
    "linear": Op(_dense, _linear, _linear_oracle, _linear_scale, ragged=False),
    "residual": Op(_branch, _residual, _residual_oracle, _residual_scale, ragged=False),
    "pair_bias": Op(
        _with_network,
        lambda p4, offsets, *network, **options: pair_bias(p4, offsets, *_lists(network), **options),
        lambda p4, offsets, *network: pair_bias_reference.pair_bias(p4, offsets, *_lists(network)),
        lambda p4, offsets, *network: pair_bias_reference.rounding_scale(p4, offsets, *_lists(network)),
        of_jet=pairs_of_jet,
    ),
    "particle_attention": Op(
        _queries_keys_values,
        lambda qkv, offsets, bias, **options: particle_attention(qkv, offsets, bias=bias, **options),
        particle_attention_reference.particle_attention,
        particle_attention_reference.rounding_scale,
        pairs_at=2,
        of_jet=lambda output, offsets, j: output[offsets[j] : offsets[j + 1]],
    ),
    "edge_conv": Op(
        _neighbourhood,
        _edge_conv,
        lambda x, neighbours, offsets, *arrays: edge_conv_reference.edge_conv(
            x, neighbours, offsets, arrays[:12], arrays[12:]
        ),
        lambda x, neighbours, offsets, *arrays: edge_conv_reference.rounding_scale(
            x, neighbours, offsets, arrays[:12], arrays[12:]
        ),
        offsets_at=2,
        of_jet=lambda output, offsets, j: output[offsets[j] : offsets[j + 1]],
    ),
    "particle_encoder": Op(
        _encoded,
        lambda *arrays, **options: particle_encoder(*arrays, **ENCODER, **options),
        lambda *arrays: particle_encoder_reference.particle_encoder(*arrays, **ENCODER),
        lambda *arrays: particle_encoder_reference.rounding_scale(*arrays, **ENCODER),
        pairs_at=2,
    ),
    "particlenet_encoder": Op(
        _network_on_points,
        lambda *arrays, **options: particlenet_encoder(*arrays, **PARTICLENET, **options),
        lambda *arrays: particlenet_encoder_reference.particlenet_encoder(*arrays, **PARTICLENET),
        lambda *arrays: particlenet_encoder_reference.rounding_scale(*arrays, **PARTICLENET),
        offsets_at=2,
    ),
}


def arguments_of(op: str, case: str, dtype: str) -> tuple:
    """The arrays that an op gets in a case."""
    p4, offsets = CASES[case]()
    return OPS[op].arguments(np.ascontiguousarray(p4, dtype), offsets)


def outputs_of(result: Any) -> list[np.ndarray]:
    """The arrays of a result, one or several."""
    parts = list(result) if isinstance(result, tuple) else [result]
    return [np.asarray(part) for part in parts]


def same_bits(a: Any, b: Any) -> bool:
    """Whether two results are the same to the bit."""
    return all(
        x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(outputs_of(a), outputs_of(b), strict=True)
    )


def assert_agrees(op: str, dtype: str, arguments: tuple, result: Any, times: float = 1.0) -> None:
    """A result within `times` the tolerance of the oracle's."""
    found, expected = outputs_of(result), outputs_of(OPS[op].oracle(*arguments))
    rtol, atol = TOLERANCES[op, dtype]
    scales = OPS[op].scale(*arguments)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        assert a.dtype == (np.dtype(dtype) if b.dtype.kind == "f" else b.dtype)
        scale = scales[i] if isinstance(scales, np.ndarray) and len(found) > 1 else scales
        if op == "kinematics" and i == 1:  # rapidities of zero-pt particles are 1e5 + |pz|: relative only
            scale = np.where(np.abs(b) > 1e4, 0, scale)
        a, b = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite])
        a, b, scale = a[finite], b[finite], np.broadcast_to(scale, finite.shape)[finite]
        error, bound = np.abs(a - b), times * (rtol * np.abs(b) + atol * scale)
        assert (error <= bound).all(), f"output {i}: largest error {error.max()}"
