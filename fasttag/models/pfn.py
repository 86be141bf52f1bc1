"""Particle flow network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import relu_

from ..features import Inputs, energy_flow
from ._deep_sets import sum_latent
from ._tagger import Tagger, mlp


class PFN(Tagger):
    """Particle flow network, arXiv:1810.05165, eq. (1.2): F(sum_i Phi(z_i, y_i, phi_i)); 82,458 parameters.

    phi : widths of the per-constituent network, ReLU after each.  f : hidden widths of the per-jet network.
    Input: `features.energy_flow`, padding-free. Differentiable in the weights and in p4.
    """

    recipe = staticmethod(energy_flow)

    def __init__(
        self,
        phi: Sequence[int] = (100, 100, 256),
        f: Sequence[int] = (100, 100, 100),
        classes: Sequence[str] = ("QCD", "top"),
        signal: int = 1,
    ) -> None:
        super().__init__(classes, signal)
        self.phi = mlp(3, *phi)
        self.f = mlp(phi[-1], *f, len(classes))

    def forward(self, inputs: Inputs) -> torch.Tensor:
        return self.f(sum_latent(inputs, lambda x: relu_(self.phi(x))))
