"""Terms that are added to a tagger's loss."""

from __future__ import annotations

import math
from typing import Any

from fasttag_kernels.distance_correlation import distance_correlation

from .interop import require

require("torch")  # an ImportError that names the extra

import torch  # noqa: E402


class DisCo(torch.nn.Module):
    """lambda dCorr^2(score, against)^power: keeps a score independent of the jet mass, say. arXiv:2001.05310.

    lambda_ : weight of the term, 0 or more.  power : 1 for the squared distance correlation, 2 for its square, as
    `power` of the authors' Disco.py; any number from 1 on.

    `DisCo(...)(score, against, mask=None, weights=None)` is a tensor of shape (), differentiable in score and against:

    score, against : (J,) float tensors of one dtype; the paper's score is the signal probability.
    mask : (J,) bool, the jets that count, None: all. To decorrelate the background only, pass `label == 0`.
    weights : (J,), not negative, taken in the mask and normalised there, None: all equal.

    dCorr^2 is the biased estimate in `distance_correlation`: of J independent jets it is about 3/J and not 0, so
    batches must be large (2,048 in the paper). Fewer than two jets, or a score or against that does not vary, give 0
    with gradient 0. Time O(J log J), memory O(J).

    Raises TypeError for a mask that is not bool, ValueError for one of another shape; the rest as
    `distance_correlation`.

    >>> score = torch.tensor([0.1, 0.4, 0.9, 0.5], requires_grad=True)
    >>> mass, label = torch.tensor([20.0, 50.0, 100.0, 60.0]), torch.tensor([0, 0, 0, 1])
    >>> loss = DisCo(10.0)(score, mass, label == 0)
    >>> round(loss.item(), 4)
    10.0
    """

    def __init__(self, lambda_: float, power: float = 1) -> None:
        super().__init__()
        if not 0 <= lambda_ < math.inf:
            raise ValueError(f"DisCo: lambda_ must be 0 or more, got {lambda_}; 1 to 1000 is usual")
        if not 1 <= power < math.inf:
            raise ValueError(f"DisCo: power must be 1 or more, got {power}; below, the gradient is infinite at 0")
        self.lambda_ = lambda_
        self.power = power

    def forward(self, score: Any, against: Any, mask: Any = None, weights: Any = None) -> Any:
        if mask is not None:
            if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
                got = getattr(mask, "dtype", "") if isinstance(mask, torch.Tensor) else type(mask).__name__
                raise TypeError(f"DisCo: mask must be a bool tensor, got {got}; pass label == 0")
            for name, value in (("score", score), ("against", against), ("weights", weights)):
                if value is not None and value.shape != mask.shape:
                    raise ValueError(
                        f"DisCo: {name} must have the shape of mask, {tuple(mask.shape)}, got {tuple(value.shape)}; "
                        "give one value per jet"
                    )
            if score.is_cuda:  # how many are chosen is not known to the host: weight 0 leaves a jet out as well
                weights = mask.to(score.dtype) if weights is None else torch.where(mask, weights, 0)
            else:
                score, against = score[mask], against[mask]
                weights = None if weights is None else weights[mask]
        return self.lambda_ * distance_correlation(score, against, weights=weights) ** self.power

    def extra_repr(self) -> str:
        return f"lambda_={self.lambda_}, power={self.power}"
