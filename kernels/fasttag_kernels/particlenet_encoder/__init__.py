"""ParticleNet between its features and its head, in one call."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _dispatch
from ..edge_conv import COLUMNS, MISSING, check_weights, up

REDUCTIONS = ("mean", "sum")
LARGEST = {"k": 32, "C": 256}  # of a search for neighbours
LINE = 64  # bytes of a line of the cache; products whose matrices lie across lines take 4 % longer


def particlenet_encoder(
    x: Any,
    points: Any,
    offsets: Any,
    weights: Any,
    *,
    convs: Sequence[tuple[int, Sequence[int]]],
    missing: str = "real",
    reduce: str = "mean",
    threads: int | None = None,
    offsets_host: Any = None,
) -> Any:
    """What a ParticleNet in evaluation mode knows of each jet before its head.

        features     x <- (x - mean) scale + shift
        convolution  x <- EdgeConv(x) with the k nearest neighbours within the jet: at first in the space of the points,
                     then in that of x
        after all    mean or sum of x over the constituents

    Neighbours are those of `knn`, without a period; EdgeConv is `edge_conv` with normalisations z scale + shift, the
    mean is that of `segment`: with the weights of `pack` all bits are those of these operations, one after the other.

    Parameters
    ----------
    x : (N, F) float32 or float64, features of constituents.
    points : (N, 2) of the dtype of `x`, where neighbours are looked for at first: phi relative to the jet.
    offsets : (J+1,) int64; may start above zero; rows outside of all jets are ignored.
    weights : (W,) of the dtype of `x`, as `pack` makes it; the order is in its docstring.
    convs : (k, widths) of each edge convolution: 1 to 32 neighbours, and the widths of two layers or more. Among the
        last of them neighbours are looked for, so 2 to 256 where another convolution follows.
    missing : "real" or "ghost", see `edge_conv`.
    reduce : "mean" or "sum".
    threads : CPU threads, default `set_threads`.
    offsets_host : `offsets` in NumPy, needed on a GPU; `Jets` brings it.

    Returns
    -------
    (J, C) in the dtype of `x`, C the last width of all; 0 for a jet without constituents. A jet's numbers do not depend
    on the others. NaN and inf stay in their jet.

    Raises
    ------
    TypeError: no arrays, mixed libraries, devices or dtypes, sizes that are no integers. ValueError: wrong shapes, bad
    offsets, sizes that do not fit, unknown missing or reduce.

    Not differentiable: training computes the same step by step (`fasttag.models`).

    ParticleNet, arXiv:1902.08570, section 3 and figure 2.

    >>> import numpy as np
    >>> x = np.array([[1.0], [3.0]])
    >>> layer = lambda w: [np.array(w), np.ones(1), np.zeros(1)]
    >>> running = [np.zeros(1), np.full(1, 1 - 1e-5)] * 2
    >>> weights = pack([np.zeros(1), np.ones(1), np.zeros(1)], [(layer([[1.0, 0.5]]) + layer([[2.0]]), running)])
    >>> particlenet_encoder(x, np.zeros((2, 2)), np.array([0, 2]), weights, convs=[(1, (1, 1))])  # see `edge_conv`
    array([[6.]])
    """
    op = "particlenet_encoder"
    _dispatch.check_arrays(op, x=x, points=points, offsets=offsets, weights=weights)
    _dispatch.check_floats(op, x=x, points=points, weights=weights)
    _dispatch.check_offsets(op, offsets)
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(f"{op}: x must have shape (N, F), got {tuple(x.shape)}; one row per constituent")
    if tuple(points.shape) != (x.shape[0], 2):
        raise ValueError(
            f"{op}: points must have shape ({x.shape[0]}, 2), got {tuple(points.shape)}; one row per constituent"
        )
    for name, value, known in (("missing", missing, MISSING), ("reduce", reduce, REDUCTIONS)):
        if value not in known:
            raise ValueError(f"{op}: {name} must be one of {', '.join(known)}, got {value!r}; choose one")
    if not len(convs):
        raise ValueError(f"{op}: convs must be one convolution or more, got none; (16, (64, 64, 64)) is usual")
    for i, (k, widths) in enumerate(convs):
        _dispatch.check_integer(op, f"k of convs[{i}]", k, 1, "16 is usual")
        for width in widths:
            _dispatch.check_integer(op, f"a width of convs[{i}]", width, 1, "64 is usual")
        if k > LARGEST["k"] or len(widths) < 2:
            raise ValueError(
                f"{op}: convs[{i}] must have at most {LARGEST['k']} neighbours and two widths or more, got {k} and "
                f"{tuple(widths)}; (16, (64, 64, 64)) is usual"
            )
        if i < len(convs) - 1 and not 2 <= widths[-1] <= LARGEST["C"]:
            raise ValueError(
                f"{op}: the last width of convs[{i}] must lie in 2..{LARGEST['C']}, got {widths[-1]}; neighbours are "
                "looked for among so many channels"
            )
    length = length_of(x.shape[1], convs)
    if tuple(weights.shape) != (length,):
        raise ValueError(
            f"{op}: weights must have shape ({length},) here, got {tuple(weights.shape)}; take those of pack"
        )
    flat = [int(number) for k, widths in convs for number in (k, len(widths), *widths)]
    return _dispatch.call(
        op, x, points, offsets, weights, flat, missing, reduce, threads=threads, offsets_host=offsets_host
    )


def pack(norm: Any, convs: Sequence[Sequence[list]]) -> np.ndarray:
    """The weights of a network as `particlenet_encoder` takes them, one after the other in one NumPy array.

    They begin at a line of the cache.

    norm : mean, scale and shift of the features, (F,) each.
    convs : weights and running statistics of each edge convolution, as `edge_conv` takes them.

    The order: for each convolution, of C channels to (C_1, ..., C_L), with up(n) the next multiple of 32, D the largest
    of all up(C_l) and ' for transposed,

        (C, 2 up(C_1) + up(C_L))  W_a', W_b' and that of the shortcut side by side, for W_1 = [W_a, W_b]; the last not
                                  where C = C_L
        (L - 1, D, D)             W_l' of the other layers
        (L + 1, D), (L + 1, D)    scales of the layers and the shortcut, then shifts; 1 and 0 where there is no shortcut

    each begun at a multiple of 32, with zeros between; at the end mean, scale and shift of the features. Raises
    ValueError for weights of wrong shapes.
    """
    from ..edge_conv import numba_cpu

    parts, channels = [], len(norm[0])
    for weights, running in convs:
        check_weights(channels, weights, running, "running")
        matrices, norms = numba_cpu.prepare(channels, weights, running)
        rows = [norms.scale, norms.shift]
        channels, most = len(weights[-1]), matrices.turned.shape[2]
        if len(norms.scale) == len(matrices.widths):
            rows = [np.vstack([row, np.full(most, value)]) for row, value in zip(rows, (1, 0))]
        parts += [matrices.nodes, matrices.turned, *rows]
    parts = [part.ravel() for part in (*parts, *norm)]
    size, item = sum(map(len, parts)), parts[0].itemsize
    memory = np.empty(size + LINE // item, parts[0].dtype)
    packed = memory[-memory.ctypes.data % LINE // item :][:size]
    return np.concatenate(parts, out=packed)


def length_of(columns: int, convs: Sequence[tuple[int, Sequence[int]]]) -> int:
    """How many weights there are."""
    total, channels = 3 * columns, columns
    for _, widths in convs:
        most = up(max(widths), COLUMNS)
        shortcut = up(widths[-1], COLUMNS) if widths[-1] != channels else 0
        total += channels * (2 * up(widths[0], COLUMNS) + shortcut)
        total += (len(widths) - 1) * most * most + 2 * (len(widths) + 1) * most
        channels = widths[-1]
    return total


def check_values(x: Any, points: Any, offsets: Any, *rest: Any) -> None:
    _dispatch.check_offset_values("particlenet_encoder", offsets, x.shape[0])


def outputs(x: Any, points: Any, offsets: Any, weights: Any, convs: Any, *rest: Any) -> tuple:
    return (((offsets.shape[0] - 1, convs[-1]), _dispatch.dtype_of(x)),)
