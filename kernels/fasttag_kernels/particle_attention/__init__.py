"""Multi-head attention among the constituents of each jet."""

from typing import Any

from .. import _dispatch

LARGEST_HEAD = 128


def particle_attention(
    qkv: Any,
    offsets: Any,
    *,
    bias: Any = None,
    dropout: float = 0.0,
    seed: int = 0,
    layer: int = 0,
    threads: int | None = None,
    offsets_host: Any = None,
) -> Any:
    """Scaled dot-product attention of each jet's constituents to one another, with a bias per pair.

    For each jet of n constituents and each of H heads, with q, k, v = qkv[i, 0], qkv[i, 1], qkv[i, 2]:

        S_ij = q_i . k_j / sqrt(D) + bias_ij,   P_i. = softmax over j of S_i.,   out_i = sum_j Z_ij P_ij v_j

    (Vaswani et al., arXiv:1706.03762, eq. 1; the bias U of the Particle Transformer, arXiv:2202.03772, eq. 5). Z is
    dropout of the weights, in training: 0 with probability `dropout`, else 1 / (1 - dropout).

    Parameters
    ----------
    qkv : (N, 3, H, D) float32 or float64, on a GPU also float16 or bfloat16: queries, keys and values of each
        constituent; D of 1 to 128, on a GPU to 64. Copied once if not contiguous.
    offsets : (J+1,) int64; may start above zero.
    bias : (H, M) of the dtype of `qkv`, M = sum n^2, row-major for each jet as `pairwise_features` gives them: row i is
        the query, column j the key. -inf leaves out a pair. None: no bias.
    dropout : probability to drop a weight, 0 <= dropout < 1, in steps of 2^-32.
    seed, layer : which random numbers: Z_ij depends on them, the jet's place in the batch, head, n, i and j, and on
        nothing else. The word i % 4 that Philox4x32-10 (doi:10.1145/2063384.2063405) gives for the counter
        (layer, jet, head, (i // 4) n + j), all modulo 2^32, and the key (seed % 2^32, seed // 2^32) is less than
        dropout 2^32 where Z_ij = 0. 0 <= seed < 2^63, 0 <= layer < 2^32.
    threads : CPU threads, default `set_threads`.
    offsets_host : `offsets` in NumPy, needed on a GPU, where nobody waits to look at them; `Jets` brings it.

    Returns
    -------
    (N, H, D) in the dtype of `qkv`, in which all is computed (of float16 and bfloat16 in float32, but for the factors
    of matrix products); 0 for rows outside of all jets, and for a query all of whose scores are -inf.

    NaN and inf reach what they reach in the formula: from q_i and bias_ij the row i of that head, from k_j and v_j all
    rows of that head (from v_j in its own channel). A weight of 0, as of a pair left out, does not shield: 0 times
    NaN is NaN. A score of inf gives a row of NaN: a query that is not finite gives NaN, or 0 where every score is -inf.

    Raises
    ------
    TypeError: no arrays, mixed libraries, devices or dtypes, `dropout`, `seed` or `layer` no number. ValueError: wrong
    shapes, bad offsets, a number out of range. NotImplementedError: CuPy arrays; D above 64 on a GPU.

    Differentiable in `qkv` and `bias` (torch); 0 for rows outside of all jets and for queries without any pair.

    >>> import numpy as np
    >>> qkv = np.zeros((3, 3, 1, 2))
    >>> qkv[:, 2, 0] = [[1, 0], [3, 0], [0, 5]]
    >>> particle_attention(qkv, np.array([0, 2, 3]))[:, 0]  # scores are 0: means over the jets
    array([[2., 0.],
           [2., 0.],
           [0., 5.]])
    """
    op = "particle_attention"
    arrays = {"qkv": qkv} if bias is None else {"qkv": qkv, "bias": bias}
    _dispatch.check_arrays(op, **arrays, offsets=offsets)
    _dispatch.check_floats(op, halves=True, **arrays)
    _dispatch.check_offsets(op, offsets)
    shape = qkv.shape
    if len(shape) != 4 or shape[1] != 3 or shape[2] < 1 or not 1 <= shape[3] <= LARGEST_HEAD:
        raise ValueError(
            f"{op}: qkv must have shape (N, 3, H, D) with D of 1 to {LARGEST_HEAD}, got {tuple(shape)}; "
            "reshape it to queries, keys and values of H heads"
        )
    if bias is not None and (bias.ndim != 2 or bias.shape[0] != shape[2]):
        raise ValueError(
            f"{op}: bias must have shape (H, M) with H = {shape[2]}, got {tuple(bias.shape)}; one row per head"
        )
    numbers = _dispatch.check_dropout(op, dropout, seed, layer)
    return _dispatch.call(op, qkv, offsets, bias, *numbers, threads=threads, offsets_host=offsets_host)


def check_values(qkv: Any, offsets: Any, bias: Any, dropout: float, seed: int, layer: int, needed: list[bool]) -> None:
    _dispatch.check_offset_values("particle_attention", offsets, qkv.shape[0])
    if bias is not None:
        counts = offsets[1:] - offsets[:-1]
        pairs = int(counts.dot(counts))
        if bias.shape[1] != pairs:
            raise ValueError(
                f"particle_attention: bias must have shape (H, M) with M = {pairs} here, the sum of n^2, "
                f"got {tuple(bias.shape)}; give all pairs of each jet"
            )


def outputs(qkv: Any, offsets: Any, bias: Any, dropout: float, seed: int, layer: int, needed: list[bool]) -> tuple:
    """On a GPU nothing is saved: the backward pass has whole rows of scores at hand, and adds them up again."""
    n, _, heads, head_dim = qkv.shape
    dtype = _dispatch.dtype_of(qkv)
    saved = any(needed) and _dispatch.device_of(qkv) == "cpu"
    return ((n, heads, head_dim), dtype), ((n if saved else 0, heads), dtype)
