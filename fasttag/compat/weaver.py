"""weaver-core 0.5: change `from weaver... import ...` into `from fasttag.compat.weaver import ...`.

The originals are those of ParticleNet and ParticleTransformer; ParticleNeXt has others of the same names. Tensors are
on the CPU; threads are those of `fasttag.set_threads`, not torch's.

Networks: a network file of the `weaver` command needs nothing but its import of ParticleTransformer or ParticleNet
changed; `weaver_part.py` and `weaver_particlenet.py` in this folder are such files. To use the functions here in
weaver's own networks assign them to the modules they come from before building a network:
`weaver.nn.model.ParticleNet.knn = knn`. Its ParticleTransformer takes lists of pairs, plain torch here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..interop import require

require("torch")  # an ImportError that names the extra

import torch  # noqa: E402

from fasttag_kernels import _dispatch, get_threads  # noqa: E402
from fasttag_kernels.pair_grid import LEAST_EPS, pair_grid  # noqa: E402
from fasttag_kernels.standardize.numba_cpu import fill  # noqa: E402

from ._neighbours import nearest  # noqa: E402
from ._weaver_networks import ParticleNet, ParticleTransformer  # noqa: E402

__all__ = [
    "ParticleNet",
    "ParticleTransformer",
    "_batched_fused_constant_pad",
    "_batched_fused_repeat_pad",
    "get_graph_feature",
    "knn",
    "pairwise_distance",
    "pairwise_distance_etaphi",
    "pairwise_lv_fts",
    "pairwise_lv_fts_pp",
]


def pairwise_lv_fts_pp(xi: torch.Tensor, xj: torch.Tensor, num_outputs: int = 4, eps: float = 1e-8) -> torch.Tensor:
    """Features of pairs of four-vectors, (N, num_outputs, ...): ln kT, ln z, ln Delta, ln m^2, ln(-(p_i - p_j)^2), the
    cosine between p_j boosted to the pair's rest frame and the pair, and the differences of rapidity and of phi.

    xi, xj : (N, 4, ...) float32 or float64, rows px, py, pz, E, the same number of axes, broadcast against each other.
    num_outputs : 1 (only ln Delta), 3, 4, 5, 6 or 8. eps : what logarithms and denominators are clamped at.

    Where particles meet several others, as in x[..., None] against x[..., None, :], pt, rapidity and phi are worked out
    once per particle, by torch, and pairs by the kernel: ln z and ln m^2 within 2 ulp of weaver's, as their arguments
    have the same bits; ln Delta and ln kT within 2 ulp and another 2.4e-7 (4.5e-16 in float64), since torch's square
    root is not correctly rounded. Plain torch runs, with weaver's bits and at its speed, for lists of pairs (torch's
    logarithms and atan2 of both lists, which have to keep their bits, are most of the time), where a gradient is wanted
    (weaver itself asks for none), for num_outputs above 5 and for other or mixed dtypes. ValueError where weaver has an
    assertion.
    """
    if num_outputs not in (1, 3, 4, 5, 6, 8):
        raise ValueError(f"pairwise_lv_fts_pp: num_outputs must be 1, 3, 4, 5, 6 or 8, got {num_outputs!r}; 4 is usual")
    if xi.ndim != xj.ndim or xi.ndim < 2 or xi.shape[1] != 4 or xj.shape[1] != 4:
        raise ValueError(
            f"pairwise_lv_fts_pp: xi and xj must have shape (N, 4, ...) with as many axes, got {tuple(xi.shape)} and "
            f"{tuple(xj.shape)}; add axes of length 1"
        )
    distinct = [_distinct(x) for x in (xi, xj)]
    differentiable = torch.is_grad_enabled() and (xi.requires_grad or xj.requires_grad)
    unfit = xi.dtype != xj.dtype or xi.dtype not in (torch.float32, torch.float64) or not LEAST_EPS <= eps < 1
    alike = distinct[0].shape[2:] == distinct[1].shape[2:]
    if differentiable or unfit or alike or num_outputs > 5 or 0 in (xi.numel(), xj.numel()):
        return _in_torch(xi, xj, num_outputs, eps)
    first, second = (torch.cat((x, *_kinematics(x)), 1) for x in _four_axes(*distinct))
    shape, kept = (torch.broadcast_shapes(*(x.shape[2:] for x in pair)) for pair in ((xi, xj), distinct))
    found = pair_grid(first, second, num_outputs, eps=eps).reshape(-1, num_outputs, *kept)
    return found.expand(max(len(xi), len(xj)), -1, *shape).contiguous()


pairwise_lv_fts = pairwise_lv_fts_pp


def _distinct(x: torch.Tensor) -> torch.Tensor:
    """x without the repetitions of `expand`."""
    for axis, stride in enumerate(x.stride()):
        if stride == 0 and axis != 1 and x.shape[axis] > 1:
            x = x.narrow(axis, 0, 1)
    return x


def _four_axes(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    """(A, 4, ...) as (A, 4, R, C). C: the last axes, as many as both have or the same one repeats."""
    axes = [axis for axis in range(2, a.ndim) if (a.shape[axis], b.shape[axis]) != (1, 1)]
    a, b = (x.reshape(*x.shape[:2], *(x.shape[axis] for axis in axes)) for x in (a, b))
    repeats = [(m == 1, n == 1) for m, n in zip(a.shape, b.shape)]
    first = a.ndim - 1
    while first > 2 and repeats[first - 1] == repeats[-1]:
        first -= 1
    if len(set(repeats[2:first])) > 1:
        lead = torch.broadcast_shapes(a.shape[2:first], b.shape[2:first])
        a, b = (x.expand(*x.shape[:2], *lead, *x.shape[first:]) for x in (a, b))
    return [x.reshape(*x.shape[:2], math.prod(x.shape[2:first]), math.prod(x.shape[first:])) for x in (a, b)]


def _delta_phi(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b + math.pi) % (2 * math.pi) - math.pi


def _sum_of_squares(x: torch.Tensor, rows: int) -> torch.Tensor:
    return x[:, :rows].square().sum(1, keepdim=True)


def _kinematics(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """pt, rapidity and phi, each (N, 1, ...), by weaver's formulas."""
    px, py, pz, energy = x.split(1, 1)
    rapidity = 0.5 * torch.log(1 + (2 * pz) / (energy - pz).clamp(min=1e-20))
    return _sum_of_squares(x, 2).sqrt(), rapidity, torch.atan2(py, px)


def _in_torch(xi: torch.Tensor, xj: torch.Tensor, num_outputs: int, eps: float) -> torch.Tensor:
    """All features as torch operations: differentiable."""
    (pti, yi, phii), (ptj, yj, phij) = _kinematics(xi), _kinematics(xj)
    dy, dphi = yi - yj, _delta_phi(phii, phij)
    delta = (dy**2 + dphi**2).sqrt()
    least, total = torch.minimum(pti, ptj), xi + xj
    ln = lambda x: x.clamp(min=eps).log()
    mass2 = lambda p: p[:, 3:].square() - _sum_of_squares(p, 3)
    if num_outputs == 1:
        return ln(delta)
    features = [ln(least * delta), ln(least / (pti + ptj).clamp(min=eps)), ln(delta)]
    if num_outputs > 3:
        features.append(ln(mass2(total)))
    if num_outputs > 4:
        features.append(ln(-mass2(xi - xj)))
    if num_outputs > 5:
        unit = lambda p: p[:, :3] / p[:, :3].norm(dim=1, keepdim=True).clamp(min=eps)
        features.append((unit(_boosted(xj, total)) * unit(total)).sum(1, keepdim=True))
    if num_outputs > 6:
        features += [dy, dphi]
    return torch.cat(features, 1)


def _boosted(x: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
    """The momentum of x where `frame` rests. 1e-8 is weaver's own clamp there, whatever eps the features have."""
    beta = -frame[:, :3] / frame[:, 3:].clamp(min=1e-8)
    beta2 = _sum_of_squares(beta, 3)
    gamma = (1 - beta2).clamp(min=1e-8) ** -0.5
    along = ((gamma - 1) / beta2).masked_fill(beta2 == 0, 0)
    return x[:, :3] + along * (x[:, :3] * beta).sum(1, keepdim=True) * beta + x[:, 3:] * gamma * beta


def pairwise_distance(x: torch.Tensor) -> torch.Tensor:
    """Squared distances (B, P, P) of points (B, C, P), as sums of squared differences (weaver: xx + yy - 2xy)."""
    return (x.unsqueeze(-1) - x.unsqueeze(-2)).square().sum(1)


def pairwise_distance_etaphi(x: torch.Tensor) -> torch.Tensor:
    """The same for points (B, 2, P) in (eta, phi), phi periodic."""
    eta, phi = x.unbind(1)
    difference = lambda minus, a: minus(a.unsqueeze(-1), a.unsqueeze(-2)).square()
    return difference(_delta_phi, phi) + difference(torch.sub, eta)


PERIODIC = {pairwise_distance: None, pairwise_distance_etaphi: 1}


def knn(
    x: torch.Tensor,
    k: int,
    distance_fn: Callable[[torch.Tensor], torch.Tensor] = pairwise_distance,
    exclude_self: bool = True,
) -> torch.Tensor:
    """Indices (B, P, k) int64 of the k nearest neighbours of each of the points x (B, C, P), nearest first.

    Padded points far away (weaver's 1e9) are neighbours like others, lowest index first, where a jet has too few.
    Different from weaver on purpose: distances are sums of squared differences, where xx + yy - 2xy loses half of the
    digits; equal distances are ordered by index, where topk leaves them in any order; the point itself is left out by
    its index, where weaver drops the first of topk, a duplicate perhaps. k is 32 at most. distance_fn is
    `pairwise_distance` or `pairwise_distance_etaphi` of this module, else NotImplementedError. RuntimeError where there
    are too few points, as in weaver.
    """
    if distance_fn not in PERIODIC:
        raise NotImplementedError(
            f"knn: distance_fn must be pairwise_distance or pairwise_distance_etaphi of fasttag.compat.weaver, got "
            f"{distance_fn!r}; import it from there"
        )
    batch, channels, points = x.shape
    if k + exclude_self > points:
        raise RuntimeError(f"knn: k must be at most {points - exclude_self} for {points} points, got {k}; pad further")
    rows = x.detach().transpose(1, 2).reshape(batch * points, channels)
    offsets = torch.arange(batch + 1) * points
    found = nearest(rows, k, offsets, periodic=PERIODIC[distance_fn], itself=not exclude_self)
    return found.view(batch, points, k).long()


def get_graph_feature(x: torch.Tensor, k: int, idx: torch.Tensor, cpu_mode: bool = False) -> torch.Tensor:
    """x_i and x_j - x_i on the edges of a graph: (B, 2C, P, k) from x (B, C, P) and neighbours idx (B, P, k).

    Weaver's bits; differentiable in x. `cpu_mode` chooses between weaver's two ways to the same result: ignored.
    """
    center = x.unsqueeze(-1).expand(-1, -1, -1, k)
    neighbours = x.gather(2, idx.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1))
    return torch.cat((center, neighbours.view_as(center) - center), 1)


def _batched_fused_constant_pad(
    all_content: np.ndarray,
    content_starts: np.ndarray,
    offsets: np.ndarray,
    centers: np.ndarray,
    scales: np.ndarray,
    los: np.ndarray,
    his: np.ndarray,
    do_centers: np.ndarray,
    pad_values: np.ndarray,
    out: np.ndarray,
) -> None:
    """Standardise, clip and pad rows of several variables into out (rows, variables, length), with weaver's bits.

    Row i of variable v is all_content[content_starts[v] + offsets[i] : content_starts[v] + offsets[i + 1]]; where
    do_centers[v] is false it is neither standardised nor clipped. NaN becomes 0. Threads: `fasttag.set_threads`.
    From arrays that are not weaver's use `fasttag.ops.standardize`.

    Raises ValueError for rows that reach beyond all_content.
    """
    _pad(all_content, content_starts, offsets, (centers, scales, los, his), do_centers, pad_values, False, out)


def _batched_fused_repeat_pad(
    all_content: np.ndarray,
    content_starts: np.ndarray,
    offsets: np.ndarray,
    centers: np.ndarray,
    scales: np.ndarray,
    los: np.ndarray,
    his: np.ndarray,
    do_centers: np.ndarray,
    out: np.ndarray,
) -> None:
    """`_batched_fused_constant_pad` with each row repeated in the slots behind it; empty rows of out are left alone."""
    _pad(all_content, content_starts, offsets, (centers, scales, los, his), do_centers, centers, True, out)


UNTOUCHED = (0.0, 1.0, -math.inf, math.inf)  # the center, scale and limits that change no number


def _pad(
    content: np.ndarray,
    starts: np.ndarray,
    offsets: np.ndarray,
    settings: tuple[np.ndarray, ...],
    do_centers: np.ndarray,
    pad_values: np.ndarray,
    wrap: bool,
    out: np.ndarray,
) -> None:
    name = "_batched_fused_repeat_pad" if wrap else "_batched_fused_constant_pad"
    rows, variables, _ = out.shape
    for array in (starts, *settings, do_centers, pad_values):
        if array.shape != (variables,):
            raise ValueError(
                f"{name}: there must be {variables} of each setting, as out has variables, got {len(array)}"
            )
    if len(offsets) <= rows or starts.min(initial=0) < 0:
        raise ValueError(f"{name}: there must be {rows + 1} offsets and no content_starts below 0, got {len(offsets)}")
    starts, offsets = starts.astype(np.int64), offsets[: rows + 1].astype(np.int64)
    _dispatch.check_offset_values(name, offsets, content.size - starts.max(initial=0))
    given = [np.where(do_centers, x, default).astype(content.dtype) for x, default in zip(settings, UNTOUCHED)]
    fits = out.flags.c_contiguous and out.dtype == content.dtype
    target = out if fits else np.array(out, content.dtype, order="C")
    fill(content, starts, offsets, (*given, pad_values.astype(content.dtype)), wrap, target, threads=get_threads())
    if not fits:
        out[...] = target
