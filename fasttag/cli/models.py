"""List the taggers with their parameters and papers."""

from __future__ import annotations

import argparse

from .. import models


def arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> None:
    for name in models.available():
        model = models.build(name)
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{name:20s} {parameters:>9,} parameters   {(model.__doc__ or '').strip().splitlines()[0]}")
