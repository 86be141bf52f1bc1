"""weaver-core's checkpoints of Particle Transformer (version 1) and ParticleNet: their keys, and what shapes tell."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch

from .._files import replacing
from ..errors import CheckpointError
from ._tagger import COLUMNS

NAMES = ("particle_transformer", "particlenet", "particlenet_lite")
BEGINNINGS = {"particle_transformer": "blocks", "particlenet": "edge_convs"}
# neighbours are not in the weights: those of the published networks, by the widths of their blocks
NEIGHBOURS = {
    ((64, 64, 64), (128, 128, 128), (256, 256, 256)): ("particlenet", 16),
    ((32, 32, 32), (64, 64, 64)): ("particlenet_lite", 7),
}
DROPOUT = 0.1  # of hidden layers of the head, as published; not in the weights

State = Mapping[str, torch.Tensor]


def is_pickle(path: str | os.PathLike[str]) -> bool:
    """Whether a file is what torch.save writes, now (zip) or before 1.6; safetensors has a brace as ninth byte."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start.startswith(b"PK\x03\x04") or (start.startswith(b"\x80") and start[8:] != b"{")


def read(path: str) -> dict[str, torch.Tensor]:
    """The state dict in a pickle, none of whose code is run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: cannot be read as a checkpoint of weights only: {reason}") from error
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise CheckpointError(f"{path}: must hold a state dict, names and tensors, got {type(state).__name__}")
    return dict(state)


def write(path: str | os.PathLike[str], name: str, config: Mapping[str, Any], state: State) -> None:
    """A file for weaver-core's --load-model-weights and --model-prefix."""
    if name not in NAMES:
        raise ValueError(f'save: model must be one of {", ".join(NAMES)}, got {name}; leave out format="weaver"')
    argument, ours, weavers = (
        ("m2", "reference", "reference") if "transformer" in name else ("missing", "real", "ghost")
    )
    if (found := config.get(argument, ours)) != weavers:
        raise ValueError(
            f'save: {argument} must be "{weavers}", which is what weaver-core does, got "{found}"; build or load the '
            f'model with {argument}="{weavers}"'
        )
    with replacing(path) as part:
        torch.save({f"mod.{key}": value.detach().cpu().contiguous() for key, value in state.items()}, part)


def recognises(state: State) -> bool:
    """Whether keys are as weaver's wrappers or its versions up to 0.4 have them."""
    return any(key.startswith(("mod.", "module.")) or "in_proj_" in key for key in state)


def translate(
    state: State, name: str | None, config: dict[str, Any], where: str
) -> tuple[dict[str, torch.Tensor], str, dict[str, Any]]:
    """Our state dict, name and configuration, where `config` goes before what the shapes tell."""
    if not {"classes", "signal"} <= set(config):
        raise CheckpointError(
            f"{where}: must come with classes and signal, got {sorted(config)}; which logit is the signal is not in "
            "the weights: weaver's top taggers have the top first"
        )
    state = _renamed(state, where)
    beginnings = {key.partition(".")[0] for key in state}
    found = next((kind for kind, beginning in BEGINNINGS.items() if beginning in beginnings), None)
    if found is None or (name is not None and name.removesuffix("_lite") != found):
        asked = "Particle Transformer or ParticleNet" if name is None else name
        raise CheckpointError(f"{where}: is not a {asked} of weaver-core, its keys begin with {sorted(beginnings)[:9]}")
    try:
        read_off = (_particle_transformer if found == "particle_transformer" else _particlenet)(state)
        columns, logits = read_off.pop("columns"), _sizes(state, "fc", ndim=2)[-1]
    except (ValueError, IndexError, KeyError) as error:
        raise CheckpointError(f"{where}: has not the layers of a {found} of weaver-core, version 1") from error
    if len(config["classes"]) != logits:
        raise CheckpointError(f"{where}: has {logits} logits, got {len(config['classes'])} classes; name each of them")
    inputs = next((recipe for recipe, count in COLUMNS.items() if count == columns), columns)
    if inputs == columns != config.get("inputs"):
        known = ", ".join(f"{recipe} {count}" for recipe, count in COLUMNS.items())
        raise CheckpointError(
            f"{where}: has {columns} inputs per constituent, there is no recipe of so many ({known}); for columns of "
            f"your own give inputs={columns}"
        )
    config = {"inputs": inputs, **read_off, **config}
    if found == "particlenet":
        blocks = tuple(config.pop("widths"))
        published, k = NEIGHBOURS.get(blocks, (found, None))
        name = name or published
        if k is None and "conv_params" not in config:
            raise CheckpointError(
                f"{where}: the number of neighbours is not in the weights of blocks {blocks}; "
                f"give conv_params=[(k, {blocks[0]}), ...]"
            )
        config = {"conv_params": [(k, block) for block in blocks], **config}
    return state, name or found, config


def _renamed(state: State, where: str) -> dict[str, torch.Tensor]:
    """Without the wrappers' prefixes and the trimmer's counter, with the head of fine-tuned networks in its place."""
    plain = lambda key: key.removeprefix("module.").removeprefix("mod.").replace(".in_proj_", ".in_proj.")
    pairs = [(plain(key), value) for key, value in state.items() if not key.endswith("trimmer._counter")]
    last = len({key.split(".")[1] for key, _ in pairs if key.startswith("fc.")})
    renamed = {re.sub(r"^fc_out\.", f"fc.{last}.", key): value for key, value in pairs}
    if len(renamed) < len(pairs):
        raise CheckpointError(f"{where}: has two tensors for one name, inside and outside of mod.; keep one head")
    return renamed


def _sizes(state: State, prefix: str, suffix: str = "weight", *, ndim: int) -> list[int]:
    """Outputs of the layers whose weights, of that many axes, are <prefix>.<number>.<suffix>, by number."""
    keys = {int(m[1]): m[0] for key in state if (m := re.fullmatch(rf"{prefix}\.(\d+)\.{suffix}", key))}
    return [state[keys[i]].shape[0] for i in sorted(keys) if state[keys[i]].ndim == ndim]


def _hidden(state: State) -> list[tuple[int, float]]:
    return [(width, DROPOUT) for width in _sizes(state, "fc", r"0\.weight", ndim=2)]


def _particle_transformer(state: State) -> dict[str, Any]:
    *pair_embed_dims, num_heads = _sizes(state, r"pair_embed\.embed", ndim=3)
    extra = state.get("pair_embed.fts_embed.0.weight")
    return {
        "columns": state["embed.input_bn.weight"].numel(),
        "embed_dims": _sizes(state, r"embed\.embed", ndim=2),
        "pair_embed_dims": pair_embed_dims,
        "num_heads": num_heads,
        "num_layers": len(_sizes(state, "blocks", "w_resid", ndim=1)),
        "num_cls_layers": len(_sizes(state, "cls_blocks", "w_resid", ndim=1)),
        "fc_params": _hidden(state),
        "pair_extra_dim": 0 if extra is None else extra.numel(),
    }


def _particlenet(state: State) -> dict[str, Any]:
    blocks = len(_sizes(state, "edge_convs", r"convs\.0\.weight", ndim=4))
    return {
        "columns": state["edge_convs.0.convs.0.weight"].shape[1] // 2,
        "widths": [tuple(_sizes(state, rf"edge_convs\.{i}\.convs", ndim=4)) for i in range(blocks)],
        "fc_params": _hidden(state),
        "use_fusion": "fusion_block.0.weight" in state,
        "use_fts_bn": "bn_fts.weight" in state,
        "missing": "ghost",
    }
