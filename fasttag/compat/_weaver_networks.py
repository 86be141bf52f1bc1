"""weaver-core's networks: padded tensors in, packed constituents inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..features import Inputs
from ..models import particle_transformer, particlenet

DROPOUTS = ("dropout", "attn_dropout", "activation_dropout")
# what there is one value of here: weaver's default, and others that come to the same
PARTICLE_TRANSFORMER: dict[str, tuple[Any, ...]] = {
    "pair_input_type": ("pp",),
    "pair_input_dim": (None, 4),
    "use_conv_embed": (False,),
    "pair_embed_sparse_eval": (None,),
    "block_ids_with_attn_mask": (None,),
    "include_global_token": (False,),
    "activation": ("gelu",),
    "version": (1,),
    "weight_init": ("moco",),
    "fix_init": (True,),
    "for_segmentation": (False,),
    "use_amp": (False,),
    "compile_model": (False,),
}
PARTICLE_NET: dict[str, tuple[Any, ...]] = {
    "for_segmentation": (False,),
    "use_amp": (False,),
    "compile_model": (False,),
}
BLOCK: dict[str, tuple[Any, ...]] = {
    "ffn_ratio": (4,),
    "activation": ("gelu",),
    "use_rmsnorm": (False,),
    "use_bias": (True,),
    "use_qk_norm": (False,),
    "headwise_attn_output_gate": (False,),
    "elementwise_attn_output_gate": (False,),
    "layer_scale_init_values": (None,),
    "drop_path_rate": (0.0,),
    "scale_attn_mask": (False,),
    "scale_attn": (True,),
    "scale_fc": (True,),
    "scale_heads": (True,),
    "scale_resids": (True,),
}


class ParticleTransformer(particle_transformer.ParticleTransformer):
    """weaver-core's `weaver.nn.model.ParticleTransformer.ParticleTransformer`, version 1, without padding inside.

    Takes weaver's arguments, in weaver's order; state dicts load strictly in both directions, and those of weaver 0.4
    as well. Logits in
    evaluation are weaver's (float64: 1e-9). `fc_params=None` leaves out the head, as for fine-tuning; `for_inference`
    adds the softmax. Not supported, with NotImplementedError: pair features other than the four of "pp", versions above
    1, segmentation, `use_amp`, `compile_model`, and whatever else `PARTICLE_TRANSFORMER` and `BLOCK` have one value of.

    Training is weaver's too, statistics of the features over all slots of padded jets included, but for `trim`: from
    the sixth batch on weaver takes particles in random order and drops some of the longest jets. Nothing is dropped
    here; slots behind the last particle of the longest jet are left out of the statistics. Which slots are real is read
    off the mask, and they need not come first. Four-vectors are required.
    """

    __call__ = nn.Module.__call__
    least_classes = 1

    def __init__(
        self,
        input_dim: int,
        num_classes: int | None = None,
        pair_input_type: str = "pp",
        pair_input_dim: int | None = None,
        pair_extra_dim: int = 0,
        remove_self_pair: bool = False,
        use_pre_activation_pair: bool = True,
        use_conv_embed: bool = False,
        embed_dims: Sequence[int] = (128, 512, 128),
        pair_embed_dims: Sequence[int] = (64, 64, 64),
        pair_embed_sparse_eval: Any = None,
        num_heads: int = 8,
        num_layers: int = 8,
        block_params: Mapping[str, Any] | None = None,
        block_ids_with_attn_mask: Any = None,
        include_global_token: bool = False,
        num_cls_layers: int = 2,
        cls_block_params: Mapping[str, Any] | None = None,
        fc_params: Sequence[Sequence[Any]] | None = (),
        activation: str = "gelu",
        version: float = 1,
        weight_init: str = "moco",
        fix_init: bool = True,
        trim: bool = True,
        for_inference: bool = False,
        for_segmentation: bool = False,
        use_amp: bool = False,
        compile_model: bool = False,
        **others: Any,
    ) -> None:
        name = "ParticleTransformer"
        given = locals()
        only(name, PARTICLE_TRANSFORMER, {**{key: given[key] for key in PARTICLE_TRANSFORMER}, **others})
        unsupported = {
            "embed_dims": len(embed_dims) == 0,
            "pair_embed_dims": pair_embed_dims is None,
            "num_cls_layers": num_cls_layers == 0,
            # weaver ignores it there in training, not in export
            "remove_self_pair": remove_self_pair and pair_extra_dim > 0,
        }
        for argument, wanted in unsupported.items():
            if wanted:
                raise NotImplementedError(f"{name}: {argument} of this kind is not supported; take weaver's own class")
        if num_classes is None and fc_params is not None:
            raise ValueError(f"{name}: num_classes must be a number, got None; only fc_params=None goes without")
        rates, cls_rates = (
            dropouts(name, argument, params, default)
            for argument, params, default in (
                ("block_params", block_params, 0.1),
                ("cls_block_params", cls_block_params, 0.0),
            )
        )
        super().__init__(
            input_dim,
            [str(i) for i in range(num_classes or 1)],
            signal=0,
            embed_dims=embed_dims,
            pair_embed_dims=pair_embed_dims,
            num_heads=num_heads,
            num_layers=num_layers,
            num_cls_layers=num_cls_layers,
            fc_params=hidden(name, fc_params or ()),
            pair_extra_dim=pair_extra_dim,
            remove_self_pair=remove_self_pair,
            use_pre_activation_pair=use_pre_activation_pair,
            **rates,
        )
        for block in self.cls_blocks:
            for rate, value in cls_rates.items():
                setattr(block, rate, value)
        if fc_params is None:
            self.fc = nn.Sequential()
        self.trim = trim and not for_inference
        self.softmax = for_inference and fc_params is not None
        self.register_load_state_dict_pre_hook(rename_projections)

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        v: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        uu: torch.Tensor | None = None,
        uu_idx: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (B, classes) from features x (B, C, P), four-vectors v (B, 4, P) px, py, pz, E and mask (B, 1, P).

        uu : extra inputs of pairs, (B, C', P, P); or of some pairs, (B, C', pairs) with their places uu_idx
        (B, 2, pairs), the others being 0; places from P on are padding, values of the same pair add up.
        """
        no_export("ParticleTransformer")
        if v is None:
            raise ValueError("ParticleTransformer: v must be four-vectors (B, 4, P), got None; pass px, py, pz, E")
        real = slots(x, mask, self.trim)
        length = real.shape[1]
        features = self.embed.input_bn(x[:, :, :length]).mT[real]
        inputs = packed(features, features, v[:, :, :length].mT[real].T.contiguous(), real)
        output = super().forward(inputs, None if uu is None else pairs_of(uu, uu_idx, real))
        return output.softmax(1) if self.softmax else output

    def _normalised(self, inputs: Inputs, frozen: bool) -> torch.Tensor:
        return inputs.x


class ParticleNet(particlenet.ParticleNet):
    """weaver-core's `weaver.nn.model.ParticleNet.ParticleNet`, without padding inside.

    Takes weaver's arguments, in weaver's order; state dicts load strictly in both directions. Logits in evaluation are
    weaver's (float64:
    1e-9) where no two neighbours are equally far, see `knn` for those. Not supported, with NotImplementedError:
    segmentation, `use_amp`, `compile_model`.

    In training, statistics count all slots of padded jets, as in weaver, with `trim` up to the last particle of the
    longest jet; weaver drops some of its particles, see `ParticleTransformer`. Edges of padded slots are zero here;
    weaver joins them to particles in jets with no more padding than neighbours. Batches of short jets are no error, and
    what is in padded slots is never looked at, as it is in weaver without `use_fts_bn`.
    """

    __call__ = nn.Module.__call__
    least_classes = 1

    def __init__(
        self,
        input_dims: int,
        num_classes: int,
        conv_params: Sequence[tuple[int, Sequence[int]]] = ((7, (32, 32, 32)), (7, (64, 64, 64))),
        fc_params: Sequence[tuple[int, float]] = ((128, 0.1),),
        use_fusion: bool = True,
        use_fts_bn: bool = True,
        use_counts: bool = True,
        trim: bool = True,
        for_inference: bool = False,
        for_segmentation: bool = False,
        use_amp: bool = False,
        compile_model: bool = False,
        **others: Any,
    ) -> None:
        given = locals()
        only("ParticleNet", PARTICLE_NET, {**{key: given[key] for key in PARTICLE_NET}, **others})
        super().__init__(
            input_dims,
            [str(i) for i in range(num_classes)],
            signal=0,
            conv_params=conv_params,
            fc_params=fc_params,
            use_fusion=use_fusion,
            use_fts_bn=use_fts_bn,
            use_counts=use_counts,
            missing="ghost",
        )
        self.trim = trim and not for_inference
        self.softmax = for_inference

    def forward(  # type: ignore[override]
        self, points: torch.Tensor, features: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, classes) from points (B, 2, P), features (B, C, P) and mask (B, 1, P)."""
        no_export("ParticleNet")
        real = slots(features, mask, self.trim)
        length = real.shape[1]
        self.bn_stats = ("padded", length)
        x = features[:, :, :length]
        x = (self.bn_fts(x) if hasattr(self, "bn_fts") else x).mT[real]
        output = super().forward(packed(x, points[:, :, :length].mT[real], x.T, real))
        return output.softmax(1) if self.softmax else output

    @property
    def _norm(self) -> None:
        """`forward` has normalised."""


def only(network: str, values: Mapping[str, tuple[Any, ...]], given: Mapping[str, Any]) -> None:
    """Raises for arguments that weaver does not have, and for values that are not supported."""
    for name, value in given.items():
        if name not in values:
            raise TypeError(f"{network}: {name} must be an argument of weaver-core 0.5, got {value!r}; leave it out")
        if value not in values[name]:
            raise NotImplementedError(
                f"{network}: {name} must be {values[name][0]!r}, got {value!r}; take weaver's own class for others"
            )


def no_export(network: str) -> None:
    """Raises where torch is about to trace the network, whose kernels it cannot see, into an ONNX graph."""
    if torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting():
        raise NotImplementedError(
            f"{network}: forward must be run, got traced by torch.onnx.export; load the checkpoint by "
            "fasttag.models.load and write the graph by fasttag.models.export"
        )


def dropouts(network: str, argument: str, params: Mapping[str, Any] | None, default: float) -> dict[str, Any]:
    """The dropout rates in weaver's dictionary of the parameters of a block."""
    params = params or {}
    only(network, BLOCK, {name: value for name, value in params.items() if name not in DROPOUTS})
    return {name: params.get(name, default) for name in DROPOUTS}


def hidden(network: str, fc_params: Sequence[Sequence[Any]]) -> list[tuple[int, float]]:
    """(width, dropout) of hidden layers; weaver has the activation as a third entry, ReLU where it is left out."""
    name = "activation in fc_params"
    for _, _, *activation in fc_params:
        only(network, {name: ("relu",)}, dict(zip([name], activation)))
    return [(width, rate) for width, rate, *_ in fc_params]


def rename_projections(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Keys of weaver 0.4, whose attention was torch's, to those of 0.5."""
    for key in [key for key in state if key.startswith(prefix) and ".in_proj_" in key]:
        state[key.replace(".in_proj_", ".in_proj.")] = state.pop(key)


def slots(x: torch.Tensor, mask: torch.Tensor | None, trim: bool) -> torch.Tensor:
    """(B, L) bool of weaver's mask (B, 1, P), True without. L is P; with `trim`, where the last real slot ends."""
    real = torch.ones_like(x[:, 0], dtype=torch.bool) if mask is None else mask[:, 0].bool()
    used = real.any(0).nonzero() if trim else None
    return real if used is None else real[:, : int(used.max()) + 1 if len(used) else 1]


def packed(x: torch.Tensor, points: torch.Tensor, p4: torch.Tensor, real: torch.Tensor) -> Inputs:
    """Inputs of packed rows, jets being the rows of `real`."""
    host = np.concatenate([[0], np.cumsum(real.sum(1).cpu().numpy())])
    longest = int(np.diff(host).max(initial=0))
    return Inputs(x, points, p4, torch.from_numpy(host).to(x.device), host, longest)


def pairs_of(uu: torch.Tensor, places: torch.Tensor | None, real: torch.Tensor) -> torch.Tensor:
    """(M, C) of all ordered pairs of each jet from (B, C, P, P), or from (B, C, pairs) at `places` (B, 2, pairs)."""
    jets, length = real.shape
    if places is None:
        return uu[:, :, :length, :length].permute(0, 2, 3, 1)[real[:, :, None] & real[:, None]]
    if places.numel() and int(places.min()) < 0:
        raise ValueError(f"ParticleTransformer: uu_idx must be 0 or more, got {int(places.min())}; padding is at P")
    real = nn.functional.pad(real, (0, 1))  # a place behind all for those that are padding
    counts = real.sum(1)
    starts = (counts**2).cumsum(0) - counts**2
    i, j = places.clamp(max=length).unbind(1)
    jet = torch.arange(jets, device=real.device)[:, None].expand_as(i)
    rank = real.cumsum(1) - 1
    rows = starts[jet] + rank[jet, i] * counts[jet] + rank[jet, j]
    there = real[jet, i] & real[jet, j]
    return uu.new_zeros(int((counts**2).sum()), uu.shape[1]).index_add_(0, rows[there], uu.mT[there])


def model_info(data_config: Any) -> dict[str, Any]:
    """What weaver wants to know besides a network to count its operations."""
    shapes = {name: (1, *shape[1:]) for name, shape in data_config.input_shapes.items()}
    return {"input_names": list(data_config.input_names), "input_shapes": shapes}


def get_loss(data_config: Any, **options: Any) -> nn.Module:
    return nn.CrossEntropyLoss()
