"""The Particle Transformer between its pair bias and its head, in one call."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .. import _dispatch

EPS = 1e-5  # of every layer normalisation
MOST_HEADS = 32  # they are the lanes in which class tokens attend
MULTIPLE = 8  # widths are multiples of it: rows that the kernel computes at once


def particle_encoder(
    x: Any,
    offsets: Any,
    bias: Any,
    weights: Any,
    *,
    embed_dims: Sequence[int],
    heads: int,
    layers: int,
    cls_layers: int,
    threads: int | None = None,
    offsets_host: Any = None,
) -> Any:
    """What the class token of each jet ends as in a Particle Transformer in evaluation mode.

    With LN(x) = gamma (x - mean) / sqrt(variance + 1e-5) + beta over the channels of a token and the exact GELU,
    x Phi(x):

        embedding   for each width  x <- GELU(W LN(x) + b)
        block       u = LN(x),  a = attention within the jet with q, k, v = W u + b and the bias, o = W a + b
        class block the query is W_q c + b_q of the class token c itself; keys and values are those of u = LN of c and
                    of all constituents; no bias; what follows is for c
        after both  x <- x + LN(o),  t = LN(GELU(W LN(x) + b)),  x <- W t + b + w_resid x
        output      LN(c)

    Attention is that of `particle_attention`: for each head, of D = E / H channels, the softmax over j of
    q_i . k_j / sqrt(D) + bias_ij.

    Parameters
    ----------
    x : (N, F) float32 or float64, features of constituents, normalised as in training.
    offsets : (J+1,) int64; may start above zero.
    bias : (H, M) of the dtype of `x`, M = sum n^2, row-major for each jet: row i is the query, column j the key.
    weights : (W,) of the dtype of `x`, one after the other, matrices (out, in) row by row as torch.nn.Linear has them:
        for each of `embed_dims` gamma, beta, W, b; the blocks, the class token (E), the class blocks; gamma, beta of
        the output. A block is gamma, beta; W (3E, E) and b of q, k, v; W (E, E), b of what follows attention, with
        the scales of heads in its rows; gamma, beta; gamma, beta; W (4E, E), b; gamma, beta (4E); W (E, 4E), b; w_resid
        (E).
    embed_dims : widths of the embedding, multiples of 8; the last is E.
    heads : H, a divisor of E, at most 32.
    layers, cls_layers : numbers of blocks.
    threads : CPU threads, default `set_threads`.
    offsets_host : `offsets` in NumPy, needed on a GPU; `Jets` brings it.

    Returns
    -------
    (J, E) in the dtype of `x`, in which all is computed. A jet without constituents is its class token alone. A jet's
    numbers do not depend on the others. NaN and inf stay in their jet, which becomes NaN.

    Raises
    ------
    TypeError: no arrays, mixed libraries, devices or dtypes, sizes that are no integers. ValueError: wrong shapes, bad
    offsets, sizes that do not fit.

    Not differentiable: training computes the same step by step (`fasttag.models`).

    Particle Transformer, arXiv:2202.03772, section 4 and figure 3.

    >>> import numpy as np
    >>> sizes = {"embed_dims": (8,), "heads": 2, "layers": 0, "cls_layers": 0}  # what is left: LN of the class token
    >>> weights = np.concatenate([np.ones(2 * 1 + 8 * 1 + 8), np.arange(8.0), np.ones(8), np.zeros(8)])
    >>> particle_encoder(np.ones((3, 1)), np.array([0, 1, 3]), np.zeros((2, 5)), weights, **sizes)[1].round(2)
    array([-1.53, -1.09, -0.65, -0.22,  0.22,  0.65,  1.09,  1.53])
    """
    op = "particle_encoder"
    _dispatch.check_arrays(op, x=x, offsets=offsets, bias=bias, weights=weights)
    _dispatch.check_floats(op, x=x, bias=bias, weights=weights)
    _dispatch.check_offsets(op, offsets)
    embed_dims = list(embed_dims)
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(f"{op}: x must have shape (N, F), got {tuple(x.shape)}; one row per constituent")
    if not embed_dims:
        raise ValueError(f"{op}: embed_dims must be one width or more, got none; the last is that of the tokens")
    for i, width in enumerate(embed_dims):
        _dispatch.check_integer(op, f"embed_dims[{i}]", width, MULTIPLE, "it is a multiple of 8")
        if width % MULTIPLE:
            raise ValueError(f"{op}: embed_dims[{i}] must be a multiple of {MULTIPLE}, got {width}; pad the weights")
    _dispatch.check_integer(op, "heads", heads, 1, "they share the channels")
    if embed_dims[-1] % heads or heads > MOST_HEADS:
        raise ValueError(
            f"{op}: heads must divide the width {embed_dims[-1]} and be at most {MOST_HEADS}, got {heads}; take fewer"
        )
    for name, value in (("layers", layers), ("cls_layers", cls_layers)):
        _dispatch.check_integer(op, name, value, 0, "it is a number of blocks")
    if bias.ndim != 2 or bias.shape[0] != heads:
        raise ValueError(
            f"{op}: bias must have shape (H, M) with H = {heads}, got {tuple(bias.shape)}; one row per head"
        )
    length = length_of(x.shape[1], embed_dims, layers, cls_layers)
    if tuple(weights.shape) != (length,):
        raise ValueError(
            f"{op}: weights must have shape ({length},) here, got {tuple(weights.shape)}; the docstring has their order"
        )
    return _dispatch.call(
        op, x, offsets, bias, weights, embed_dims, heads, layers, cls_layers, threads=threads, offsets_host=offsets_host
    )


def length_of_block(width: int) -> int:
    """How many weights a block has."""
    return 12 * width * width + 24 * width


def length_of(columns: int, embed_dims: Sequence[int], layers: int, cls_layers: int) -> int:
    """How many weights there are."""
    embedding = sum(2 * a + b * (a + 1) for a, b in pairwise([columns, *embed_dims]))
    width = embed_dims[-1]
    return embedding + (layers + cls_layers) * length_of_block(width) + 3 * width


def check_values(x: Any, offsets: Any, bias: Any, *rest: Any) -> None:
    _dispatch.check_offset_values("particle_encoder", offsets, x.shape[0])
    counts = offsets[1:] - offsets[:-1]
    pairs = int(counts @ counts)
    if bias.shape[1] != pairs:
        raise ValueError(
            f"particle_encoder: bias must have shape (H, M) with M = {pairs} here, the sum of n^2, "
            f"got {tuple(bias.shape)}; give all pairs of each jet"
        )


def outputs(x: Any, offsets: Any, bias: Any, weights: Any, embed_dims: Any, *rest: Any) -> tuple:
    return (((offsets.shape[0] - 1, embed_dims[-1]), _dispatch.dtype_of(x)),)
