"""The main job on the shipped jets: read, time preprocessing, train a PFN, evaluate, write an HTML report."""

from __future__ import annotations

import argparse
import base64
import dataclasses
import datetime
import html
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import __version__, _baselines, features, interop, io, models, plots, training
from .._files import replacing
from ..jets import Jets
from ..ops import (
    distance_correlation,
    jet_p4,
    kinematics,
    knn,
    pad,
    pairwise_features,
    pixelate,
    segment,
    standardize,
)
from .evaluate import figures, score_file, summary, table

LENGTH = 128
SOME = 1000  # jets for what the plain form needs a matrix of jets for
SETTINGS = training.Settings(epochs=150, batch_size=128, lr=1e-3, patience=40)


class Timing(NamedTuple):
    """Microseconds per jet of an operation and of the strongest plain form, in alternating rounds."""

    operation: str
    plain: str
    ours_us: float
    plain_us: float


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("fasttag-demo"), help="folder for the run and report.html")
    parser.add_argument("--epochs", type=int, default=SETTINGS.epochs, help=f"at most (default {SETTINGS.epochs})")


def run(args: argparse.Namespace) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=args.epochs)
    for module in ("torch", "safetensors", "tqdm", "matplotlib"):
        interop.require(module)
    start = time.perf_counter()
    jets = io.read(io.sample_path())
    seconds = time.perf_counter() - start
    size = io.sample_path().stat().st_size
    constituents = int(jets.counts.sum())
    read = (
        f"{len(jets):,} simulated jets, {int(jets.labels['label'].sum()):,} of them top, {constituents:,} constituents,"
        f" read and checked in {seconds * 1e3:.0f} ms ({size / 1e6:.1f} MB on disk)"
    )
    print(read)

    timings = measure(jets)
    print("\n" + speed_table(timings))

    args.out.mkdir(parents=True, exist_ok=True)
    train, val, test = jets[:2800], jets[2800:3200], jets[3200:]
    print(f"\ntraining a PFN on {len(train):,} jets, validating on {len(val):,}, testing on {len(test):,}")
    for name in ("last.safetensors", "best.safetensors", "history.json"):
        (args.out / name).unlink(missing_ok=True)
    start = time.perf_counter()
    model = training.fit("pfn", train, val, args.out, settings)
    trained = f"trained in {time.perf_counter() - start:.0f} s"
    io.write(args.out / "test.h5", test)
    scored = score_file([model], args.out / "test.h5")
    numbers = summary(scored)
    print(f"{trained}\n\n{table(['PFN'], numbers)}")
    report = args.out / "report.html"
    history = training.read_tensors(args.out / "last.safetensors")[1]["history"]
    pictures = {"history": plots.history(history), **figures(["PFN"], scored._replace(some=jets))}
    with replacing(report) as part:
        Path(part).write_text(
            page(read, timings, f"{trained} on {len(train):,} jets", table(["PFN"], numbers), pictures)
        )
    print(f"\nreport: {report}")


def measure(jets: Jets) -> list[Timing]:
    """Time operations against their plain forms on one thread; a result that differs raises before it is timed."""
    torch = interop.require("torch")
    jets = jets[(jets.counts > 0) & (jets.counts <= LENGTH)]
    k = kinematics(jets)
    offsets = jets.offsets
    values = np.random.default_rng(1).standard_normal((jets.p4.shape[1], 64), np.float32)
    model = models.build("pfn").eval()
    inputs = features.energy_flow(jets.to(library="torch"))
    some = inputs._replace(x=inputs.x[: offsets[512]], offsets=inputs.offsets[:513], offsets_host=offsets[:513])
    padded, valid = map(torch.from_numpy, pad(some.x.numpy().T, some.offsets_host, LENGTH))

    def ours() -> Any:
        with torch.inference_mode():
            return model(some)

    def plain() -> Any:
        with torch.inference_mode():
            return _baselines.pfn(model, padded, valid)

    everything, angles = len(jets), (k.pt, k.eta, k.phi, offsets)
    phi = k.phi - np.repeat(k.phi[offsets[:-1]], jets.counts)  # in the plain form it must not wrap
    points = np.stack([k.eta, phi - 2 * np.pi * np.floor((phi + np.pi) / (2 * np.pi))], 1).astype(np.float32)
    slots, filled = map(torch.from_numpy, pad(points.T, offsets, LENGTH))
    tensors = torch.from_numpy(jets.p4), torch.from_numpy(offsets)
    center, scale, low, high = (np.full(4, x, np.float32) for x in (10.0, 0.05, -5.0, 5.0))
    mass, n = kinematics(jet_p4(jets)).mass[:SOME], jets.counts[:SOME].astype(np.float32)
    one = torch.ones(len(n))
    cases: list[tuple[str, str, int, Callable, Callable, float, Callable]] = [
        (
            "kinematics",
            "NumPy",
            everything,
            lambda: kinematics(jets),
            lambda: _baselines.kinematics(jets.p4),
            1e-6,
            _list,
        ),
        (
            "segment, 64 channels",
            "np.add.reduceat",
            everything,
            lambda: segment(values, offsets),
            lambda: _baselines.segment(values, offsets),
            1e-5,
            _list,
        ),
        (
            f"pad to {LENGTH}",
            "NumPy boolean scatter",
            everything,
            lambda: pad(jets.p4, offsets, LENGTH),
            lambda: _baselines.pad(jets.p4, offsets, LENGTH),
            0,
            _list,
        ),
        (
            "pixelate 40x40",
            "np.bincount, whole batch",
            everything,
            lambda: pixelate(*angles)[:, 0],
            lambda: _baselines.pixelate(*angles),
            1e-6,
            _list,
        ),
        (
            "knn in (eta, phi), k = 16",
            f"torch.cdist and topk, padded to {LENGTH}",
            everything,
            lambda: knn(points, offsets=offsets, periodic=1),
            lambda: _baselines.knn(slots, filled, 16),
            1e-5,
            lambda graph: [_distances(points, offsets, graph)],  # ties may come in any order
        ),
        (
            "pairwise_features",
            "torch, list of pairs",
            everything,
            lambda: pairwise_features(jets),
            lambda: _baselines.pairwise_features(*tensors),
            1e-5,
            lambda features: list(np.exp(np.asarray(features))),  # ln m^2 of the plain form is noise where m^2 is small
        ),
        (
            f"distance_correlation, {SOME}",
            "torch, n x n matrices",
            SOME,
            lambda: distance_correlation(mass, n),
            lambda: _baselines.distance_correlation(torch.from_numpy(mass), torch.from_numpy(n), one),
            1e-5,
            _list,
        ),
        (
            f"standardize to {LENGTH}",
            "NumPy, one scatter",
            everything,
            lambda: standardize(jets.p4, offsets, LENGTH, center=center, scale=scale, low=low, high=high),
            lambda: _baselines.standardize(jets.p4, offsets, LENGTH, center, scale, low, high),
            0,
            _list,
        ),
        ("PFN forward, 512 jets", f"torch, padded to {LENGTH}", 512, ours, plain, 1e-5, _list),
    ]
    # several torch threads on a busy machine would time their barriers
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_compare(*case) for case in cases]
    finally:
        torch.set_num_threads(threads)


def _compare(
    name: str, plain_name: str, jets: int, ours: Callable, plain: Callable, atol: float, arrays: Callable
) -> Timing:
    """`arrays` makes comparable arrays of a result."""
    for a, b in zip(arrays(ours()), arrays(plain()), strict=True):
        scale = max(1.0, float(np.abs(b).max()))
        wrong = float(np.mean(np.abs(np.asarray(a, np.float64) - b) > atol * scale))
        if wrong > 1e-4:  # a constituent on a pixel edge or at the clamp of m^2 may fall either way
            raise ArithmeticError(f"demo: {name} differs from {plain_name} in {wrong:.2%} of its elements")
    rounds: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while len(rounds) < 5 or (len(rounds) < 50 and time.perf_counter() - begin < 2.0):
        rounds.append((_seconds(ours), _seconds(plain)))
    mine, theirs = (statistics.median(column) * 1e6 / jets for column in zip(*rounds))
    return Timing(name, plain_name, mine, theirs)


def _list(result: Any) -> list[np.ndarray]:
    return [np.asarray(part) for part in (result if isinstance(result, tuple) else (result,))]


def _distances(points: np.ndarray, offsets: np.ndarray, graph: Any) -> np.ndarray:
    """Squared distances to the neighbours: of jets (N, k), or padded (J, L, k); 0 where there are none."""
    graph, counts = np.asarray(graph), np.diff(offsets)
    first = np.repeat(offsets[:-1], counts)[:, None]
    if graph.ndim == 3:
        graph = graph[np.arange(graph.shape[1]) < counts[:, None]]
    real = (graph >= 0) & (np.arange(graph.shape[1]) < np.repeat(counts, counts)[:, None] - 1)
    return np.where(real, np.square(points[np.where(real, graph, 0) + first] - points[:, None]).sum(2), 0)


def _seconds(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def speed_table(timings: list[Timing]) -> str:
    """Operations, microseconds per jet and the ratio."""
    lines = [f"{'operation':26s} {'fasttag':>12s} {'plain form':>12s} {'ratio':>7s}   against"]
    for t in timings:
        lines.append(
            f"{t.operation:26s} {t.ours_us:9.2f} us {t.plain_us:9.2f} us {t.plain_us / t.ours_us:6.1f}x   {t.plain}"
        )
    return "\n".join([*lines, "per jet, float32, one thread; medians of alternating rounds"])


CAPTIONS = {
    "history": "Loss and AUC per epoch.",
    "roc": "Background rejection against signal efficiency; bands are statistical errors.",
    "images": "Average preprocessed jet images: centred, rotated, flipped, normalised.",
    "scores": "Score of signal and background.",
    "sculpting": "Jet mass of the background before and after cuts on the score.",
}


def page(read: str, timings: list[Timing], trained: str, numbers: str, pictures: dict[str, Any]) -> str:
    """One HTML page with everything inside it."""
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}"
    )
    rows = "".join(
        f"<tr><td>{html.escape(t.operation)}</td><td>{t.ours_us:.2f}</td><td>{t.plain_us:.2f}</td>"
        f"<td>{t.plain_us / t.ours_us:.1f}x</td><td>{html.escape(t.plain)}</td></tr>"
        for t in timings
    )
    images = "".join(
        f'<figure><img alt="{CAPTIONS[name]}" src="data:image/png;base64,'
        f'{base64.b64encode(plots.to_png(figure)).decode()}"><figcaption>{CAPTIONS[name]}</figcaption></figure>'
        for name, figure in pictures.items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>fasttag demo</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }}
td, th {{ padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right }}
td:first-child, th:first-child, td:last-child, th:last-child {{ text-align: left }}
pre {{ background: #f6f6f6; padding: .8rem; overflow-x: auto }} img {{ max-width: 100%; max-height: 27rem }}
figure {{ margin: 1.5rem 0 }}
</style></head><body>
<h1>fasttag {__version__} demo</h1>
<p>{when}; {html.escape(machine)}</p>
<p>{html.escape(read)}</p>
<h2>Speed</h2>
<table>
<tr><th>operation</th><th>fasttag, us/jet</th><th>plain form, us/jet</th><th>ratio</th><th>against</th></tr>
{rows}
</table>
<p>float32, results compared before timing, medians of alternating rounds; one thread.</p>
<h2>A PFN in a minute</h2>
<p>{html.escape(trained)}. With 2,800 training jets this shows that everything works, not how good a PFN can be.</p>
<pre>{html.escape(numbers)}</pre>
{images}
</body></html>
"""
