"""Energy flow network."""

from __future__ import annotations

import torch
from torch.nn.functional import relu_

from ._deep_sets import DeepSets


class EFN(DeepSets):
    """Energy flow network, arXiv:1810.05165, eq. (1.1): F(sum_i z_i Phi(y_i, phi_i)); 82,358 parameters.

    Safe against infrared and collinear emission: splitting a constituent into collinear parts changes nothing.

    phi : widths of the per-constituent network, ReLU after each.  f : hidden widths of the per-jet network.
    Input: `features.energy_flow`, padding-free. Differentiable in the weights and in p4.
    """

    columns = 2

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] * relu_(self.phi(x[:, 1:]))
