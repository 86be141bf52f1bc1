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

_REGISTRY = {
    "cnn": "cnn:CNN",
    "efn": "efn:EFN",
    "particle_transformer": "particle_transformer:ParticleTransformer",
    "particlenet": "particlenet:ParticleNet",
    "particlenet_lite": "particlenet:ParticleNetLite",
    "pfn": "pfn:PFN",
}


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


def save(model: Tagger, path: str | os.PathLike[str], *, format: str = "fasttag") -> None:
    """Write weights (safetensors) with name, configuration, classes and signal in the header; atomic.

    format="weaver" writes what weaver-core loads instead, for Particle Transformer and ParticleNet: a state dict by
    torch.save, with weaver's keys behind the prefix `mod.` of its example networks; neither classes nor configuration.

    Raises ValueError for a model that `build` or `load` did not make: its configuration is not known; and for another
    format, or a model that weaver-core does not have or would give other numbers for: missing="real", m2="stable".
    """
    from ..training import write_tensors

    described = describe(model)
    if format == "weaver":
        from ._weaver import write

        write(path, model.name, model.config, model.state_dict())
    elif format == "fasttag":
        write_tensors(path, dict(model.state_dict()), {"model": described})
    else:
        raise ValueError(f'save: format must be "fasttag" or "weaver", got {format!r}; choose one')


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
    logit is the signal cannot be read off the weights.

    Checkpoints of any weaver-core are loaded too: files of torch.save (*.pt, *.pth), of which nothing but tensors
    is unpickled, and state dicts with the prefix `mod.` or `module.`, of Particle Transformer (version 1) and
    ParticleNet, also fine-tuned ones with the head outside of `mod.`. `classes` and `signal` must be given:
    weaver's top taggers have classes ("top", "QCD"), signal 0. Sizes and the recipe of the inputs are read off the
    shapes; what is not in the weights is as in weaver's example networks unless given in `config`:
    use_pre_activation_pair=False, remove_self_pair=False, dropout 0.1; 16 neighbours for ParticleNet's widths, 7
    for those of ParticleNet-Lite (others need conv_params), use_counts=True, and missing="ghost", which is what
    weaver does with jets of no more constituents than neighbours. Hidden layers of the head are taken to have ReLU.
    A checkpoint with columns of its own loads with inputs=<their number>, for `Inputs` of one's own.

    Raises CheckpointError for anything that does not fit.

    >>> from fasttag import models
    >>> weights = models.build("pfn").state_dict()
    >>> models.load(weights, name="pfn", classes=("QCD", "top"), signal=1).signal
    1
    """
    interop.require("torch")
    from . import _weaver

    if isinstance(path_or_state_dict, Mapping):
        where, state = "the state dict", dict(path_or_state_dict)
        if _weaver.recognises(state):
            state, name, config = _weaver.translate(state, name, config, where)
        elif name is None or not {"classes", "signal"} <= set(config):
            raise CheckpointError(
                "load: a bare state dict must come with name, classes and signal, "
                f"got name={name!r} and {sorted(config)}; which logit is the signal is not in the weights"
            )
    elif _weaver.is_pickle(where := os.fspath(path_or_state_dict)):
        state, name, config = _weaver.translate(_weaver.read(where), name, config, where)
    else:
        state, name, config = _ours(where, name, config)
    try:
        model = build(name, **config)
        model.load_state_dict(state)
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, AttributeError) as error:
        given = json.dumps(config, default=str)
        raise CheckpointError(f"{where}: does not fit model {name} with {given}: {error}") from error
    return model.eval()


def _ours(where: str, name: str | None, config: dict[str, Any]) -> tuple[dict[str, torch.Tensor], str, dict[str, Any]]:
    """State dict, name and configuration in a file of `save`; `config` goes before the configuration."""
    from ..training import read_tensors

    state, metadata = read_tensors(where)
    found = metadata.get("model")
    if not isinstance(found, dict) or not {"name", "config", "classes", "signal"} <= set(found):
        raise CheckpointError(f"{where}: no description of the model in the header; was it written by fasttag?")
    if name is not None and name != found["name"]:
        raise CheckpointError(f"{where}: holds a {found['name']}, asked for {name}")
    config = {**found["config"], "classes": found["classes"], "signal": found["signal"], **config}
    state = {key.removeprefix("model."): value for key, value in state.items() if not key.startswith("optimizer.")}
    return state, found["name"], config


def export(model: Tagger, path: str | os.PathLike[str], *, opset: int | None = None) -> None:
    """Write a particle_transformer or particlenet as an ONNX graph of any batch and length, atomically.

    Inputs of the graph: `p4` (batch, length, 4), px, py, pz, E in GeV, in the dtype of the weights, and `valid`
    (batch, length) bool, as `Jets.to_padded` gives them, length 1 or more; real constituents may stand anywhere,
    what the others hold is not looked at. Output: `probabilities` (batch, classes), those of
    `model(jets).softmax(1)` in evaluation mode; a jet with NaN or inf in p4 gives NaN. Features are part of the
    graph; labels that `features.kin` prefers to the sum of the constituents (jet_pt, ...) are not known there.
    Names of the classes, the signal, the recipe and the name of the tagger are in the metadata. ONNX Runtime has no
    float64 for the operator Erf: use float32 weights there.

    How closely probabilities agree under ONNX Runtime, float32, seen on 10,000 jets: Particle Transformer to 1.1e-6,
    rounding of the network. ParticleNet as closely, save where two neighbours are equally far to rounding and the other
    one is taken: up to about 1 jet in 1,000 is off by more, with what that neighbour changes.

    opset : 17 to the newest that the installed onnx knows; None is 17, which ONNX Runtime reads from 1.12 on.

    Raises ValueError for an opset out of range, NotImplementedError for other taggers, for inputs "kinpid" and "full",
    a number of columns, for extra inputs of pairs, m2="stable" and use_counts=False, TypeError for weights that are
    neither float32 nor float64, ImportError without onnx.

    >>> import tempfile, onnxruntime
    >>> from fasttag import io, models
    >>> model = models.build("particlenet_lite")
    >>> p4, valid = io.read(io.sample_path(), stop=3).to_padded(128)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     models.export(model, f"{folder}/lite.onnx")
    ...     session = onnxruntime.InferenceSession(f"{folder}/lite.onnx")
    >>> session.run(None, {"p4": p4, "valid": valid})[0].shape
    (3, 2)
    """
    interop.require("onnx")
    from . import _onnx

    _onnx.export(model, path, opset=opset)


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
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for a in range(0, len(jets), batch_size):
            part = slice(a, a + batch_size)
            with torch.inference_mode():
                logits = model(jets[part])
            yield part, logits
    finally:
        for module, mode in modes:  # some may be frozen while others train
            module.training = mode
