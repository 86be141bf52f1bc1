"""The edge convolution of ParticleNet."""

from typing import Any

import numpy as np

from .. import _dispatch

STATISTICS = ("running", "batch")
MISSING = ("real", "ghost")
ROWS, COLUMNS = 16, 32  # rows and columns of what products read and write are padded to multiples of these


def edge_conv(
    x: Any,
    neighbours: Any,
    offsets: Any,
    weights: list,
    running: list,
    *,
    statistics: str = "running",
    padded: int = 0,
    missing: str = "real",
    threads: int | None = None,
    offsets_host: Any = None,
) -> Any:
    """EdgeConv (Dynamic Graph CNN, arXiv:1801.07829, eqs. 7 and 8) as in ParticleNet (arXiv:1902.08570, figure 1).

    An edge from i to each of its neighbours j carries e = [x_i, x_j - x_i]. It goes through L layers without biases,
    e <- max(0, BN_l(W_l e)), is averaged over the neighbours of i, and

        out_i = max(0, shortcut(x_i) + mean_j e_ij),

    where shortcut(x) = BN(W x), or x itself where C = C_L. BN(z) = (z - mean) / sqrt(variance + 1e-5) gamma + beta.
    The first layer is taken apart, W_1 e = (W_a - W_b) x_i + W_b x_j for W_1 = [W_a, W_b]: products per constituent
    instead of per edge.

    Parameters
    ----------
    x : (N, C) float32 or float64, any unit. Copied once.
    neighbours : (N, k) int32 as `knn` returns them: positions within the jet, -1 for none, anywhere in a row.
    offsets : (J+1,) int64, may start above zero.
    weights : for each of L >= 2 layers the matrix (C_l, C_l-1), gamma (C_l,) and beta (C_l,), with C_0 = 2 C; then the
        same three of the shortcut, (C_L, C), (C_L,), (C_L,), unless C = C_L. In the dtype of `x`.
    running : mean and variance of each normalisation in the order of `weights`, in the dtype of `x`; not looked at with
        statistics="batch", and may be empty then.
    statistics : what is normalised with: "running", or "batch", mean and biased variance over all edges (of the
        shortcut: all constituents) of these jets.
    padded : P > 0 with statistics="batch": each jet counts as P rows, those beyond its constituents being zero and
        their k edges too, as in padded training with more than k padded rows. 0: what is there, nothing else.
    missing : "real" averages over the neighbours that there are (0 if none); "ghost" puts constituents at x = 0 where a
        neighbour is missing, as weaver-core does to jets of k constituents or fewer.
    threads : CPU threads, default `set_threads`.
    offsets_host : `offsets` in NumPy, needed on a GPU.

    Returns
    -------
    (N, C_L) in the dtype of `x`; 0 in rows outside of all jets. NaN reaches the constituents that have it or have it as
    a neighbour (with statistics="batch" all); inf gives NaN or inf there. With statistics="batch" also moments
    (3, sum of channels) float64, normalisations side by side in the order of `weights`: mean, biased variance (0 where
    there is nothing) and the number of values these were taken over. Of a jet in other company the same bits,
    statistics="running" given; with gradients asked for too.

    Raises
    ------
    TypeError: no arrays, mixed libraries, devices or dtypes. ValueError: wrong shapes, bad offsets, neighbours outside
    of their jet, unknown statistics or missing, padded below the constituents of a jet.

    Differentiable in `x` and `weights` (torch), through the statistics of the batch too; the derivative of max(0, z) at
    0 is 0.

    >>> import numpy as np
    >>> x = np.array([[1.0], [3.0]])
    >>> layer = lambda w: [np.array(w), np.ones(1), np.zeros(1)]
    >>> weights = layer([[1.0, 0.5]]) + layer([[2.0]])  # 2 max(0, x_i + (x_j - x_i) / 2)
    >>> running = [np.zeros(1), np.full(1, 1 - 1e-5)] * 2
    >>> edge_conv(x, np.array([[1], [0]], np.int32), np.array([0, 2]), weights, running)
    array([[5.],
           [7.]])
    """
    weights, running = list(weights), list(running)
    floats = {"x": x} | {f"weights[{i}]": w for i, w in enumerate(weights)}
    floats |= {f"running[{i}]": r for i, r in enumerate(running)}
    _dispatch.check_arrays("edge_conv", **floats, neighbours=neighbours, offsets=offsets)
    _dispatch.check_floats("edge_conv", **floats)
    _dispatch.check_offsets("edge_conv", offsets)
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(f"edge_conv: x must have shape (N, C), got {tuple(x.shape)}; one row per constituent")
    if _dispatch.dtype_of(neighbours) != "int32":
        raise TypeError(f"edge_conv: neighbours must be int32, got {_dispatch.dtype_of(neighbours)}; convert them")
    if neighbours.ndim != 2 or neighbours.shape[0] != x.shape[0] or not neighbours.shape[1]:
        raise ValueError(
            f"edge_conv: neighbours must have shape ({x.shape[0]}, k), got {tuple(neighbours.shape)}; take those of knn"
        )
    for name, value, known in (("statistics", statistics, STATISTICS), ("missing", missing, MISSING)):
        if value not in known:
            raise ValueError(f"edge_conv: {name} must be one of {', '.join(known)}, got {value!r}; choose one")
    _dispatch.check_integer("edge_conv", "padded", padded, 0, "0 counts what is there")
    if padded and statistics == "running":
        raise ValueError(f"edge_conv: padded must be 0 with running statistics, got {padded}; leave it out")
    check_weights(x.shape[1], weights, running, statistics)
    out, moments = _dispatch.call(
        "edge_conv",
        x,
        neighbours,
        offsets,
        weights,
        running,
        statistics,
        int(padded),
        missing,
        threads=threads,
        offsets_host=offsets_host,
    )
    return out if statistics == "running" else (out, moments)


def up(number: int, step: int) -> int:
    """The next multiple of a step."""
    return -(-number // step) * step


def layers_of(channels: int, weights: list) -> int:
    """L: the last three of `weights` belong to the shortcut where their width is not `channels`."""
    return len(weights) // 3 - (weights[-3].shape[0] != channels)


def check_weights(channels: int, weights: list, running: list, statistics: str) -> None:
    """That they are what the docstring says."""
    if len(weights) % 3 or len(weights) < 6 or layers_of(channels, weights) < 2:
        raise ValueError(
            f"edge_conv: weights must be three per layer, of two layers or more, and three of the shortcut unless its "
            f"width is that of x, {channels}, got {len(weights)}; see the docstring"
        )
    layers, width = layers_of(channels, weights), 2 * channels
    for i in range(0, len(weights), 3):
        width = channels if i == 3 * layers else width
        shapes = (weights[i].shape[0], width), (weights[i].shape[0],), (weights[i].shape[0],)
        for j, shape in enumerate(shapes, i):
            if tuple(weights[j].shape) != shape:
                raise ValueError(
                    f"edge_conv: weights[{j}] must have shape {shape}, got {tuple(weights[j].shape)}; see the docstring"
                )
        width = weights[i].shape[0]
    if weights[3 * layers - 3].shape[0] != weights[-3].shape[0]:
        raise ValueError(
            f"edge_conv: weights[{len(weights) - 3}] must have the width of the last layer, "
            f"{weights[3 * layers - 3].shape[0]}, got {weights[-3].shape[0]}; they are added"
        )
    if statistics == "batch":
        return
    expected = [tuple(gamma.shape) for gamma in weights[1::3] for _ in range(2)]
    if [tuple(r.shape) for r in running] != expected:
        raise ValueError(
            f"edge_conv: running must have shapes {expected}, got {[tuple(r.shape) for r in running]}; mean and "
            "variance of each normalisation"
        )


def check_values(
    x: Any, neighbours: Any, offsets: Any, weights: Any, running: Any, statistics: str, padded: int, *rest: Any
) -> None:
    _dispatch.check_offset_values("edge_conv", offsets, x.shape[0])
    counts = np.diff(offsets)
    if padded and len(counts) and counts.max() > padded:
        raise ValueError(f"edge_conv: padded must be {counts.max()} or more, got {padded}; jets must fit")
    if _dispatch.device_of(neighbours) != "cpu":
        return
    inside = neighbours[offsets[0] : offsets[-1]]
    outside = (inside < -1) | (inside >= np.repeat(counts, counts)[:, None])
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise ValueError(
            f"edge_conv: neighbours must be -1 or positions within their jet, got {inside[row, column]} for "
            f"constituent {row + offsets[0]}; knn gives such"
        )


def outputs(
    x: Any,
    neighbours: Any,
    offsets: Any,
    weights: Any,
    running: Any,
    statistics: str,
    padded: int,
    missing: str,
    needed: list[bool],
) -> tuple:
    """The result, the moments, and for the gradient what each layer but the first gave before its normalisation."""
    dtype, layers = _dispatch.dtype_of(x), layers_of(x.shape[1], weights)
    widths = [weights[i].shape[0] for i in range(0, len(weights), 3)]
    edges, channels = up(x.shape[0] * neighbours.shape[1], ROWS), up(max(widths[:layers]), COLUMNS)
    kept = (layers - 1) * edges * channels if any(needed) else 0
    moments = sum(widths) if statistics == "batch" else 0
    return ((x.shape[0], widths[-1]), dtype), ((3, moments), "float64"), ((kept,), dtype)
