"""DisCo: change `from Disco import distance_corr` into `from fasttag.compat.disco import distance_corr`."""

from __future__ import annotations

from typing import Any

from ..interop import require

require("torch")  # an ImportError that names the extra

import torch  # noqa: E402

from fasttag_kernels.distance_correlation import distance_correlation, distance_covariance  # noqa: E402

MEAN = 1e-4  # how far the mean weight may be from 1: what a float32 sum of a million weights can be off, and more


def distance_corr(var_1: Any, var_2: Any, normedweight: Any, power: float = 1) -> Any:
    """The distance correlation of gkasieczka/DisCo's `Disco.py`, to 1e-12 in float64: a 0-dimensional torch tensor.

    var_1, var_2 : tensors of n elements, float32 or float64. normedweight : (n,), >= 0, of mean 1, not of sum 1 as the
    original's docstring has it. power : 1 gives dCorr^2, 2 its square, anything else V_xy / (V_xx V_yy)^(power/2).

    O(n log n) and O(n) memory in place of O(n^2); sums in float64. As there a constant variable, fewer than two
    elements, and NaN or inf anywhere give NaN, and dtypes are promoted. Differentiable in var_1 and var_2.

    Raises ValueError for negative weights, which there can give any number, and for weights whose mean is not 1 to
    1e-4: the original then neither centres its matrices nor normalises its sums. RuntimeError where a weight requires
    grad: detach it (the original differentiates with respect to weights that it never normalises).
    """
    dtype = torch.promote_types(torch.promote_types(var_1.dtype, var_2.dtype), normedweight.dtype)
    x, y, w = (v.reshape(-1).to(dtype) for v in (var_1, var_2, normedweight))
    mean = w.detach().mean().item() if len(w) else 1.0
    if abs(mean - 1) > MEAN:
        raise ValueError(f"distance_corr: normedweight must have mean 1, got {mean:g}; divide it by its mean")
    finite = torch.isfinite(x.detach() + y.detach()).all()
    if power not in (1, 2):
        v_xx, v_yy = distance_covariance(x, x, weights=w), distance_covariance(y, y, weights=w)
        value = distance_covariance(x, y, weights=w) / torch.sqrt(v_xx * v_yy) ** power
    else:
        value = distance_correlation(x, y, weights=w) ** power
        if value == 0 and (_constant(x, w) or _constant(y, w)):
            return value * torch.nan
    return value if finite else value * torch.nan


def _constant(v: Any, w: Any) -> bool:
    used = v[w != 0]
    return bool((used == used[:1]).all())
