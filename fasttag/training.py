"""Training on plain torch: seeded, resumable after a kill at any moment, checkpoints in safetensors."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import interop, metrics, models
from ._files import replacing
from .errors import CheckpointError
from .jets import Jets
from .ops import jet_p4, kinematics

if TYPE_CHECKING:
    from .losses import DisCo
    from .models._tagger import Tagger

_KINDS: dict[type, tuple[type, str]] = {
    int: (numbers.Integral, "an integer"),
    float: (numbers.Real, "a number"),
    str: (str, "a string"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to train. The learning rate rises linearly over `warmup` of all steps, then falls as a cosine to zero.

    With `disco` and `against` the loss is cross-entropy + disco dCorr^2(signal probability, against), the second term
    over the background jets of a batch: `losses.DisCo`, which says why batch_size should then be 2,048 or more.
    `against` names a label of the jets; "mass" is the jet mass where there is no such label.

    Raises TypeError for another kind than the default's (numbers may be NumPy's), ValueError for a value out of range.
    """

    epochs: int = 30
    batch_size: int = 512
    lr: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.0
    patience: int = 8
    seed: int = 1
    disco: float = 0.0
    against: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kind: Any = type(field.default)
            value, (abstract, rule) = getattr(self, field.name), _KINDS[kind]
            if not isinstance(value, abstract):
                raise TypeError(f"Settings: {field.name} must be {rule}, got {value!r}; change it")
            object.__setattr__(self, field.name, kind(value))  # JSON has no NumPy numbers
        rules = {
            "epochs": (self.epochs >= 1, "1 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "lr": (0 < self.lr < math.inf, "positive"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "patience": (self.patience >= 1, "1 or more"),
            "seed": (0 <= self.seed < 2**63, "in [0, 2**63)"),
            "disco": (0 <= self.disco < math.inf, "0 or more"),
        }
        for name, (good, rule) in rules.items():
            if not good:
                raise ValueError(f"Settings: {name} must be {rule}, got {getattr(self, name)}; change it")
        if (self.disco > 0) != (self.against != ""):
            raise ValueError(
                f"Settings: disco and against must be given together, got {self.disco} and {self.against!r}; "
                "set disco above 0 and against to a label of the jets or to mass, or neither"
            )

    def learning_rate(self, step: int, steps: int) -> float:
        """The rate of step 0..steps-1."""
        rise = max(1, round(self.warmup * steps))
        if step < rise:
            return self.lr * (step + 1) / rise
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def fit(
    name: str,
    train: Jets,
    val: Jets,
    folder: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    config: dict[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Tagger:
    """Train tagger `name` on jets with a label `label` (class index) and give back the best epoch's model.

    After every epoch `folder` holds last.safetensors (weights, optimiser, history: all that resuming needs),
    best.safetensors (weights of the lowest validation loss) and history.json, each replaced atomically. With `resume`
    training goes on from last.safetensors if there is one; on the CPU with the same number of threads the weights end
    the same to the bit as without the interruption, since shuffling and dropout depend on (seed, epoch) only.

    The validation loss is the same sum as the training loss, with dCorr^2 over all its background at once. The history
    holds the term disco dCorr^2 apart as well, as train_disco and val_disco; the bias of dCorr^2, about 3 / (number of
    background jets), makes it larger in the batches of training.

    Raises ValueError for jets without usable labels, CheckpointError for a folder that holds another run or only parts
    of this one, FloatingPointError where the loss stops being finite.
    """
    torch = interop.require("torch")
    from .losses import DisCo

    settings = settings or Settings()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    last, best = folder / "last.safetensors", folder / "best.safetensors"
    if last.exists() and not resume:
        raise CheckpointError(f"{folder}: holds a run already; resume it or choose another folder")

    torch.manual_seed(settings.seed)
    model = models.build(name, **(config or {}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    if settings.against and (settings.against in train.labels) != (settings.against in val.labels):
        raise ValueError(
            f"fit: train and val must both have the label {settings.against!r} or both lack it, got "
            f"{list(train.labels)} and {list(val.labels)}; add it to the other, or drop it"
        )
    train, val = (_labelled(jets, model, settings, where) for where, jets in (("train", train), ("val", val)))
    disco = DisCo(settings.disco) if settings.against else None
    described = {"model": models.describe(model)}
    run = {"settings": dataclasses.asdict(settings), "data": [_fingerprint(train), _fingerprint(val)]}
    history: list[dict[str, Any]] = []
    if last.exists():
        history = _restore(last, model, optimizer, {**described, "run": run})
        if not best.exists():
            raise CheckpointError(f"{best}: is missing beside {last.name}; put it back or choose another folder")
        _write_history(folder, {**described, **run, "history": history})  # a kill may have come before it

    while len(history) < settings.epochs and not _stale(history, settings.patience):
        epoch = len(history)
        start = time.perf_counter()
        entry = {"epoch": epoch + 1, **_epoch(model, optimizer, train, settings, disco, epoch, progress)}
        rate = len(train) / (time.perf_counter() - start)
        entry |= {**_validate(model, val, disco), "jets_per_s": rate}
        improved = entry["val_loss"] < min((earlier["val_loss"] for earlier in history), default=math.inf)
        history.append(entry)
        if improved:
            write_tensors(best, dict(model.state_dict()), described)
        state = {f"model.{key}": value for key, value in model.state_dict().items()}
        for key, parameter in model.named_parameters():
            for kind, value in optimizer.state[parameter].items():
                state[f"optimizer.{key}.{kind}"] = value
        write_tensors(last, state, {**described, "run": run, "history": history})
        _write_history(folder, {**described, **run, "history": history})
        if progress:
            decorrelation = f"  val disco {entry['val_disco']:.4f}" if disco else ""
            print(
                f"epoch {epoch + 1:3d}/{settings.epochs}  train loss {entry['train_loss']:.4f}  "
                f"val loss {entry['val_loss']:.4f}{decorrelation}  val AUC {entry['val_auc']:.4f}  "
                f"{rate:,.0f} jets/s{'  *' if improved else ''}",
                flush=True,
            )
    return models.load(best)


def _write_history(folder: Path, content: dict[str, Any]) -> None:
    with replacing(folder / "history.json") as part:
        Path(part).write_text(json.dumps(content, indent=1))


def _stale(history: list[dict[str, Any]], patience: int) -> bool:
    """Whether the last `patience` epochs brought no lower validation loss."""
    losses = [entry["val_loss"] for entry in history]
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def _epoch(
    model: Tagger,
    optimizer: Any,
    jets: Jets,
    settings: Settings,
    disco: DisCo | None,
    epoch: int,
    progress: bool,
) -> dict[str, float]:
    """One pass over the jets in the order of permutation(seed, epoch); the mean loss and its part from `disco`."""
    torch = interop.require("torch")
    tqdm = interop.require("tqdm").tqdm
    rng = np.random.default_rng([settings.seed, epoch])
    torch.manual_seed(int(rng.integers(2**62)))
    order = rng.permutation(len(jets))
    starts = range(0, len(jets), settings.batch_size)
    steps = settings.epochs * len(starts)
    model.train()
    total = penalties = 0.0
    with tqdm(total=len(jets), unit="jet", unit_scale=True, leave=False, disable=not progress or None) as bar:
        for i, a in enumerate(starts):
            batch = jets[order[a : a + settings.batch_size]]
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate(epoch * len(starts) + i, steps)
            logits = model(batch)
            penalty = _penalty(model, disco, logits.softmax(1)[:, model.signal], batch.labels)
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels["label"])) + penalty
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"fit: the loss became {value} in epoch {epoch + 1}, step {i + 1}; lower lr={settings.lr}"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += value * len(batch)
            penalties += penalty.item() * len(batch)
            bar.set_postfix(epoch=epoch + 1, loss=f"{total / (a + len(batch)):.4f}", refresh=False)
            bar.update(len(batch))
    return _named("train", disco, total / len(jets), penalties / len(jets))


def _validate(model: Tagger, jets: Jets, disco: DisCo | None) -> dict[str, float]:
    """The loss over all jets, its part from `disco`, and the AUC of the signal class."""
    torch = interop.require("torch")
    label = jets.labels["label"]
    total = 0.0
    score = np.empty(len(jets), np.float32)
    for part, logits in models._logits(model, jets):
        total += torch.nn.functional.cross_entropy(logits, torch.from_numpy(label[part]), reduction="sum").item()
        score[part] = logits.softmax(1)[:, model.signal].numpy()
    if not math.isfinite(total):
        raise FloatingPointError(f"fit: the validation loss became {total}; lower lr, look for NaN in the jets")
    penalty = _penalty(model, disco, torch.from_numpy(score), jets.labels).item()
    named = _named("val", disco, total / len(jets) + penalty, penalty)
    return {**named, "val_auc": metrics.auc(score, label == model.signal)}


def _penalty(model: Tagger, disco: DisCo | None, score: Any, labels: Mapping[str, np.ndarray]) -> Any:
    """What `disco` adds to the loss of jets with these labels: its term over their background."""
    torch = interop.require("torch")
    if disco is None:
        return torch.zeros(())
    label, against = torch.from_numpy(labels["label"]), torch.from_numpy(labels["against"])
    return disco(score, against, label != model.signal)


def _named(where: str, disco: DisCo | None, loss: float, penalty: float) -> dict[str, float]:
    return {f"{where}_loss": loss, **({} if disco is None else {f"{where}_disco": penalty})}


def _labelled(jets: Jets, model: Tagger, settings: Settings, where: str) -> Jets:
    """In NumPy, with labels checked: `label`, for DisCo `against`, and those of the jets that recipes look at."""
    if "label" not in jets.labels:
        raise ValueError(f"fit: {where} must have a label 'label', got {list(jets.labels)}; add the class indices")
    jets = jets.to("cpu", library="numpy")
    label, classes = jets.labels["label"].astype(np.int64), len(model.classes)
    if len(jets) == 0 or label.min() < 0 or label.max() >= classes or (label == label[0]).all():
        raise ValueError(
            f"fit: {where} must have labels in 0..{classes - 1} of at least two classes, "
            f"got {sorted(set(label.tolist()))[:5]} for {len(jets)} jets; check the file"
        )
    labels = {"label": label}
    if settings.against:
        labels["against"] = _against(jets, settings.against, where).astype(np.float32)
        values = labels["against"][label != model.signal]
        if not np.isfinite(values).all() or (values == values[:1]).all():
            raise ValueError(
                f"fit: {settings.against!r} of {where} must be finite and not the same for all background jets, "
                f"got {values[:3].tolist()}; check the file"
            )
    labels |= {name: jets.labels[name] for name in jets.labels if name.startswith("jet_")}
    return Jets(jets.p4, jets.offsets, dict(jets.columns), labels)


def _against(jets: Jets, name: str, where: str) -> np.ndarray:
    if name in jets.labels:
        return jets.labels[name]
    if name != "mass":
        raise ValueError(
            f"fit: against must be mass or a label of {where}, one of {list(jets.labels)}, got {name!r}; name one"
        )
    return kinematics(jet_p4(jets)).mass


def _fingerprint(jets: Jets) -> str:
    """Tells data sets apart, so that a run is not resumed on other jets."""
    jets = jets.compact()
    crc = 0
    labels = [name for name in ("label", "against") if name in jets.labels]
    for array in (jets.offsets, *(jets.labels[name] for name in labels), *jets.p4):
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    # what recipes may read besides comes last: without it the number is what it was before 0.4.0
    more = {**jets.columns, **{name: jets.labels[name] for name in jets.labels.keys() - set(labels)}}
    for name in sorted(more):
        crc = zlib.crc32(np.ascontiguousarray(more[name]).data, zlib.crc32(name.encode(), crc))
    return f"{len(jets)} jets, crc32 {crc:08x}"


def _restore(path: Path, model: Tagger, optimizer: Any, expected: dict[str, Any]) -> list[dict[str, Any]]:
    """Load weights and optimiser in place; the history."""
    state, metadata = read_tensors(path)
    found = {key: metadata.get(key) for key in expected}
    if found["run"]:  # settings that an older version did not have are at their defaults
        settings = {**dataclasses.asdict(Settings()), **found["run"]["settings"]}
        found["run"] = {**found["run"], "settings": settings}
    if found != expected:
        raise CheckpointError(f"{path}: is another run: {found}; this one is {expected}")
    model.load_state_dict(
        {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    )
    for key, parameter in model.named_parameters():
        prefix = f"optimizer.{key}."
        optimizer.state[parameter] = {
            name.removeprefix(prefix): value.clone() for name, value in state.items() if name.startswith(prefix)
        }
    return metadata["history"]


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Any], metadata: dict[str, Any]) -> None:
    """A safetensors file with JSON metadata in its header, written beside `path` and renamed over it."""
    save_file = interop.require("safetensors.torch").save_file
    with replacing(path) as part:
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
            part,
            {"fasttag": json.dumps(metadata)},
        )


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and metadata of a file written by `write_tensors`; CheckpointError if it is no such file."""
    safetensors = interop.require("safetensors")
    try:
        with safetensors.safe_open(os.fspath(path), "pt") as file:
            metadata = json.loads((file.metadata() or {}).get("fasttag", "{}"))
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{os.fspath(path)}: cannot be read as a checkpoint: {error}") from error
