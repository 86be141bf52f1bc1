"""Train a tagger: seeded, resumable after a kill at any moment, checkpoints after every epoch."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

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
    folder = args.out or Path("runs") / args.model
    train, val = (_read(paths, settings.against) for paths in (args.train, args.val))
    print(f"{args.model}: {len(train):,} training jets, {len(val):,} validation jets; run in {folder}")
    training.fit(args.model, train, val, folder, settings, resume=args.resume)
    print(f"best weights: {folder / 'best.safetensors'}")


def _read(paths: list[Path], against: str) -> Jets:
    """All files joined, with what training needs and no more."""
    parts = [io.read(path) for path in paths]
    return Jets.concatenate(
        Jets(p.p4, p.offsets, {}, {k: p.labels[k] for k in p.labels if k in ("label", against)}) for p in parts
    )
