"""A linear layer of rows, with the GELU, dropout and LayerNorm that stand before it in a Particle Transformer."""

from typing import Any

from .. import _dispatch

ACTIVATIONS = ("none", "gelu")


def linear(
    x: Any,
    weight: Any,
    bias: Any,
    *,
    norm: Any = None,
    activation: str = "none",
    eps: float = 1e-5,
    dropout: float = 0.0,
    seed: int = 0,
    layer: int = 0,
    threads: int | None = None,
) -> Any:
    """Linear layer of rows, normalised and activated on the way into the product and never written down.

    out_i = W u_i + b with, for each row i,

        z_ic = Z_ic GELU(x_ic), GELU(x) = x (1 + erf(x / sqrt 2)) / 2 (arXiv:1606.08415, section 2, exact), or z = x
        u_ic = gamma_c (z_ic - mean_i) / sqrt(var_i + eps) + beta_c (arXiv:1607.06450, eqs. 3 and 4), or u = z

    with mean_i and var_i of the K numbers z_ic, var_i with 1 / K, summed in float64. Z_ic is 1 without dropout, else 0
    with probability `dropout` and 1 / (1 - dropout) otherwise. A block of the Particle Transformer (arXiv:2202.03772,
    figure 3b) has LayerNorm before two of its products, GELU and LayerNorm before a third.

    Parameters
    ----------
    x : (N, K) float32 or float64, one row per constituent. Copied once if not contiguous.
    weight : (M, K), bias : (M,), in the dtype of `x`, as torch.nn.Linear has them.
    norm : gamma and beta of the LayerNorm, (K,) each; None for none.
    activation : "none" or "gelu".
    eps : above 0; added to the variance, so that a constant row gives W beta + b.
    dropout : probability to drop a number behind GELU, 0 <= dropout < 1, in steps of 2^-32; 0 without activation.
    seed, layer : Z_ic is word c % 4 of Philox4x32-10 (doi:10.1145/2063384.2063405) with the key `seed` and the counter
        (layer, i, 2^32 - 1, c // 4): dropped where that is below dropout 2^32. The same for any number of threads.
        `particle_attention` has the head in place of 2^32 - 1, so one `layer` will do for both; give every other
        dropout of a network its own. 0 <= seed < 2^63, 0 <= layer < 2^32.
    threads : CPU threads, default `set_threads`.

    Returns
    -------
    (N, M) in the dtype of `x`. A row does not depend on the others; a NaN or infinite number stays in its row, and
    makes all of it NaN where there is a LayerNorm.

    Raises
    ------
    TypeError: no arrays, mixed libraries, devices or dtypes; eps, dropout, seed or layer no number. ValueError: wrong
    shapes, unknown activation, eps, dropout, seed or layer out of range.

    Differentiable in `x`, `weight`, `bias` and `norm` (torch). What stands before the product is computed again for the
    gradient: x alone is kept.

    >>> import numpy as np
    >>> x, identity = np.array([[0.0, 9.0], [-9.0, 0.0]]), np.eye(2)
    >>> linear(x, identity, np.zeros(2), norm=(np.ones(2), np.zeros(2)), activation="gelu").round(3)
    array([[-1.,  1.],
           [-0.,  0.]])
    """
    op = "linear"
    gamma, beta = (None, None) if norm is None else norm
    arrays = {"x": x, "weight": weight, "bias": bias}
    if norm is not None:
        arrays |= {"gamma": gamma, "beta": beta}
    _dispatch.check_arrays(op, **arrays)
    _dispatch.check_floats(op, **arrays)
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(
            f"{op}: x must have shape (N, K) with K of 1 or more, got {tuple(x.shape)}; reshape it to rows"
        )
    if weight.ndim != 2 or weight.shape[1] != x.shape[1] or weight.shape[0] < 1:
        raise ValueError(
            f"{op}: weight must have shape (M, {x.shape[1]}) with M of 1 or more, got {tuple(weight.shape)}; transpose "
            "it if it is (K, M)"
        )
    for name, length in (("bias", weight.shape[0]), ("gamma", x.shape[1]), ("beta", x.shape[1])):
        if name in arrays and tuple(arrays[name].shape) != (length,):
            raise ValueError(
                f"{op}: {name} must have shape ({length},), got {tuple(arrays[name].shape)}; give one number per column"
            )
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}; choose one")
    _dispatch.check_eps(op, eps)
    numbers = _dispatch.check_dropout(op, dropout, seed, layer)
    if numbers[0] > 0 and activation == "none":
        raise ValueError(f"{op}: dropout must be 0 without activation, got {dropout}; it stands behind the activation")
    return _dispatch.call(op, x, weight, bias, gamma, beta, activation, float(eps), *numbers, threads=threads)


def check_values(*_: Any) -> None:
    """Any values will do."""


def outputs(x: Any, weight: Any, *_: Any) -> tuple:
    return (((x.shape[0], weight.shape[0]), _dispatch.dtype_of(x)),)
