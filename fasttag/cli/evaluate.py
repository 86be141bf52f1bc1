"""Evaluate trained taggers on a file: AUC, accuracy, background rejection, mass sculpting, ensembles, plots.

Several runs of one tagger are summarised as in arXiv:1902.09914: the median run and its spread, ensembles of means and
of medians; runs of different taggers are listed side by side. Reads the file in chunks, so memory stays bounded.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import interop, io, metrics, models, plots
from .._files import replacing
from ..jets import Jets
from ..ops import jet_p4, kinematics
from ._bar import bar

EFFICIENCIES = (0.3, 0.5)
CHUNK = 16384
# per class, for the average images
IMAGE_JETS = 10_000


class Scored(NamedTuple):
    """Scores (R, J) of R runs, labels (J,) (1 = signal), jet masses (J,) in GeV, and the first jets of both classes."""

    scores: np.ndarray
    label: np.ndarray
    mass: np.ndarray
    some: Jets


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="jets with labels, any format that fasttag reads")
    parser.add_argument(
        "--run",
        type=Path,
        action="append",
        required=True,
        dest="runs",
        metavar="RUN",
        help="folder of a run, or checkpoint; may be repeated",
    )
    parser.add_argument(
        "--out", type=Path, help="folder for metrics.json and plots (default: evaluation in the first run)"
    )


def run(args: argparse.Namespace) -> None:
    for module in ("torch", "safetensors", "matplotlib"):
        interop.require(module)
    start = time.perf_counter()
    names = run_names(args.runs)
    taggers = [models.load(_checkpoint(path)) for path in args.runs]
    scored = score_file(taggers, args.file)
    seconds = time.perf_counter() - start
    numbers = summary(scored, ensembles=len({(tagger.name, tagger.classes) for tagger in taggers}) == 1)
    print(table(names, numbers))
    print(f"{len(scored.label):,} jets scored by {len(taggers)} run(s) in {seconds:.1f} s")
    out = args.out or (args.runs[0] if args.runs[0].is_dir() else args.runs[0].parent) / "evaluation"
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "metrics.json") as part:
        Path(part).write_text(
            json.dumps({"file": args.file.name, "runs": names, "seconds": seconds, **numbers}, indent=1)
        )
    for name, figure in figures(names, scored).items():
        (out / f"{name}.png").write_bytes(plots.to_png(figure))
    print(f"metrics.json and plots: {out}")


def run_names(paths: list[Path]) -> list[str]:
    """The last part of each path, or all of it as given where another run has the same. One run twice: ValueError."""
    twice = [path for path, n in Counter(_checkpoint(path).resolve() for path in paths).items() if n > 1]
    if twice:
        raise ValueError(f"evaluate: every run must be given once, got {twice[0]} several times; leave it out")
    count = Counter(path.name for path in paths)
    return [path.name if path.name and count[path.name] == 1 else str(path) for path in paths]


def _checkpoint(path: Path) -> Path:
    return path / "best.safetensors" if path.is_dir() else path


def score_file(taggers: list[Any], path: Path) -> Scored:
    """Score every jet of a file, chunk by chunk. ValueError, before any is scored, without jets of both classes."""
    signal = {tagger.signal for tagger in taggers}
    if len(signal) > 1:
        raise ValueError(f"evaluate: all runs must have one signal class, got {sorted(signal)}; evaluate them apart")
    _check_classes(path, taggers[0].signal)
    scores, labels, masses = [], [], []
    some: list[Jets] = []
    room = [IMAGE_JETS, IMAGE_JETS]
    with bar() as advance:
        for jets in io.iter_read(path, chunk=CHUNK):
            label = (jets.labels["label"] == taggers[0].signal).astype(np.int64)
            scores.append(np.stack([models.score(tagger, jets) for tagger in taggers]))
            labels.append(label)
            masses.append(kinematics(jet_p4(jets)).mass)
            plain = Jets(jets.p4, jets.offsets, {}, {"label": label})
            for k in (0, 1):
                some.append(plain[np.flatnonzero(label == k)[: room[k]]])
                room[k] -= len(some[-1])
            advance(len(jets))
    return Scored(np.concatenate(scores, 1), np.concatenate(labels), np.concatenate(masses), Jets.concatenate(some))


def _check_classes(path: Path, signal: int) -> None:
    """Read on until jets of both classes have come: one chunk, unless the file is sorted."""
    found: set[int] = set()
    for jets in io.iter_read(path, chunk=CHUNK, columns=()):
        if "label" not in jets.labels:
            raise ValueError(f"evaluate: {path} must have a label 'label', got {list(jets.labels)}; add the classes")
        found |= set(jets.labels["label"].tolist())
        if signal in found and len(found) > 1:
            return
    raise ValueError(
        f"evaluate: {path} must hold signal (label {signal}) and background, got labels {sorted(found)[:5]}; "
        "give a file with both"
    )


def summary(scored: Scored, *, ensembles: bool = True) -> dict[str, Any]:
    """All numbers of an evaluation, ready for JSON (infinite ones become null); `ensembles` where runs are several."""
    result: dict[str, Any] = {"jets": scored.label.size, "signal": int(scored.label.sum()), "single_runs": []}
    for score in scored.scores:
        entry: dict[str, Any] = {
            "auc": metrics.auc(score, scored.label),
            "accuracy": metrics.accuracy(score, scored.label),
        }
        for efficiency in EFFICIENCIES:
            entry[f"rejection_{efficiency}"] = _plain(metrics.background_rejection(score, scored.label, efficiency))
        entry["jsd_0.5"] = _plain(metrics.jsd(score, scored.label, scored.mass))
        result["single_runs"].append(entry)
    if ensembles and len(scored.scores) > 1:
        result["ensembles"] = {
            str(efficiency): _plain(metrics.ensemble(scored.scores, scored.label, efficiency))
            for efficiency in EFFICIENCIES
        }
    return result


def _plain(value: Any) -> Any:
    """Named tuples as dictionaries, infinite numbers as None."""
    if hasattr(value, "_asdict"):
        return {key: _plain(entry) for key, entry in value._asdict().items()}
    return value if isinstance(value, int) else float(value) if np.isfinite(value) else None


def table(names: list[str], numbers: dict[str, Any]) -> str:
    """The printed form of `summary`."""
    width = max(24, *map(len, names))
    lines = [
        f"{numbers['jets']:,} jets, {numbers['signal']:,} signal",
        f"{'':{width}s} {'AUC':>8s} {'accuracy':>9s} "
        f"{'1/eps_B at eps_S=0.3':>22s} {'at 0.5':>16s} {'1/JSD50 of mass':>18s}",
    ]
    for name, entry in zip(names, numbers["single_runs"]):
        cells = [_rejection(entry[f"rejection_{efficiency}"]) for efficiency in EFFICIENCIES]
        cells.append(_inverse(entry["jsd_0.5"]))
        lines.append(
            f"{name:{width}s} {entry['auc']:8.4f} {entry['accuracy']:9.4f} "
            f"{cells[0]:>22s} {cells[1]:>16s} {cells[2]:>18s}"
        )
    for kind in ("single", "mean", "median") if "ensembles" in numbers else ():
        found = [numbers["ensembles"][str(efficiency)][kind] for efficiency in EFFICIENCIES]
        cells = ["inf" if e["value"] is None else f"{e['value']:.0f} +- {_spread(e['spread'])}" for e in found]
        lines.append(f"{kind + ' (+- spread)':{width}s} {'':8s} {'':9s} {cells[0]:>22s} {cells[1]:>16s}")
    return "\n".join(lines)


def _spread(spread: float | None) -> str:
    return "inf" if spread is None else f"{spread:.0f}"


def _rejection(r: dict[str, Any]) -> str:
    return f"> {r['lower_limit']:.0f} (68%)" if r["value"] is None else f"{r['value']:.0f} +- {r['error']:.0f}"


def _inverse(jsd: dict[str, Any]) -> str:
    """1/JSD +- error; a limit where JSD is not above what equal shapes give, "-" where too few jets are in range."""
    if not jsd["floor"]:
        return "-"
    if jsd["value"] <= jsd["floor"]:
        return f"> {1 / jsd['floor']:.3g} (floor)"
    return f"{1 / jsd['value']:.3g} +- {jsd['error'] / jsd['value'] ** 2:.2g}"


def figures(names: list[str], scored: Scored) -> dict[str, Any]:
    """name -> figure: ROC, average images, scores and mass sculpting (the last two of the first run)."""
    first = scored.scores[0]
    return {
        "roc": plots.roc_curves({name: (score, scored.label) for name, score in zip(names, scored.scores)}),
        "images": plots.average_images(scored.some),
        "scores": plots.score_histogram(first, scored.label),
        "sculpting": plots.mass_sculpting(first, scored.label, scored.mass),
    }
