"""A residual connection around a branch of a network, with the LayerNorm and the dropout of the branch."""

from typing import Any

from .. import _dispatch


def residual(
    x: Any,
    branch: Any,
    *,
    norm: Any = None,
    scale: Any = None,
    eps: float = 1e-5,
    dropout: float = 0.0,
    seed: int = 0,
    layer: int = 0,
    threads: int | None = None,
) -> Any:
    """The sum of rows and of what a branch of the network made of them, in one pass.

    out_ic = w_c x_ic + Z_ic u_ic with, for each row i of `branch` b,

        u_ic = gamma_c (b_ic - mean_i) / sqrt(var_i + eps) + beta_c (arXiv:1607.06450, eqs. 3 and 4), or u = b

    with mean_i and var_i of the C numbers b_ic, var_i with 1 / C, summed in float64. Z_ic is 1 without dropout, else 0
    with probability `dropout` and 1 / (1 - dropout) otherwise. The Particle Transformer (arXiv:2202.03772, figure 3b)
    closes its attention with a LayerNorm here, and its feed-forward part with scales w of the residual.

    Parameters
    ----------
    x, branch : (N, C) float32 or float64, one row per constituent. Copied once if not contiguous.
    norm : gamma and beta of the LayerNorm, (C,) each, in the dtype of `x`; None for none.
    scale : w, (C,); None for 1.
    eps : above 0; added to the variance, so that a constant row of `branch` gives beta.
    dropout : probability to drop a number of the branch, 0 <= dropout < 1, in steps of 2^-32.
    seed, layer : Z_ic is word c % 4 of Philox4x32-10 (doi:10.1145/2063384.2063405) with the key `seed` and the counter
        (layer, i, 2^32 - 2, c // 4): dropped where that is below dropout 2^32. The same for any number of threads.
        `particle_attention` and `linear` have other numbers in place of 2^32 - 2; give every other residual connection
        of a network its own `layer`. 0 <= seed < 2^63, 0 <= layer < 2^32.
    threads : CPU threads, default `set_threads`.

    Returns
    -------
    (N, C) in the dtype of `x`. A row does not depend on the others: a NaN or infinite number stays in its row.

    Raises
    ------
    TypeError: no arrays, mixed libraries, devices or dtypes; eps, dropout, seed or layer no number. ValueError: wrong
    shapes, eps, dropout, seed or layer out of range.

    Differentiable in `x`, `branch`, `norm` and `scale` (torch). The inputs are kept for the gradient, nothing else.

    >>> import numpy as np
    >>> residual(np.array([[1.0, 2.0]]), np.array([[5.0, 7.0]]), norm=(np.ones(2), np.zeros(2))).round(3)
    array([[0., 3.]])
    """
    op = "residual"
    arrays = {"x": x, "branch": branch}
    gamma, beta = (None, None) if norm is None else norm
    if norm is not None:
        arrays |= {"gamma": gamma, "beta": beta}
    if scale is not None:
        arrays["scale"] = scale
    _dispatch.check_arrays(op, **arrays)
    _dispatch.check_floats(op, **arrays)
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(
            f"{op}: x must have shape (N, C) with C of 1 or more, got {tuple(x.shape)}; reshape it to rows"
        )
    if tuple(branch.shape) != tuple(x.shape):
        raise ValueError(f"{op}: branch must have shape {tuple(x.shape)}, got {tuple(branch.shape)}; they are added")
    for name in ("gamma", "beta", "scale"):
        if name in arrays and tuple(arrays[name].shape) != (x.shape[1],):
            raise ValueError(
                f"{op}: {name} must have shape ({x.shape[1]},), got {tuple(arrays[name].shape)}; give one number per "
                "column"
            )
    _dispatch.check_eps(op, eps)
    numbers = _dispatch.check_dropout(op, dropout, seed, layer)
    return _dispatch.call(op, x, branch, gamma, beta, scale, float(eps), *numbers, threads=threads)


def check_values(*_: Any) -> None:
    """Any values will do."""


def outputs(x: Any, *_: Any) -> tuple:
    return ((tuple(x.shape), _dispatch.dtype_of(x)),)
