"""Train a tagger: seeded, resumable after a kill at any moment, checkpoints after every epoch."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from .. import interop, io, models, training
from ..jets import Jets

HELP = {
    "epochs": "passes over the training jets, at most",
    "batch_size": "jets per step",
    "lr": "highest learning rate",
    "warmup": "share of all steps over which the rate rises",
    "weight_decay": "AdamW weight decay",
    "patience": "epochs without a lower validation loss before stopping",
    "seed": "of weights, shuffling and dropout",
    "disco": "weight of dCorr^2(signal probability, COLUMN) of the background in the loss; wants --batch-size 2048",
    "against": "label to keep the score independent of, or mass: the jet mass where the file has no such label",
}
METAVARS = {"disco": "LAMBDA", "against": "COLUMN"}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("train", type=Path, nargs="+", help="training jets, any format that fasttag reads")
    parser.add_argument("--val", type=Path, action="append", required=True, help="validation jets; may be repeated")
    parser.add_argument("--model", required=True, choices=models.available())
    parser.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="how to build the model, as in models.build: inputs=kinpid num_layers=2 embed_dims=[64,128,64]",
    )
    parser.add_argument("--out", type=Path, help="folder of the run (default runs/MODEL)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    for field in dataclasses.fields(training.Settings):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(
            option,
            type=type(field.default),
            default=field.default,
            metavar=METAVARS.get(field.name),
            help=f"{HELP[field.name]} (default {'none' if field.default == '' else field.default})",
        )


def run(args: argparse.Namespace) -> None:
    settings = training.Settings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(training.Settings)})
    for module in ("torch", "safetensors", "tqdm"):
        interop.require(module)
    config = dict(map(_setting, args.config))
    try:
        models.build(args.model, **config)
    except TypeError as error:  # of a name that the model does not have
        raise ValueError(
            f"train: --config must hold arguments of {args.model}, got {error}; see its docstring"
        ) from error
    folder = args.out or Path("runs") / args.model
    train, val = (_read(paths, settings.against) for paths in (args.train, args.val))
    print(f"{args.model}: {len(train):,} training jets, {len(val):,} validation jets; run in {folder}")
    training.fit(args.model, train, val, folder, settings, config=config, resume=args.resume)
    print(f"best weights: {folder / 'best.safetensors'}")


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON or else a string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"train: --config must be NAME=VALUE, got {text!r}; write inputs=kin, say")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _read(paths: list[Path], against: str) -> Jets:
    """All files joined, with what training may need: constituents, their columns, and labels that name the jet."""
    parts = [io.read(path) for path in paths]
    columns, labels = (
        set.intersection(*(set(getattr(part, kind)) for part in parts)) for kind in ("columns", "labels")
    )
    labels = {name for name in labels if name.startswith("jet_")} | {"label", against}
    of = lambda arrays, names: {name: arrays[name] for name in arrays if name in names}
    return Jets.concatenate(Jets(p.p4, p.offsets, of(p.columns, columns), of(p.labels, labels)) for p in parts)
