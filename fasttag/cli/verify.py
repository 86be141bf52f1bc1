"""Set a tagger's AUC, accuracy and 1/eps_B on the public top-tagging test file beside the published numbers.

The tagger is a checkpoint, of fasttag or of weaver-core, or a file of scores in the order of the jets. Errors are
statistical; published errors are the spread of trainings. A difference is in standard deviations, of both errors and
of the rounding of what was published: "agrees" is at most 3 in every number, "agrees as far as compared" where a
rejection could not be, as too little background passed: of that there is a lower limit, at 68%.
"""

from __future__ import annotations

import argparse
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import io, metrics, models
from ..errors import FormatError
from . import _checkpoint
from ._bar import bar

CHUNK = 16384
# of the public test file
JETS, TOPS = 404_000, 202_086
AGREES = 3.0
HEADS = ("AUC", "accuracy", "1/eps_B at eps_S=0.3", "at 0.5")


class Published(NamedTuple):
    """Numbers as printed in a paper, "-" where it has none; `model` is the name of fasttag's tagger, if it has one."""

    tagger: str
    model: str
    paper: str
    auc: str
    accuracy: str
    rejection_30: str
    rejection_50: str


class Number(NamedTuple):
    """A value with its statistical error; where it is infinite, what it is above at 68%."""

    value: float
    error: float
    lower_limit: float = 0.0


# of 1902.09914 the column "single"; errors are the spread of trainings
PUBLISHED = (
    Published("CNN", "cnn", "1902.09914", "0.981", "0.930", "914 +- 14", "-"),
    Published("ResNeXt-50", "", "1902.09914", "0.984", "0.936", "1122 +- 47", "-"),
    Published("TopoDNN", "", "1902.09914", "0.972", "0.916", "295 +- 5", "-"),
    Published("N-subjettiness, 6", "", "1902.09914", "0.979", "0.922", "792 +- 18", "-"),
    Published("N-subjettiness, 8", "", "1902.09914", "0.981", "0.929", "867 +- 15", "-"),
    Published("TreeNiN", "", "1902.09914", "0.982", "0.933", "1025 +- 11", "-"),
    Published("P-CNN", "", "1902.09914", "0.980", "0.930", "732 +- 24", "-"),
    Published("ParticleNet", "particlenet", "1902.09914", "0.985", "0.938", "1298 +- 46", "-"),
    Published("LBN", "", "1902.09914", "0.981", "0.931", "836 +- 17", "-"),
    Published("LoLa", "", "1902.09914", "0.980", "0.929", "722 +- 17", "-"),
    Published("LDA", "", "1902.09914", "0.955", "0.892", "151 +- 0.4", "-"),
    Published("EFP", "", "1902.09914", "0.980", "0.932", "384", "-"),
    Published("EFN", "efn", "1902.09914", "0.979", "0.927", "633 +- 31", "-"),
    Published("PFN", "pfn", "1902.09914", "0.982", "0.932", "891 +- 18", "-"),
    Published("GoaT", "", "1902.09914", "0.985", "0.939", "1368 +- 140", "-"),
    Published("P-CNN", "", "1902.08570", "0.9803", "0.930", "759 +- 24", "201 +- 4"),
    Published("ParticleNet-Lite", "particlenet_lite", "1902.08570", "0.9844", "0.937", "1262 +- 49", "325 +- 5"),
    Published("ParticleNet", "particlenet", "1902.08570", "0.9858", "0.940", "1615 +- 93", "397 +- 7"),
    Published("LorentzNet", "", "2201.08187", "0.9868", "0.942", "2195 +- 173", "498 +- 18"),
    Published("ParticleNet, fine-tuned", "particlenet", "2202.03772", "0.9866", "0.942", "1771 +- 80", "487 +- 9"),
    Published("ParT", "particle_transformer", "2202.03772", "0.9858", "0.940", "1602 +- 81", "413 +- 16"),
    Published("ParT, fine-tuned", "particle_transformer", "2202.03772", "0.9877", "0.944", "2766 +- 130", "691 +- 15"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, help="the public test file; with --scores also .npy or .npz of labels, 1 = top"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, help="of fasttag, or weaver-core's .pt with --classes and --signal")
    what.add_argument("--scores", type=Path, help=".npy or .npz of one score per jet, the probability of top")
    _checkpoint.arguments(parser)


def run(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    if args.scores:
        name, score, label = args.model, _array(args.scores), _labels(args.file)
    else:
        tagger = _checkpoint.load(args, args.checkpoint)
        name = tagger.name
        score, label = _scored(tagger, args.file)
    numbers = measured(score, label)
    rows = [row for row in PUBLISHED if row.model == name] or PUBLISHED
    print(f"{label.size:,} jets, {int(label.sum()):,} top")
    if (label.size, int(label.sum())) != (JETS, TOPS):
        print(f"not the public test file, which has {JETS:,} jets, {TOPS:,} top: expect other numbers")
    print(table((args.scores or args.checkpoint).name, numbers, rows))
    if numbers[0][0] < 0.5:
        print("the AUC is below 0.5: background has the higher scores; is another of --classes the --signal?")
    if args.checkpoint:
        print(f"scored in {time.perf_counter() - start:.1f} s")


def _scored(tagger: Any, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Score and label (1 = top) of every jet, chunk by chunk, whatever number the tagger gives its signal."""
    scores, labels = [], []
    with bar() as advance:
        for jets in io.iter_read(path, chunk=CHUNK):
            labels.append(_label(jets, path))
            scores.append(models.score(tagger, jets))
            advance(len(jets))
    return np.concatenate(scores), np.concatenate(labels)


def _labels(path: Path) -> np.ndarray:
    if path.suffix in (".npy", ".npz"):
        return _array(path)
    return np.concatenate([_label(jets, path) for jets in io.iter_read(path, chunk=CHUNK, columns=())])


def _label(jets: Any, path: Path) -> np.ndarray:
    if "label" not in jets.labels:
        raise ValueError(f"verify: {path} must have a label 'label', got {list(jets.labels)}; 1 is top")
    return jets.labels["label"]


def _array(path: Path) -> np.ndarray:
    """The one array of an .npy or .npz file."""
    try:
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
            arrays = [found] if isinstance(found, np.ndarray) else list(found.values())
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path}: cannot be read as .npy or .npz: {error}") from error
    if len(arrays) != 1:
        raise FormatError(f"{path}: must hold one array, got {len(arrays)}; save the one that is meant")
    return arrays[0]


def measured(score: np.ndarray, label: np.ndarray) -> list[Number]:
    """AUC, accuracy and 1/eps_B at both efficiencies."""
    accuracy = metrics.accuracy(score, label)
    rejections = [metrics.background_rejection(score, label, efficiency) for efficiency in (0.3, 0.5)]
    return [
        Number(metrics.auc(score, label), metrics.auc_error(score, label)),
        Number(accuracy, (accuracy * (1 - accuracy) / label.size) ** 0.5),
        *(Number(rejection.value, rejection.error, rejection.lower_limit) for rejection in rejections),
    ]


def differences(numbers: list[Number], row: Published) -> list[float | None]:
    """In standard deviations, None where nothing is published or no background passed."""
    found: list[float | None] = []
    for (value, error, _), printed in zip(numbers, row[3:]):
        published, _, spread = printed.partition(" +- ")
        if published == "-" or not np.isfinite(value):
            found.append(None)
            continue
        rounding = 10.0 ** -len(published.partition(".")[2]) / 12**0.5
        found.append((value - float(published)) / (error**2 + float(spread or 0) ** 2 + rounding**2) ** 0.5)
    return found


def table(name: str, numbers: list[Number], rows: Any) -> str:
    """The tagger's numbers, then for each published row its numbers, the differences and what they come to."""
    titles = [f"{row.tagger}, arXiv:{row.paper}" for row in rows]
    width = max(len(name), *map(len, titles))
    line = lambda title, cells: f"{title:{width}s} " + " ".join(f"{cell:>20s}" for cell in cells)
    own = [
        f"{value:.{digits}f} +- {error:.{digits}f}" if np.isfinite(value) else f"> {limit:.0f} (68%)"
        for (value, error, limit), digits in zip(numbers, (5, 4, 0, 0))
    ]
    lines = [line("", HEADS), line(name, own)]
    for title, row in zip(titles, rows):
        sigmas = differences(numbers, row)
        differs = any(sigma is not None and abs(sigma) > AGREES for sigma in sigmas)
        partly = any(sigma is None and printed != "-" for sigma, printed in zip(sigmas, row[3:]))
        verdict = "differs" if differs else "agrees as far as compared" if partly else "agrees"
        lines.append(line(title, row[3:]))
        cells = ["-" if sigma is None else f"{sigma:+.1f} sigma" for sigma in sigmas]
        lines.append(line(f"  {verdict}", cells))
    return "\n".join(lines)
