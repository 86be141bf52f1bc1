"""Particle Transformer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fasttag_kernels.particle_encoder import MOST_HEADS, MULTIPLE

from ..features import Inputs
from ..ops import (
    count_pairs,
    linear,
    pair_bias,
    particle_attention,
    particle_encoder,
    residual,
    segment,
    segment_softmax,
)
from ._tagger import (
    COLUMNS,
    BatchStatistics,
    Tagger,
    batch_norm,
    blocks_of_jets,
    check_bn_stats,
    check_option,
    head,
    recipe_named,
    update_running,
)

# Constituents per block in inference: of jets of 50 the bias, 3 MB in float32, stays in a third-level cache
BLOCK = 2048


class PairEmbed(nn.Module):
    """Attention bias (H, M) from four-vectors and, summed with it, from extra inputs of pairs."""

    def __init__(
        self, widths: Sequence[int], extra: int, last_activation: bool, remove_self_pair: bool, m2: str
    ) -> None:
        super().__init__()
        self.embed = pair_stack([4, *widths], last_activation)
        if extra:
            self.fts_embed = pair_stack([extra, *widths], last_activation)
        self.ordered = extra > 0
        self.options = {"last_activation": last_activation, "remove_self_pair": remove_self_pair, "m2": m2}

    def forward(self, inputs: Inputs, extra: torch.Tensor | None, frozen: bool) -> torch.Tensor:
        norms: list[Any] = [layer for layer in self.embed if isinstance(layer, nn.BatchNorm1d)]
        running = frozen or not any(norm.training for norm in norms)
        weights, buffers = self.arrays()
        found = pair_bias(
            inputs.p4,
            inputs.offsets,
            weights,
            # copies in training: what autograd keeps must not change, and these do
            buffers if running else [buffer.clone() for buffer in buffers],
            statistics="running" if running else "batch",
            ordered=self.ordered,
            pairs=count_pairs(inputs.offsets_host, "full"),
            offsets_host=inputs.offsets_host,
            **self.options,
        )
        if not running:
            found, moments = found
            update_running(norms, moments, self._counted(inputs))
        if extra is not None:
            found = found + self.embedded(extra, frozen).T
        return found

    def arrays(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Weights and running statistics as `pair_bias` takes them."""
        weights = [
            parameter.flatten(1) if parameter.ndim == 3 else parameter
            for layer in self.embed
            for parameter in layer.parameters()
        ]
        norms: list[Any] = [layer for layer in self.embed if isinstance(layer, nn.BatchNorm1d)]
        return weights, [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]

    def embedded(self, x: torch.Tensor, frozen: bool) -> torch.Tensor:
        """Extra inputs (M, pair_extra_dim) through their stack, (M, H); torch's BatchNorm1d does not train on none."""
        for layer in self.fts_embed:
            if isinstance(layer, nn.BatchNorm1d):
                x = batch_norm(layer, x, 0, "real", frozen)
            elif isinstance(layer, nn.Conv1d):
                x = functional.linear(x, layer.weight[:, :, 0], layer.bias)
            else:
                x = functional.gelu(x)
        return x

    def _counted(self, inputs: Inputs) -> int:
        """How many pairs the statistics are over."""
        pairs = count_pairs(inputs.offsets_host, "full" if self.ordered else "lower")
        return pairs - inputs.p4.shape[1] if self.options["remove_self_pair"] else pairs


def pair_stack(widths: Sequence[int], last_activation: bool) -> nn.Sequential:
    """Holder of the weights: batch normalisation, then 1x1 convolution, batch normalisation and GELU per width."""
    layers: list[nn.Module] = [nn.BatchNorm1d(widths[0])]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.GELU()]
    return nn.Sequential(*(layers if last_activation else layers[:-1]))


class Attention(nn.Module):
    """Holder of the projections of an attention layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)


def dense(x: torch.Tensor, module: nn.Linear, norm: nn.LayerNorm, **options: Any) -> torch.Tensor:
    """module(norm(x)), with what `fasttag.linear` has before it. A block keeps 1,536 numbers per token this way."""
    return linear(x, module.weight, module.bias, norm=(norm.weight, norm.bias), **options)


class Block(nn.Module):
    """What follows attention, in both kinds of blocks, and the weights of both (arXiv:2202.03772, figure 3)."""

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, attn_dropout: float = 0.0, activation_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dropout, self.attn_dropout, self.activation_dropout = dropout, attn_dropout, activation_dropout
        self.c_attn = nn.Parameter(torch.ones(heads))
        self.w_resid = nn.Parameter(torch.ones(width))
        self.pre_attn_norm = nn.LayerNorm(width)
        self.attn = Attention(width)
        self.post_attn_norm = nn.LayerNorm(width)
        self.pre_fc_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.post_fc_norm = nn.LayerNorm(4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def particles(self, x: torch.Tensor, inputs: Inputs, bias: torch.Tensor, seed: int, layer: int) -> torch.Tensor:
        """Constituents (N, width) attend to those of their jet."""
        qkv = dense(x, self.attn.in_proj, self.pre_attn_norm)
        attended = particle_attention(
            qkv.unflatten(1, (3, self.heads, x.shape[1] // self.heads)),
            inputs.offsets,
            bias=bias,
            dropout=self.attn_dropout if self.training else 0.0,
            seed=seed,
            layer=layer,
            offsets_host=inputs.offsets_host,
        )
        return self._after(x, attended.flatten(1), seed, layer)

    def classes(self, cls: torch.Tensor, x: torch.Tensor, tokens: Tokens, seed: int, layer: int) -> torch.Tensor:
        """Class tokens (J, width) attend to themselves and to the constituents; queries are not normalised."""
        width = cls.shape[1]
        weight, bias = self.attn.in_proj.weight, self.attn.in_proj.bias
        q = linear(cls, weight[:width], bias[:width]).unflatten(1, (self.heads, width // self.heads))
        norm = self.pre_attn_norm.weight, self.pre_attn_norm.bias
        keys_and_values = linear(tokens.join(cls, x), weight[width:], bias[width:], norm=norm)
        k, v = keys_and_values.view(-1, 2, self.heads, q.shape[2]).unbind(1)
        scores = (k * q[tokens.jet]).sum(2) / math.sqrt(q.shape[2])
        share = segment_softmax(scores, tokens.offsets, offsets_host=tokens.offsets_host)
        attended = segment((share[:, :, None] * v).flatten(1), tokens.offsets, offsets_host=tokens.offsets_host)
        return self._after(cls, attended, seed, layer)

    def _after(self, x: torch.Tensor, attended: torch.Tensor, seed: int, layer: int) -> torch.Tensor:
        """c_attn scales what out_proj gives, D columns each; w_resid scales the second residual only."""
        rate = self.dropout if self.training else 0.0
        o = linear(attended, *self._out_proj())
        norm = self.post_attn_norm.weight, self.post_attn_norm.bias
        x = residual(x, o, norm=norm, dropout=rate, seed=seed, layer=2 * layer)
        hidden = dense(x, self.fc1, self.pre_fc_norm)
        options = {"dropout": self.activation_dropout if self.training else 0.0, "seed": seed, "layer": layer}
        t = dense(hidden, self.fc2, self.post_fc_norm, activation="gelu", **options)
        return residual(x, t, scale=self.w_resid, dropout=rate, seed=seed, layer=2 * layer + 1)

    def _out_proj(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias with the scales of the heads in their rows."""
        c_attn = self.c_attn.repeat_interleave(len(self.w_resid) // self.heads)
        return self.attn.out_proj.weight * c_attn[:, None], self.attn.out_proj.bias * c_attn

    def flat(self) -> list[torch.Tensor]:
        """The weights in the order of `particle_encoder`; c_attn is in the rows of out_proj."""
        attn = self.attn.in_proj, self.attn.out_proj
        layers = self.pre_attn_norm, *attn, self.post_attn_norm, self.pre_fc_norm, self.fc1, self.post_fc_norm, self.fc2
        arrays = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
        arrays[4:6] = self._out_proj()
        return [*arrays, self.w_resid]


class Tokens:
    """Packed rows with the class token of each jet before its constituents."""

    def __init__(self, inputs: Inputs) -> None:
        host = inputs.offsets_host
        jets, rows = len(host) - 1, int(host[-1])
        device = inputs.x.device
        self.offsets_host = host + np.arange(jets + 1)
        self.offsets = torch.from_numpy(self.offsets_host).to(device)
        self.jet = torch.from_numpy(np.repeat(np.arange(jets), np.diff(self.offsets_host))).to(device)
        self.order = torch.from_numpy(np.insert(np.arange(rows) + jets, host[:-1], np.arange(jets))).to(device)

    def join(self, cls: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """(J, C) and (N, C) -> (J + N, C)."""
        return torch.cat([cls, x]).index_select(0, self.order)


class Embed(nn.Module):
    """Normalised features of constituents -> tokens."""

    def __init__(self, columns: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.input_bn = nn.BatchNorm1d(columns)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise((columns, *widths)):
            layers += [nn.LayerNorm(a), nn.Linear(a, b), nn.GELU()]
        self.embed = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers: list[Any] = list(self.embed)
        norm, first, *rest = layers
        x = dense(x, first, norm)
        for norm, layer in zip(rest[1::3], rest[2::3]):
            x = dense(x, layer, norm, activation="gelu")
        return functional.gelu(x)


class Packed:
    """The weights of a model as the kernels of inference take them, made again when one has changed.

    Seen are new tensors, new memory and what raises the version counter of a tensor: all but writing by `.data` or
    NumPy, after which `model.eval()` makes them anew.
    """

    def __init__(self) -> None:
        self.key: list[tuple[int, int]] = []
        self.places: list[tuple[dict[str, Any], str]] = []

    def __reduce__(self) -> tuple:  # a copy of the model packs its own
        return Packed, ()

    def __call__(self, model: ParticleTransformer) -> tuple:
        """Weights and running statistics for `pair_bias`, weights for `particle_encoder`."""
        tensors = [group[name] for group, name in self.places]
        if not tensors:
            self.places = [
                (group, name)
                for module in model.modules()
                for group in (module._parameters, module._buffers)
                for name in group
            ]
            tensors = [group[name] for group, name in self.places]
        try:
            key = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        except RuntimeError:  # tensors made in inference mode count no versions
            key = []
        if not key or key != self.key:
            lists = [[tensor.detach().numpy() for tensor in group] for group in model.pair_embed.arrays()]
            parts = list(model.embed.embed.parameters())
            for block in model.blocks:
                parts += block.flat()
            parts.append(model.cls_token)
            for block in model.cls_blocks:
                parts += block.flat()
            parts += model.norm.parameters()
            self.arrays = *lists, np.concatenate([part.detach().numpy().ravel() for part in parts])
            self.key = key
        return self.arrays


class ParticleTransformer(Tagger):
    """Particle Transformer, arXiv:2202.03772, on packed constituents; 2,141,134 parameters (kin, two classes).

    Attention between the constituents of a jet with a learned bias from their pairs (eq. 5), then a class token that
    attends to them. Version 1 of weaver-core: same weights, same numbers, without padding.

    inputs : recipe of the constituents' features, "kin", "kinpid" or "full" (see fasttag.features); or a number of
        columns of `Inputs` of your own.
    embed_dims, pair_embed_dims, num_heads, num_layers, num_cls_layers : sizes.
    fc_params : hidden layers of the head, each (width, dropout) with ReLU.
    dropout, attn_dropout, activation_dropout : in the particle blocks; there is none in the class blocks.
    pair_extra_dim : columns of `extra` inputs of pairs (weaver's uu), embedded by a stack of their own and added.
    remove_self_pair : no bias of a constituent with itself; not together with pair_extra_dim, where weaver ignores it.
    use_pre_activation_pair : leave out the last GELU of the pair embedding (weaver's default; its networks have it).
    m2 : "reference" or "stable", see `fasttag.pairwise_features`.
    bn : "batch" or "frozen": statistics of batch normalisation in training. Those of layers put into evaluation mode
        are frozen as well; of the pair embedding, if all of its layers are.
    bn_stats : "real", or ("padded", P) to count each jet as P rows in the statistics of the features.

    Input: `features.<inputs>`. Differentiable in the weights and, through the pair features, in p4.
    `model(jets, extra=...)` takes extra inputs (M, pair_extra_dim) of all ordered pairs, in the layout of
    `fasttag.pairwise_features`; `return_features=True` gives (logits, features (J, width)).
    """

    def __init__(
        self,
        inputs: str | int = "kin",
        classes: Sequence[str] = ("QCD", "top"),
        signal: int = 1,
        *,
        embed_dims: Sequence[int] = (128, 512, 128),
        pair_embed_dims: Sequence[int] = (64, 64, 64),
        num_heads: int = 8,
        num_layers: int = 8,
        num_cls_layers: int = 2,
        fc_params: Sequence[tuple[int, float]] = (),
        dropout: float = 0.1,
        attn_dropout: float = 0.1,
        activation_dropout: float = 0.1,
        pair_extra_dim: int = 0,
        remove_self_pair: bool = False,
        use_pre_activation_pair: bool = False,
        m2: str = "reference",
        bn: str = "batch",
        bn_stats: BatchStatistics = "real",
    ) -> None:
        super().__init__(classes, signal)
        width = embed_dims[-1]
        if width % num_heads:
            raise ValueError(
                f"ParticleTransformer: num_heads must divide the width {width}, got {num_heads}; change embed_dims[-1]"
            )
        for layers, number in (("num_layers", num_layers), ("num_cls_layers", num_cls_layers)):
            if number < 1:
                raise ValueError(f"ParticleTransformer: {layers} must be 1 or more, got {number}; raise it")
        if remove_self_pair and pair_extra_dim:
            raise ValueError(
                f"ParticleTransformer: remove_self_pair must be False with extra inputs of pairs, got pair_extra_dim="
                f"{pair_extra_dim}; weaver-core ignores it there: leave it out"
            )
        check_option("ParticleTransformer", "bn", bn, ("batch", "frozen"))
        check_option("ParticleTransformer", "m2", m2, ("reference", "stable"))
        check_bn_stats("ParticleTransformer", bn_stats)
        self.recipe = recipe_named("ParticleTransformer", inputs)
        self.bn, self.bn_stats, self.pair_extra_dim = bn, bn_stats, pair_extra_dim
        self.embed = Embed(inputs if isinstance(inputs, int) else COLUMNS[inputs], embed_dims)
        self.pair_embed = PairEmbed(
            [*pair_embed_dims, num_heads], pair_extra_dim, not use_pre_activation_pair, remove_self_pair, m2
        )
        self.blocks: Any = nn.ModuleList(
            Block(width, num_heads, dropout, attn_dropout, activation_dropout) for _ in range(num_layers)
        )
        self.cls_blocks: Any = nn.ModuleList(Block(width, num_heads) for _ in range(num_cls_layers))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.norm = nn.LayerNorm(width)
        self.fc: Any = head(width, fc_params, len(classes))
        self.sizes: dict[str, Any] = {
            "embed_dims": tuple(embed_dims),
            "heads": num_heads,
            "layers": num_layers,
            "cls_layers": num_cls_layers,
        }
        self.fits = num_heads <= MOST_HEADS and not any(width % MULTIPLE for width in embed_dims)
        self.packed = Packed()
        self._initialise()

    def _initialise(self) -> None:
        """Xavier-uniform, also of queries, keys and values by themselves; deeper residual branches smaller (weaver)."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                fans = module.in_features + module.out_features // (3 if name.endswith("in_proj") else 1)
                nn.init.uniform_(module.weight, -math.sqrt(6 / fans), math.sqrt(6 / fans))
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for i, block in enumerate(self.blocks, 1):
                block.attn.out_proj.weight /= math.sqrt(2 * i)
                block.fc2.weight /= math.sqrt(2 * i)

    def replace_head(self, classes: Sequence[str], signal: int, fc_params: Sequence[tuple[int, float]] = ()) -> None:
        """A fresh head for other classes; all other weights stay, as for fine-tuning."""
        classes, signal = self._checked(classes, signal)
        weight = self.fc[-1].weight
        self.fc = head(self.norm.weight.numel(), fc_params, len(classes)).to(weight.device, weight.dtype)
        self.classes, self.signal = classes, signal
        self.config = {**self.config, "fc_params": fc_params}

    def forward(self, inputs: Inputs, extra: torch.Tensor | None = None, return_features: bool = False) -> Any:
        self._check_extra(inputs, extra)
        traced = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if self.training or traced or inputs.x.is_cuda or not self.fits:
            found = self._features(inputs, extra)
        else:
            parts = list(blocks_of_jets(inputs, BLOCK)) if len(inputs.x) > BLOCK else [(inputs, slice(None))]
            found = torch.cat([self._inference(part, extra if extra is None else extra[at]) for part, at in parts])
        logits = self.fc(found)
        return (logits, found) if return_features else logits

    def _inference(self, inputs: Inputs, extra: torch.Tensor | None) -> torch.Tensor:
        """What `_features` gives, without all that a gradient needs."""
        weights, running, flat = self.packed(self)
        offsets = inputs.offsets_host
        found = pair_bias(inputs.p4.detach().numpy(), offsets, weights, running, **self.pair_embed.options)
        if extra is not None:
            found = found + self.pair_embed.embedded(extra, True).T.numpy()
        x = self._normalised(inputs, True).detach().numpy()
        return torch.from_numpy(particle_encoder(x, offsets, found, flat, **self.sizes))

    def train(self, mode: bool = True) -> ParticleTransformer:
        """As of every module; the weights of inference are made anew."""
        self.packed = Packed()
        return super().train(mode)

    def _check_extra(self, inputs: Inputs, extra: torch.Tensor | None) -> None:
        if extra is not None and getattr(extra, "dtype", None) != inputs.x.dtype:
            raise TypeError(
                f"ParticleTransformer: extra must be a tensor of the features' {inputs.x.dtype}, got "
                f"{getattr(extra, 'dtype', type(extra).__name__)}; convert it"
            )
        pairs = count_pairs(inputs.offsets_host, "full")
        shape, wanted = None if extra is None else tuple(extra.shape), (pairs, self.pair_extra_dim)
        if shape != (wanted if self.pair_extra_dim else None):
            raise ValueError(
                f"ParticleTransformer: extra must have shape (pairs, pair_extra_dim) = {wanted}, got {shape}; give all "
                "ordered pairs of each jet, or None if pair_extra_dim is 0"
            )

    def _features(self, inputs: Inputs, extra: torch.Tensor | None) -> torch.Tensor:
        """What the class token of each jet ends as, (J, width)."""
        frozen = self.bn == "frozen" or not self.training
        jets = len(inputs.offsets_host) - 1
        x = self.embed(self._normalised(inputs, frozen))
        bias = self.pair_embed(inputs, extra, frozen)
        seed = int(torch.randint(2**62, ())) if self.training else 0
        for layer, block in enumerate(self.blocks):
            x = block.particles(x, inputs, bias, seed, layer)
        tokens = Tokens(inputs)
        cls = self.cls_token[0].expand(jets, -1)
        for layer, block in enumerate(self.cls_blocks, len(self.blocks)):
            cls = block.classes(cls, x, tokens, seed, layer)
        return self.norm(cls)

    def _normalised(self, inputs: Inputs, frozen: bool) -> torch.Tensor:
        """The features after batch normalisation."""
        return batch_norm(self.embed.input_bn, inputs.x, len(inputs.offsets_host) - 1, self.bn_stats, frozen)
