"""Particle flow network."""

from __future__ import annotations

import torch
from torch.nn.functional import relu_

from ._deep_sets import DeepSets


class PFN(DeepSets):
    """Particle flow network, arXiv:1810.05165, eq. (1.2): F(sum_i Phi(z_i, y_i, phi_i)); 82,458 parameters.

    phi : widths of the per-constituent network, ReLU after each.  f : hidden widths of the per-jet network.
    Input: `features.energy_flow`, padding-free. Differentiable in the weights and in p4.
    """

    columns = 3

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        return relu_(self.phi(x))
