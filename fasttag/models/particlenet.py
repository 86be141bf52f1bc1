"""ParticleNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import relu

from fasttag_kernels.particlenet_encoder import pack

from ..features import Inputs
from ..ops import edge_conv, knn, particlenet_encoder, segment
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

# Constituents per block of inference step by step: the widest products per constituent, 1024 x 768 floats, are 3 MB
BLOCK = 1024


class EdgeConv(nn.Module):
    """Edge convolution with k neighbours: holder of its weights under weaver's names, each of which is a 1x1 conv."""

    def __init__(self, k: int, columns: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.k = k
        ins = [2 * columns, *widths[:-1]]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in zip(ins, widths))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        if columns != widths[-1]:
            self.sc = nn.Conv1d(columns, widths[-1], 1, bias=False)
            self.sc_bn = nn.BatchNorm1d(widths[-1])

    def forward(self, x: Any, neighbours: Any, padded: int, **options: Any) -> Any:
        """(N, columns) -> (N, widths[-1]) of tensors; in training, of any norm, running statistics move on."""
        weights, running = self.tensors()
        batch = self.training and any(norm.training for _, norm in self._layers)
        found = edge_conv(
            x,
            neighbours,
            weights=weights,
            running=[] if batch else running,
            statistics="batch" if batch else "running",
            padded=padded if batch else 0,
            **options,
        )
        if batch:
            found, moments = found
            norms = [norm for _, norm in self._layers]
            for norm, one in zip(norms, moments.split([norm.num_features for norm in norms], 1)):
                update_running([norm], one[:2], int(one[2, 0]))
        return found

    @property
    def _layers(self) -> list[Any]:
        """Product and normalisation of each layer, and of the shortcut; by attributes it would take 10 us."""
        parts: Any = self._modules.values()
        convs, bns, *shortcut = parts
        return [*zip(convs._modules.values(), bns._modules.values()), *([shortcut] if shortcut else [])]

    def tensors(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Weights and running statistics as `edge_conv` takes them."""
        weights, running = [], []
        for conv, norm in self._layers:
            weights += [conv.weight.flatten(1), norm.weight, norm.bias]
            running += [norm.running_mean, norm.running_var]
        return weights, running

    def groups(self) -> list[Any]:
        """Where the tensors are kept."""
        return [group for conv, norm in self._layers for group in (conv._parameters, norm._parameters, norm._buffers)]


class ParticleNet(Tagger):
    """ParticleNet, arXiv:1902.08570, on packed constituents; 366,160 parameters (kin, two classes).

    Edge convolutions, the first on the nearest neighbours in (eta, phi), the following on those in the space of the
    features of the one before; mean over the constituents; a dense head. Of weaver-core: same weights, same numbers,
    without padding.

    inputs : recipe of the constituents' features, "kin", "kinpid" or "full" (see fasttag.features); or a number of
        columns of `Inputs` of your own.
    conv_params : (neighbours, widths) of each edge convolution, of two layers or more.
    fc_params : hidden layers of the head, each (width, dropout) with ReLU.
    use_fusion : the outputs of all edge convolutions go through one more layer (weaver's default; its networks do not).
    use_fts_bn : batch normalisation of the features.
    use_counts : divide the sum over constituents by their number. Without it by the rows of a padded jet, the P of
        bn_stats, or the constituents of the longest jet of the batch: as in weaver, a jet's logits then depend on it.
    bn_stats : "real", or ("padded", P) to count each jet as P rows in batch statistics.
    missing : "real" or "ghost", see `fasttag.edge_conv`: jets with no more constituents than neighbours.

    Input: `features.<inputs>`. Differentiable in the weights and in the features; neighbours are taken as given.
    `model(jets, neighbours=[...])` takes (N, k) int32 per edge convolution, -1 for none, in place of looking for them.
    """

    def __init__(
        self,
        inputs: str | int = "kin",
        classes: Sequence[str] = ("QCD", "top"),
        signal: int = 1,
        *,
        conv_params: Sequence[tuple[int, Sequence[int]]] = ((16, (64,) * 3), (16, (128,) * 3), (16, (256,) * 3)),
        fc_params: Sequence[tuple[int, float]] = ((256, 0.1),),
        use_fusion: bool = False,
        use_fts_bn: bool = True,
        use_counts: bool = True,
        bn_stats: BatchStatistics = "real",
        missing: str = "real",
    ) -> None:
        super().__init__(classes, signal)
        name = type(self).__name__
        for k, widths in conv_params or [(0, ())]:
            if len(widths) < 2 or not 1 <= k <= 32:
                raise ValueError(
                    f"{name}: conv_params must be one or more (neighbours, widths) of 1 to 32 neighbours and two or "
                    f"more widths, got {conv_params}; (16, (64, 64, 64)) is usual"
                )
        check_option(name, "missing", missing, ("real", "ghost"))
        check_bn_stats(name, bn_stats)
        self.recipe = recipe_named(name, inputs)
        self.use_counts, self.bn_stats, self.missing = use_counts, bn_stats, missing
        columns = [inputs if isinstance(inputs, int) else COLUMNS[inputs], *(widths[-1] for _, widths in conv_params)]
        if use_fts_bn:
            self.bn_fts = nn.BatchNorm1d(columns[0])
        self.edge_convs = nn.ModuleList(
            EdgeConv(k, before, widths) for before, (k, widths) in zip(columns, conv_params)
        )
        width = columns[-1]
        if use_fusion:
            total = sum(columns[1:])
            width = min(max(total // 128 * 128, 128), 1024)
            self.fusion_block = nn.Sequential(nn.Conv1d(total, width, 1, bias=False), nn.BatchNorm1d(width), nn.ReLU())
        self.fc = head(width, fc_params, len(classes))
        self.convs = [(k, tuple(widths)) for k, widths in conv_params]
        self.fits = not use_fusion and 1 not in columns[1:-1]
        self._packed: Any = None

    def forward(self, inputs: Inputs, neighbours: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        traced = torch.is_grad_enabled() or torch.compiler.is_compiling()
        whole = self.training or traced or inputs.x.is_cuda or neighbours is not None
        if not whole and self.fits:
            return self.fc(self._inference(inputs))
        parts = [inputs] if whole else [part for part, _ in blocks_of_jets(inputs, BLOCK)]
        return self.fc(torch.cat([self._pooled(part, neighbours, inputs.max_n) for part in parts]))

    def _inference(self, inputs: Inputs) -> torch.Tensor:
        """What `_pooled` gives, without all that a gradient needs."""
        arrays = inputs.x.numpy(force=True), inputs.points.numpy(force=True), inputs.offsets_host, self._weights()
        reduce = "mean" if self.use_counts else "sum"
        found = particlenet_encoder(*arrays, convs=self.convs, missing=self.missing, reduce=reduce)
        return self._divided(torch.from_numpy(found), inputs.max_n)

    def _weights(self) -> np.ndarray:
        """As `particlenet_encoder` takes them, packed anew where a tensor is a new one or has changed.

        Seen are new memory and what raises the version counter of a tensor: all but writing by `.data` or NumPy, after
        which `eval()` packs them.
        """
        convs: Any = self.edge_convs._modules.values()
        norm = self._norm
        groups = [] if norm is None else [norm._parameters, norm._buffers]
        groups += [group for conv in convs for group in conv.groups()]
        tensors = [tensor for group in groups for tensor in group.values() if tensor is not None]
        try:
            key = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        except RuntimeError:  # tensors made in inference mode count no versions
            key = []
        if self._packed is None or not key or key != self._packed[0]:
            lists = [tuple([t.numpy(force=True) for t in some] for some in conv.tensors()) for conv in convs]
            first = lists[0][0][0]
            fts = np.outer([0, 1, 0], np.ones(first.shape[1] // 2)).astype(first.dtype)
            if norm is not None:  # in the dtype, as `batch_norm` does it
                fts[0], fts[2] = norm.running_mean.numpy(force=True), norm.bias.numpy(force=True)
                fts[1] = (norm.weight / (norm.running_var + norm.eps).sqrt()).numpy(force=True)
            # with the tensors' memory: no other one can come to lie where these do
            self._packed = key, pack(fts, lists), [tensor.detach() for tensor in tensors]
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:
        """A copy packs its own weights."""
        return {**self.__dict__, "_packed": None}

    def train(self, mode: bool = True) -> ParticleNet:
        """As of every module; the weights of inference are packed anew."""
        self._packed = None
        return super().train(mode)

    def _pooled(self, inputs: Inputs, neighbours: Sequence[torch.Tensor] | None, longest: int) -> torch.Tensor:
        """Mean over the constituents of each jet, (J, width)."""
        x, points = self._normalised(inputs), inputs.points
        at = {"offsets": inputs.offsets, "offsets_host": inputs.offsets_host}
        found = []
        convs: Any = self.edge_convs
        for i, conv in enumerate(convs):
            near = knn(points.detach(), conv.k, **at) if neighbours is None else neighbours[i]
            x = points = conv(x, near, **at, padded=self._padded, missing=self.missing)
            found.append(x)
        if hasattr(self, "fusion_block"):
            layers: list[Any] = list(self.fusion_block)
            conv, norm = layers[:2]
            x = torch.cat(found, 1) @ conv.weight[:, :, 0].T
            x = relu(batch_norm(norm, x, len(inputs.offsets_host) - 1, self.bn_stats, not self.training))
        return self._divided(segment(x, **at, reduce="mean" if self.use_counts else "sum"), longest)

    def _divided(self, pooled: torch.Tensor, longest: int) -> torch.Tensor:
        return pooled if self.use_counts else pooled / max(self._padded or longest, 1)

    def _normalised(self, inputs: Inputs) -> torch.Tensor:
        """The features after batch normalisation."""
        if self._norm is None:
            return inputs.x
        return batch_norm(self._norm, inputs.x, len(inputs.offsets_host) - 1, self.bn_stats, not self.training)

    @property
    def _norm(self) -> Any:
        """Batch normalisation of the features, if there is one."""
        return self._modules.get("bn_fts")

    @property
    def _padded(self) -> int:
        return 0 if self.bn_stats == "real" else self.bn_stats[1]


class ParticleNetLite(ParticleNet):
    """ParticleNet-Lite, arXiv:1902.08570, table 1: two edge convolutions of 7 neighbours; 26,416 parameters.

    See `ParticleNet`.
    """

    def __init__(
        self,
        inputs: str | int = "kin",
        classes: Sequence[str] = ("QCD", "top"),
        signal: int = 1,
        *,
        conv_params: Sequence[tuple[int, Sequence[int]]] = ((7, (32,) * 3), (7, (64,) * 3)),
        fc_params: Sequence[tuple[int, float]] = ((128, 0.1),),
        **options: Any,
    ) -> None:
        super().__init__(inputs, classes, signal, conv_params=conv_params, fc_params=fc_params, **options)
