"""weaver-core's Particle Transformer on fasttag's kernels: `weaver --network-config .../fasttag/compat/weaver_part.py`.

Inputs of the data configuration, in this order: points (not used), features, four-vectors (px, py, pz, E) and mask. A
weaver network file of one's own needs one line changed, the import of ParticleTransformer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fasttag
from fasttag.compat._weaver_networks import get_loss, model_info
from fasttag.compat.weaver import ParticleTransformer

__all__ = ["get_loss", "get_model"]  # what weaver looks for


class Network(nn.Module):
    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.mod = ParticleTransformer(**config)  # "mod." begins the keys of weaver's checkpoints

    def no_weight_decay(self) -> set[str]:
        return {"mod.cls_token"}

    def forward(
        self, points: torch.Tensor, features: torch.Tensor, lorentz_vectors: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        return self.mod(features, v=lorentz_vectors, mask=mask)


def get_model(data_config: Any, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """What weaver builds; `options` are those of `--network-option`. The kernels get torch's number of threads."""
    fasttag.set_threads(torch.get_num_threads())
    config = {
        "input_dim": len(data_config.input_dicts["pf_features"]),
        "num_classes": len(data_config.label_value),
        "use_pre_activation_pair": False,
    }
    return Network(**{**config, **options}), model_info(data_config)
