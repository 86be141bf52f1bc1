"""What PFN and EFN share: two networks with a sum over constituents between them, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from ..features import Inputs, energy_flow
from ..ops import segment
from ._tagger import Tagger, blocks_of_jets, mlp

# Constituents per block in inference with one thread: 2048 x 256 floats are 2 MB, so that activations stay in the
# second-level cache and their memory is used again. Measured on an Intel Xeon (AVX-512, 2 cores), 512 jets of 46
# constituents, medians: PFN 40.8 us per jet in one piece, 33.3 in blocks (4096: 32.9, 8192: 32.6); EFN 71.9 and 37.4
# (38.9, 46.4). With more threads every block adds parallel regions that wait for the slowest core. 2 threads, EFN: on
# an idle machine 41.4 in one piece and 22.9 in blocks, beside one busy process 172 and 657 (4096: 453, 8192: 238); one
# piece there, since the loss is the larger.
BLOCK = 2048


class DeepSets(Tagger):
    """f(sum of latent(x) over the constituents of a jet), on `features.energy_flow`."""

    recipe = staticmethod(energy_flow)
    columns: ClassVar[int]  # of x that phi sees

    def __init__(
        self,
        phi: Sequence[int] = (100, 100, 256),
        f: Sequence[int] = (100, 100, 100),
        classes: Sequence[str] = ("QCD", "top"),
        signal: int = 1,
    ) -> None:
        super().__init__(classes, signal)
        self.phi = mlp(self.columns, *phi)
        self.f = mlp(phi[-1], *f, len(classes))

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """What is summed: (N, 3) -> (N, C)."""
        raise NotImplementedError

    def forward(self, inputs: Inputs) -> torch.Tensor:
        whole = torch.is_grad_enabled() or torch.compiler.is_compiling() or inputs.x.is_cuda
        if whole or torch.get_num_threads() > 1:
            return self.f(segment(self.latent(inputs.x), inputs.offsets, offsets_host=inputs.offsets_host))
        parts = [segment(self.latent(part.x), part.offsets) for part, _ in blocks_of_jets(inputs, BLOCK)]
        return self.f(torch.cat(parts))
