"""The command line: fasttag demo | process | train | evaluate | export | verify | models | info."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import FasttagError

COMMANDS = ("demo", "process", "train", "evaluate", "export", "verify", "models", "info")
# what files, options and operations raise; anything else is a fault of ours and keeps its traceback
ERRORS = (FasttagError, OSError, ValueError, TypeError, ImportError, FloatingPointError, NotImplementedError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit status 0, or with one line on stderr 2 for bad input and 130 for Ctrl-C."""
    prog, hint = "fasttag", ""
    try:
        args = _parser().parse_args(argv)
        prog = f"fasttag {args.command}"
        hint = "; go on with --resume" if args.command == "train" else ""
        args.run(args)
    except ERRORS as error:
        print(f"{prog}: {' '.join(map(str.strip, str(error).splitlines()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: stopped{hint}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fasttag", description="Compiled kernels and thin taggers for LHC jets.")
    parser.add_argument("--version", action="version", version=f"fasttag {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name in COMMANDS:
        module = importlib.import_module(f"fasttag.cli.{name}")
        summary = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.arguments(command)
        command.set_defaults(run=module.run)
    return parser
