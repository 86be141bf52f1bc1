"""The command line: fasttag demo | process | train | evaluate | models | info."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import FasttagError

COMMANDS = ("demo", "process", "train", "evaluate", "models", "info")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit status 0, or 2 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(prog="fasttag", description="Compiled kernels and thin taggers for LHC jets.")
    parser.add_argument("--version", action="version", version=f"fasttag {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name in COMMANDS:
        module = importlib.import_module(f"fasttag.cli.{name}")
        summary = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (FasttagError, OSError, ValueError, ImportError, FloatingPointError) as error:
        print(f"fasttag {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
