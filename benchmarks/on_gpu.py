"""Timing on a GPU: the machine and its ceilings, one row per case, a table, JSON and a page of results."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RESULTS = Path(__file__).resolve().parent / "results"
GPU = pytest.StashKey[dict[str, Any]]()
PAUSE = 2_000_000  # cycles, about a millisecond
LANES = 128  # float32 operations that a multiprocessor begins per cycle


@pytest.fixture(scope="session")
def gpu(request: pytest.FixtureRequest, smoke: bool) -> dict[str, Any]:
    """What ran where, and what the GPU can do: GB/s of a copy, read and written both counted, Ginstr/s at its clock."""
    torch, cupy = importlib.import_module("torch"), importlib.import_module("cupy")
    properties = torch.cuda.get_device_properties(0)
    source = torch.ones(1 << (20 if smoke else 28), device="cuda")
    target = torch.zeros_like(source)
    seconds = [event_seconds(lambda: target.copy_(source)) for _ in range(12)]
    khz = cupy.cuda.Device(0).attributes["ClockRate"]
    found = {
        "gpu": properties.name,
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "versions": {"numpy": np.__version__, "torch": torch.__version__, "cupy": cupy.__version__},
        "commit": _said("git", "describe", "--always", "--dirty"),
        "date": date.today().isoformat(),
        "ceilings": {
            "copy": 2e-9 * source.nbytes / statistics.median(seconds[2:]),
            "Ginstr": 1e-6 * properties.multi_processor_count * LANES * khz,
        },
        "rows": [],
    }
    request.config.stash[GPU] = found
    return found


def _said(*command: str) -> str:
    """The first line that a command prints, "not known" where there is none."""
    if not shutil.which(command[0]):
        return "not known"
    done = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or ["not known"])[0]


def event_seconds(function: Callable[[], Any]) -> float:
    """What one call takes on the GPU: it is put behind a pause, so that Python has done its part when it begins."""
    torch = importlib.import_module("torch")
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(PAUSE)
    begin.record()
    result = function()
    end.record()
    end.synchronize()
    del result
    return 1e-3 * begin.elapsed_time(end)


def wall_seconds(function: Callable[[], Any]) -> float:
    """What one call takes on the clock, from a GPU without work to one that is done."""
    torch = importlib.import_module("torch")
    torch.cuda.synchronize()
    begin = time.perf_counter()
    result = function()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    del result
    return seconds


@pytest.fixture
def compare_on_gpu(benchmark: Any, gpu: dict, smoke: bool) -> Callable:
    """Time ours and the peers in alternating rounds and note the row; the caller has checked the result."""

    def run(
        op: str,
        case: str,
        jets: int,
        ours: Callable[[], Any],
        others: dict[str, tuple[Callable[[], Any] | None, int]] | None = None,
        *,
        bytes: float = 0,
        instructions: float = 0,
        target_ns: float | None = None,
        on_the_clock: bool = False,
    ) -> None:
        """`others`: name -> (a call, or None where not installed; its jets). bytes, instructions: per jet or point."""
        others = others or {}
        once = wall_seconds if on_the_clock else event_seconds
        functions = {"": ours, **{name: function for name, (function, _) in others.items() if function}}
        for function in functions.values():
            once(function)
            once(function)
        rounds = 1 if smoke else 5 if on_the_clock else 20
        times: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(rounds):
            for name, function in functions.items():
                times[name].append(once(function))
        benchmark.pedantic(lambda: once(ours), rounds=1)
        wall = statistics.median(wall_seconds(ours) for _ in range(1 if smoke else 5))
        ns = 1e9 * statistics.median(times[""]) / jets
        compared: dict[str, dict[str, float] | None] = dict.fromkeys(others)
        for name, (function, n) in others.items():
            if function:
                theirs = 1e9 * statistics.median(times[name]) / n
                compared[name] = {"ns": theirs, "ratio": theirs / ns}
        copy_ns, issue_ns = bytes / gpu["ceilings"]["copy"], instructions / gpu["ceilings"]["Ginstr"]
        row = {
            "op": op,
            "case": case,
            "jets": jets,
            "ns": ns,
            "wall_ns": 1e9 * wall / jets,
            "GB_per_s": bytes / ns,
            "Ginstr_per_s": instructions / ns,
            "share_of_copy": copy_ns / ns,
            "share_of_instructions": issue_ns / ns,
            "peers": compared,
            "target_ns": target_ns,
            "checked": True,
        }
        gpu["rows"].append(row)

    return run


def table(found: dict[str, Any]) -> str:
    """Markdown: what the page of results and the terminal show."""
    lines = [
        f"{found['gpu']}, driver {found['driver']}, {_listed(found['versions'])}, commit {found['commit']}, "
        f"{found['date']}; copy {found['ceilings']['copy']:.0f} GB/s, {found['ceilings']['Ginstr']:.0f} Ginstr/s at "
        "its clock. Medians of CUDA events, float32; results checked in the same run.",
        "",
        "| case | jets | ns per jet | on the clock | GB/s | of copy | Ginstr/s | of issue | compared with (ns per jet) "
        "| target |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|---|",
    ]
    for row in found["rows"]:
        peers = "; ".join(
            f"{name} {peer['ns']:.3g} ({peer['ratio']:.3g}x)" if peer else f"{name}: not installed"
            for name, peer in row["peers"].items()
        )
        target = row["target_ns"]
        met = "–" if target is None else f"{target:.3g}: {'met' if row['ns'] <= target else 'MISSED'}"
        lines.append(
            f"| `{row['op']}` {row['case']} | {row['jets']:,} | {row['ns']:.3g} | {row['wall_ns']:.3g} | "
            f"{row['GB_per_s']:.0f} | {100 * row['share_of_copy']:.0f} % | {row['Ginstr_per_s']:.0f} | "
            f"{100 * row['share_of_instructions']:.0f} % | {peers or '–'} | {met} |"
        )
    return "\n".join(lines)


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def save(found: dict[str, Any]) -> None:
    """results/<gpu>.md and the same as JSON beside it."""
    name = re.sub(r"[^a-z0-9]+", "-", found["gpu"].lower().removeprefix("nvidia ")).strip("-")
    (RESULTS / "gpu").mkdir(parents=True, exist_ok=True)
    (RESULTS / "gpu" / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(f"# {found['gpu']}\n\n{table(found)}\n")
