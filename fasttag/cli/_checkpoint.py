"""Options that say what a checkpoint of weaver-core does not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import models


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=models.available(), help="the tagger, where not clear")
    parser.add_argument(
        "--classes", metavar="A,B,...", help="names of the logits, in order: top,QCD in weaver's networks"
    )
    parser.add_argument("--signal", metavar="A", help="which of --classes is the signal: top")


def load(args: argparse.Namespace, path: Path) -> Any:
    """The tagger in a file of fasttag or of weaver-core."""
    return models.load(path, args.model, **_classes(args))


def _classes(args: argparse.Namespace) -> dict[str, Any]:
    """What `models.load` wants to know of the logits."""
    if args.classes is None and args.signal is None:
        return {}
    names = tuple((args.classes or "").split(","))
    if args.signal not in names or len({*names}) < len(names):
        raise ValueError(
            f"{args.command}: --classes must be different names, and --signal one of them, got {args.classes} and "
            f"{args.signal}; weaver's top taggers want --classes top,QCD --signal top"
        )
    return {"classes": names, "signal": names.index(args.signal)}
