"""The attention bias of the Particle Transformer from four-vectors."""

from itertools import pairwise
from typing import Any

from .. import _dispatch
from ..pairwise_features import count_pairs, pairs_of

EPS = 1e-5  # of every BatchNorm
TILE = 128  # pairs that pass through the layers together


def pair_bias(
    p4: Any,
    offsets: Any,
    weights: Any,
    running: Any,
    *,
    statistics: str = "running",
    last_activation: bool = False,
    ordered: bool = False,
    remove_self_pair: bool = False,
    m2: str = "reference",
    pairs: int | None = None,
    threads: int | None = None,
    offsets_host: Any = None,
) -> Any:
    """What the attention of constituent i to j is biased by: a small network on their pair features.

    f = BN(ln kT, ln z, ln Delta, ln m^2) of `pairwise_features`; then in each layer h = GELU(BN(W h + b)) with the
    exact GELU, x Phi(x), without it in the last unless `last_activation`. BN(z) = gamma (z - mean) / sqrt(variance +
    1e-5) + beta. The features are symmetric: a pair i >= j is evaluated once and written to [i, j] and [j, i].

    Parameters
    ----------
    p4 : (4, N) float32 or float64, rows px, py, pz, E in GeV.
    offsets : (J+1,) int64; may start above zero.
    weights : 4 L + 2 arrays in the dtype of `p4`: gamma and beta (4,) of the features, then of each of L >= 2 layers, C
        channels from C' of the layer below (4 below the first), W (C, C'), b (C,), gamma (C,) and beta (C,). The last C
        is the number of heads H.
    running : 2 L + 2 arrays in the same dtype: mean and variance of each BN.
    statistics : "running": mean and variance are those of `running`, constants also for the gradient (evaluation, and
        training with frozen BN); a jet's bias does not depend on the others. "batch": those of all pairs i >= j of all
        jets, as in training; the gradient goes through them.
    last_activation : GELU after the last layer, as in the published networks (weaver: `use_pre_activation_pair=False`).
    ordered : for "batch", pairs i > j count twice, as where all n^2 are evaluated (weaver with further pair inputs).
    remove_self_pair : the bias of i = j is 0 and it does not count in the statistics.
    m2 : of `pairwise_features`; networks of weaver want "reference".
    pairs : M where it is known, so that torch.compile need not look at the values of `offsets`.
    threads : CPU threads, default `set_threads`.
    offsets_host : `offsets` in NumPy, needed on a GPU; `Jets` brings it.

    Returns
    -------
    The bias, (H, M) in the dtype of `p4`, M = sum n^2, row-major in each jet. With statistics="batch" also moments,
    (2, K) float64, K all channels of all BN in their order: mean and biased variance (divided by the number of pairs).

    Degenerate input: that of `pairwise_features`; a constituent with NaN or inf has the bias NaN in all its pairs,
    and with statistics="batch" all pairs have. Without pairs the moments are 0.

    Raises
    ------
    TypeError: no arrays, mixed libraries, devices or dtypes. ValueError: wrong shapes, bad offsets, unknown names, or
    `pairs` that is not M.

    Differentiable (torch) in `weights` and `p4`, as `pairwise_features` is; not the moments. With statistics="batch"
    the derivative by b is exactly 0.

    Particle Transformer, arXiv:2202.03772, section 4; the network of its public code.

    >>> import numpy as np
    >>> p4 = np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0], [5.0, 4.0]])
    >>> one, zero = np.ones, np.zeros
    >>> layers = [one((3, 4)), zero(3), one(3), zero(3), one((1, 3)), zero(1), one(1), zero(1)]
    >>> running = [x(c) for c in (4, 3, 1) for x in (zero, one)]
    >>> pair_bias(p4, np.array([0, 2]), [one(4), zero(4), *layers], running, remove_self_pair=True).round(3)
    array([[ 0.   , 15.539, 15.539,  0.   ]])
    """
    op = "pair_bias"
    for name, value in (("weights", weights), ("running", running)):
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{op}: {name} must be a list of arrays, got {type(value).__name__}; see the docstring")
    library = _dispatch.check_arrays(op, p4=p4, offsets=offsets)
    _dispatch.check_floats(op, p4=p4)
    if not all(_alike(x, p4) for x in (*weights, *running)):  # all one by one take 0.1 ms, half of what a jet takes
        named = _named(weights, running)
        _dispatch.check_arrays(op, p4=p4, **named)
        _dispatch.check_floats(op, p4=p4, **named)
    _dispatch.check_offsets(op, offsets)
    if p4.ndim != 2 or p4.shape[0] != 4:
        raise ValueError(f"{op}: p4 must have shape (4, N), rows px, py, pz, E, got {tuple(p4.shape)}; transpose it")
    if len(weights) < 10 or len(weights) % 4 != 2:
        raise ValueError(
            f"{op}: weights must be 2 arrays and 4 of each of at least 2 layers, got {len(weights)}; see the docstring"
        )
    if len(running) != len(weights) // 2 + 1:
        raise ValueError(
            f"{op}: running must be {len(weights) // 2 + 1} arrays, two of each BatchNorm, got {len(running)}; add them"
        )
    widths = [4, *(w.shape[0] if w.ndim else 0 for w in weights[2::4])]
    shapes: list[tuple] = [(4,), (4,)]
    for below, width in pairwise(widths):
        shapes += [(width, below), *[(width,)] * 3]
    shapes += [(width,) for width in widths for _ in range(2)]
    if [tuple(x.shape) for x in (*weights, *running)] != shapes or 0 in widths:
        for (name, array), shape in zip(_named(weights, running).items(), shapes):
            if tuple(array.shape) != shape or 0 in shape:
                raise ValueError(f"{op}: {name} must have shape {shape}, got {tuple(array.shape)}; see the docstring")
    for name, value, choices in (("statistics", statistics, ("running", "batch")), ("m2", m2, ("reference", "stable"))):
        if value not in choices:
            raise ValueError(f'{op}: {name} must be "{choices[0]}" or "{choices[1]}", got {value!r}; choose one')
    pairs = pairs_of(op, pairs, library, offsets, offsets_host, "full")
    settings = statistics, bool(last_activation), bool(ordered), bool(remove_self_pair), m2
    arguments = p4, offsets, pairs, list(weights), list(running), *settings
    bias, moments = _dispatch.call(op, *arguments, threads=threads, offsets_host=offsets_host)
    return (bias, moments) if statistics == "batch" else bias


def _alike(x: Any, p4: Any) -> bool:
    return isinstance(x, type(p4)) and x.dtype == p4.dtype and x.device == p4.device


def _named(weights: Any, running: Any) -> dict[str, Any]:
    lists = {"weights": weights, "running": running}
    return {f"{name}[{i}]": x for name, arrays in lists.items() for i, x in enumerate(arrays)}


def widths_of(weights: Any) -> list[int]:
    """Channels of each layer."""
    return [matrix.shape[0] for matrix in weights[2::4]]


def places(widths: list[int]) -> list[int]:
    """First rows of what is kept of a tile: of its features, of z of each layer but the first; and their number."""
    rows = [0, 4]
    for width in widths[1:]:
        rows.append(rows[-1] + -(-width // 8) * 8)
    return rows


def check_values(p4: Any, offsets: Any, pairs: int, *rest: Any) -> None:
    _dispatch.check_offset_values("pair_bias", offsets, p4.shape[1])
    expected = count_pairs(offsets, "full")
    if pairs != expected:
        raise ValueError(f"pair_bias: pairs must be {expected} here, got {pairs}; leave it out to have it counted")


def outputs(p4: Any, offsets: Any, pairs: int, weights: Any, *rest: Any) -> tuple:
    """Bias, moments; for the gradient the covariance of the features, and of each tile what is kept of it.

    With n constituents in jets there are (pairs + n) / 2 with i >= j; n is at most that of p4 and at most the pairs.
    """
    dtype, widths, needed = _dispatch.dtype_of(p4), widths_of(weights), rest[-1]
    tiles = -(-((pairs + _dispatch.least(pairs, p4.shape[1])) // 2) // TILE) if any(needed) else 0
    kept = (tiles, places(widths)[-1], TILE)
    channels = 4 + sum(widths)
    return ((widths[-1], pairs), dtype), ((2, channels), "float64"), ((4, 4), "float64"), (kept, dtype)
