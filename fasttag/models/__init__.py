"""Taggers: thin torch modules on ragged jets. The registry is the dictionary below."""

from __future__ import annotations

import importlib
import json
import operator
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import interop
from ..errors import CheckpointError
from ..jets import Jets

if TYPE_CHECKING:
    import torch

    from ._tagger import Tagger

_REGISTRY = {"cnn": "cnn:CNN", "efn": "efn:EFN", "pfn": "pfn:PFN"}


def available() -> list[str]:
    """The names that `build` takes."""
    return sorted(_REGISTRY)


def build(name: str, **config: Any) -> Tagger:
    """A new tagger with fresh weights from torch's generator; `config` goes to its constructor.

    Raises ValueError for an unknown name, ImportError without torch.
    """
    if name not in _REGISTRY:
        raise ValueError(f"build: name must be one of {', '.join(available())}, got {name!r}; see models.available()")
    interop.require("torch")
    module, _, cls = _REGISTRY[name].partition(":")
    model = getattr(importlib.import_module(f"fasttag.models.{module}"), cls)(**config)
    model.name, model.config = name, dict(config)
    return model


def save(model: Tagger, path: str | os.PathLike[str]) -> None:
    """Write weights (safetensors) with name, configuration, classes and signal in the header; atomic.

    Raises ValueError for a model that `build` or `load` did not make: its configuration is not known.
    """
    from ..training import write_tensors

    write_tensors(path, dict(model.state_dict()), {"model": describe(model)})


def describe(model: Tagger) -> dict[str, Any]:
    """What `load` needs to rebuild a model besides its weights, as JSON gives it back (lists, not tuples)."""
    if not hasattr(model, "name"):
        raise ValueError(
            f"save: model must come from models.build, got {type(model).__name__} made directly; build it by name"
        )
    found = {"name": model.name, "config": model.config, "classes": model.classes, "signal": model.signal}
    return json.loads(json.dumps(found, default=operator.index))  # index: NumPy integers


def load(path_or_state_dict: Any, name: str | None = None, **config: Any) -> Tagger:
    """A tagger from a file written by `save` or by training, or from a state dict with its `name` and `config`.

    The model comes back in evaluation mode. For a state dict the classes and the signal must be part of `config`: which
    logit is the signal cannot be read off the weights. Raises CheckpointError for anything that does not fit.
    """
    if isinstance(path_or_state_dict, Mapping):
        if name is None or not {"classes", "signal"} <= set(config):
            raise CheckpointError(
                "load: a bare state dict must come with name, classes and signal, "
                f"got name={name!r} and {sorted(config)}; which logit is the signal is not in the weights"
            )
        state, where = dict(path_or_state_dict), "the state dict"
    else:
        from ..training import read_tensors

        where = os.fspath(path_or_state_dict)
        state, metadata = read_tensors(where)
        found = metadata.get("model")
        if not isinstance(found, dict) or not {"name", "config", "classes", "signal"} <= set(found):
            raise CheckpointError(f"{where}: no description of the model in the header; was it written by fasttag?")
        if name is not None and name != found["name"]:
            raise CheckpointError(f"{where}: holds a {found['name']}, asked for {name}")
        name = found["name"]
        config = {**found["config"], "classes": found["classes"], "signal": found["signal"], **config}
        state = {key.removeprefix("model."): value for key, value in state.items() if not key.startswith("optimizer.")}
    try:
        model = build(name, **config)
        model.load_state_dict(state)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{where}: does not fit model {name} with {json.dumps(config)}: {error}") from error
    return model.eval()


def score(model: Tagger, jets: Jets, *, batch_size: int = 1024) -> np.ndarray:
    """Signal probability (J,) float32 of each jet: softmax of the logits, column `model.signal`. No gradients.

    A jet with NaN or inf in p4 gives NaN. Raises ValueError for a batch_size below 1, ImportError without torch.
    """
    torch = interop.require("torch")
    if batch_size < 1:
        raise ValueError(f"score: batch_size must be 1 or more, got {batch_size}; 1024 is usual")
    # fetched at the end: on a GPU each batch would wait for the one before
    scores = [logits.softmax(1)[:, model.signal].float() for _, logits in _logits(model, jets, batch_size)]
    return torch.cat(scores).cpu().numpy() if scores else np.empty(0, np.float32)


def _logits(model: Tagger, jets: Jets, batch_size: int = 1024) -> Iterator[tuple[slice, torch.Tensor]]:
    """The slice of each batch and its logits, in evaluation mode, without gradients."""
    torch = interop.require("torch")
    training = model.training
    model.eval()
    try:
        for a in range(0, len(jets), batch_size):
            part = slice(a, a + batch_size)
            with torch.inference_mode():
                logits = model(jets[part])
            yield part, logits
    finally:
        model.train(training)
