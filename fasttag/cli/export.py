"""Write a trained tagger as an ONNX graph: padded four-vectors in, probabilities of the classes out."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import models
from . import _checkpoint


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="of a particle_transformer or particlenet; weaver-core's .pt with --classes and --signal",
    )
    parser.add_argument("out", type=Path, help="ONNX file to write")
    _checkpoint.arguments(parser)
    parser.add_argument("--opset", type=int, help="version of the ONNX operators, 17 or later (default 17)")


def run(args: argparse.Namespace) -> None:
    model = _checkpoint.load(args, args.checkpoint)
    models.export(model, args.out, opset=args.opset)
    print(f"{args.out}: {model.name}, {args.out.stat().st_size / 1e6:.1f} MB")
    print("inputs p4 (batch, length, 4) px, py, pz, E in GeV and valid (batch, length); output probabilities (batch,")
    print(f"{len(model.classes)}): {', '.join(model.classes)}; signal {model.classes[model.signal]}")
