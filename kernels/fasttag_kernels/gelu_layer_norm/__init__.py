"""LayerNorm of GELU, with dropout between them: what stands between the two products of a feed-forward block."""

import math
from typing import Any

from .. import _dispatch


def gelu_layer_norm(
    x: Any,
    weight: Any,
    bias: Any,
    *,
    eps: float = 1e-5,
    dropout: float = 0.0,
    seed: int = 0,
    layer: int = 0,
    threads: int | None = None,
) -> Any:
    """LayerNorm over the columns of dropout(GELU(x)), row by row, in one pass.

    z_ic = Z_ic GELU(x_ic) with GELU(x) = x (1 + erf(x / sqrt 2)) / 2 (arXiv:1606.08415, section 2, exact), and

        out_ic = weight_c (z_ic - mean_i) / sqrt(var_i + eps) + bias_c

    with mean_i and var_i of the C numbers z_ic, var_i with 1 / C (arXiv:1607.06450, eqs. 3 and 4): the middle of
    Particle Transformer's feed-forward block (arXiv:2202.03772, figure 3b) and of its embedding. Mean and variance are
    summed in float64. Z_ic is 1 without dropout, else 0 with probability `dropout` and 1 / (1 - dropout) otherwise.

    Parameters
    ----------
    x : (N, C) float32 or float64, one row per constituent. Copied once if not contiguous.
    weight, bias : (C,) in the dtype of `x`.
    eps : above 0; added to the variance, so that a constant row gives `bias`.
    dropout : probability to drop a number, 0 <= dropout < 1, in steps of 2^-32.
    seed, layer : Z_ic is word c % 4 of Philox4x32-10 (doi:10.1145/2063384.2063405) with the key `seed` and the counter
        (layer, i, 2^32 - 1, c // 4): dropped where that is below dropout 2^32. The same for any number of threads.
        `particle_attention` has the head in place of 2^32 - 1, so one `layer` will do for both; give every other
        dropout of a network its own. 0 <= seed < 2^63, 0 <= layer < 2^32.
    threads : CPU threads, default `set_threads`.

    Returns
    -------
    (N, C) in the dtype of `x`. A NaN or infinite number makes its row NaN, and no other.

    Raises
    ------
    TypeError: no arrays, mixed libraries, devices or dtypes; eps, dropout, seed or layer no number. ValueError: wrong
    shapes, eps, dropout, seed or layer out of range.

    Differentiable in `x`, `weight` and `bias` (torch).

    >>> import numpy as np
    >>> gelu_layer_norm(np.array([[0.0, 9.0], [-9.0, 0.0]]), np.ones(2), np.zeros(2)).round(3)
    array([[-1.,  1.],
           [-0.,  0.]])
    """
    op = "gelu_layer_norm"
    _dispatch.check_arrays(op, x=x, weight=weight, bias=bias)
    _dispatch.check_floats(op, x=x, weight=weight, bias=bias)
    if x.ndim != 2:
        raise ValueError(f"{op}: x must have shape (N, C), got {tuple(x.shape)}; reshape it to rows")
    for name, array in (("weight", weight), ("bias", bias)):
        if tuple(array.shape) != (x.shape[1],):
            raise ValueError(
                f"{op}: {name} must have shape ({x.shape[1]},), got {tuple(array.shape)}; give one number per column"
            )
    if not isinstance(eps, (float, int)) or isinstance(eps, bool):
        raise TypeError(f"{op}: eps must be a number, got {eps!r}; PyTorch's default is 1e-5")
    if not 0 < eps < math.inf:
        raise ValueError(f"{op}: eps must be above 0 and finite, got {eps}; PyTorch's default is 1e-5")
    return _dispatch.call(
        op, x, weight, bias, float(eps), *_dispatch.check_dropout(op, dropout, seed, layer), threads=threads
    )


def check_values(*_: Any) -> None:
    """Any values will do."""


def outputs(x: Any, *_: Any) -> tuple:
    return ((tuple(x.shape), _dispatch.dtype_of(x)),)
