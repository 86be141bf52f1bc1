"""weaver-core's ParticleNet on fasttag's kernels: `weaver --network-config .../fasttag/compat/weaver_particlenet.py`.

Inputs of the data configuration, in this order: points, features, four-vectors (not used) and mask. A weaver network
file of one's own needs one line changed, the import of ParticleNet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fasttag
from fasttag.compat._weaver_networks import get_loss, model_info
from fasttag.compat.weaver import ParticleNet

__all__ = ["get_loss", "get_model"]  # what weaver looks for


class Network(nn.Module):
    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.mod = ParticleNet(**config)  # "mod." begins the keys of weaver's checkpoints

    def forward(
        self, points: torch.Tensor, features: torch.Tensor, lorentz_vectors: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        return self.mod(points, features, mask)


def get_model(data_config: Any, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """What weaver builds; `options` are those of `--network-option`. The kernels get torch's number of threads."""
    fasttag.set_threads(torch.get_num_threads())
    config = {
        "input_dims": len(data_config.input_dicts["pf_features"]),
        "num_classes": len(data_config.label_value),
        "conv_params": [(16, (64, 64, 64)), (16, (128, 128, 128)), (16, (256, 256, 256))],
        "fc_params": [(256, 0.1)],
        "use_fusion": False,
    }
    return Network(**{**config, **options}), model_info(data_config)
