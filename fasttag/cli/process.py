"""Convert jets of any format to fasttag's native HDF5, with features as columns if asked, in bounded memory."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from .. import features, io
from ..io.native import Writer
from ..jets import Jets
from ._bar import bar

FEATURES = {"kinematics": ("pt", "rapidity", "eta", "phi", "mass"), "energy_flow": ("z", "drapidity", "dphi")}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, nargs="+", help="files of one kind, any format that fasttag reads")
    parser.add_argument("--out", type=Path, required=True, help="native HDF5 file to write")
    parser.add_argument(
        "--features", action="append", default=[], choices=sorted(FEATURES), help="columns to add; may be repeated"
    )
    parser.add_argument("--chunk", type=int, default=65536, help="jets in memory at a time")


def run(args: argparse.Namespace) -> None:
    if not args.out.parent.is_dir():
        raise FileNotFoundError(f"{args.out.parent}: no such folder to write {args.out.name} to; make it first")
    start = time.perf_counter()
    jets_read = 0
    with Writer(args.out) as writer, bar() as advance:
        for path in args.input:
            for jets in io.iter_read(path, chunk=args.chunk):
                writer.append(jets.with_columns(**_columns(jets, args.features)))
                jets_read += len(jets)
                advance(len(jets))
    seconds = time.perf_counter() - start
    size = args.out.stat().st_size
    print(f"{args.out}: {jets_read:,} jets, {size / 1e6:.1f} MB, {jets_read / seconds:,.0f} jets/s")


def _columns(jets: Jets, names: list[str]) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    if "kinematics" in names:
        from ..ops import kinematics

        columns |= kinematics(jets)._asdict()
    if "energy_flow" in names:
        columns |= dict(zip(FEATURES["energy_flow"], np.ascontiguousarray(features.energy_flow(jets).x.T)))
    return columns
