"""One run: check, then time in alternating rounds; ceilings of the machine measured in the same run. See README.md."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import on_gpu
import peers
import problems
import render
from on_gpu import compare_on_gpu, gpu  # noqa: F401, fixtures
from timing import seconds_of, torch_threads

HERE = Path(__file__).resolve().parent
SECONDS, ROUNDS = 4.0, (7, 60)  # per row: time to spend, rounds at least and at most
WARM = 0.3  # seconds of rounds that are not timed: code that runs seldom is slow at first, ours and theirs


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="one round of everything on a small problem, nothing saved")
    parser.addoption("--save", action="store_true", help="write results/<machine>.json if every benchmark passed")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.stash[RESULTS] = {"machine": {}, "ceilings": {}, "rows": []}


RESULTS = pytest.StashKey[dict[str, Any]]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    results = session.config.stash[RESULTS]
    if session.config.option.save and exitstatus == 0 and results["rows"]:
        (HERE / "results").mkdir(exist_ok=True)
        path = HERE / "results" / f"{results['machine']['slug']}.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
    found = session.config.stash.get(on_gpu.GPU, None)
    if session.config.option.save and exitstatus == 0 and found:
        on_gpu.save(found)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available() and os.environ.get("FASTTAG_REQUIRE_GPU") != "1":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[RESULTS]["rows"] and not config.option.smoke:
        terminalreporter.write_line(render.terminal(config.stash[RESULTS]))
    if found := config.stash.get(on_gpu.GPU, None):
        terminalreporter.write_line(on_gpu.table(found))


@pytest.fixture(scope="session")
def smoke(request: pytest.FixtureRequest) -> bool:
    return request.config.option.smoke


@pytest.fixture(scope="session")
def problem(smoke: bool) -> Callable[[str], problems.Problem]:
    """A problem by name."""
    return lambda name: problems.problem("small" if smoke else name)


@pytest.fixture(scope="session")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Child | None]:
    """The process of the peers, None where they are not installed."""
    found = peers.Child.start(tmp_path_factory.mktemp("peers"))
    yield found
    if found:
        found.close()


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest, child: peers.Child | None) -> dict[str, Any]:
    """What ran where."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    cpu = named[1] if named else platform.processor() or platform.machine()
    cores = os.cpu_count() or 1
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    found = {
        "slug": re.sub(r"[^a-z0-9]+", "-", f"{cpu.replace('(R)', '')} {cores} cores".lower()).strip("-"),
        "cpu": cpu,
        "cores": cores,
        "device": "cpu",
        "system": f"{platform.system()} {platform.machine()}",
        "commit": git.stdout.strip(),
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("numpy", "numba", "torch")}
        | {name: child.version(name) for name in ("EnergyFlow", "dcor", "pandas", "weaver-core") if child},
    }
    request.config.stash[RESULTS]["machine"] = found
    return found


@pytest.fixture(scope="session")
def ceilings(request: pytest.FixtureRequest, smoke: bool) -> dict[str, float]:
    """What this machine can do now, medians like all other times: GB/s and GFLOP/s.

    copy : memory to memory on one core, bytes read and bytes written both counted.
    fresh : filling memory just obtained from the system, bytes written counted once: what an allocated output costs.
    sgemm_1, sgemm_2 : float32 matrix products with one and two threads.
    """
    floats, size, repeats = (1 << 18, 128, 1) if smoke else (1 << 26, 2048, 7)
    source, target = np.ones(floats, np.float32), np.zeros(floats, np.float32)
    a, b, c = torch.ones(3, size, size)

    def usual(function: Callable[[], Any]) -> float:
        return statistics.median(seconds_of(function) for _ in range(repeats))

    def fill() -> None:
        np.empty(floats // 6, np.float32).fill(1)  # 45 MB, like the images of 10,000 jets

    found = {"copy": 2e-9 * source.nbytes / usual(lambda: np.copyto(target, source))}
    found["fresh"] = 4e-9 * (floats // 6) / usual(fill)
    for threads in (1, 2):
        with torch_threads(threads):
            found[f"sgemm_{threads}"] = 2e-9 * size**3 / usual(lambda: torch.mm(a, b, out=c))
    request.config.stash[RESULTS]["ceilings"] = found
    return found


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest, machine: dict, ceilings: dict, smoke: bool) -> Callable:
    """Time ours and the peers in alternating rounds and note the row; the caller has checked the result."""

    def run(
        op: str,
        shape: str,
        case: str,
        p: problems.Problem,
        ours: Callable[[], Any],
        others: dict[str, tuple[Callable[[], float] | None, int]],
        *,
        bytes: float = 0,
        flops: float = 0,
        threads: int = 1,
        target: dict[str, Any] | None = None,
        **notes: Any,
    ) -> None:
        """`others`: name -> (a round in seconds, or None where not installed; its jets). bytes, flops: per jet."""
        times: dict[str, list[float]] = {name: [] for name in others}

        def round_of_others() -> None:
            for name, (seconds, _) in others.items():
                if seconds:
                    times[name].append(seconds())

        one_round = seconds_of(ours) + seconds_of(round_of_others)
        for _ in range(0 if smoke else int(np.clip(WARM / one_round, 1, ROUNDS[1]))):
            ours()
            round_of_others()
        for seconds in times.values():
            seconds.clear()
        rounds = 1 if smoke else int(np.clip(SECONDS / one_round, *ROUNDS))
        benchmark.group = f"{op}|{shape}"
        benchmark.pedantic(ours, setup=round_of_others, rounds=rounds, iterations=1)
        us = 1e6 * benchmark.stats.stats.median / p.jets
        limit = 1e-3 * bytes / ceilings["copy"] + (1e-3 * flops / ceilings[f"sgemm_{threads}"] if flops else 0)
        compared = {
            name: {"us": 1e6 * statistics.median(times[name]) / jets} if times[name] else None
            for name, (_, jets) in others.items()
        }
        for found in compared.values():
            if found:
                found["ratio"] = found["us"] / us
        row = {
            "op": op,
            "problem": shape,
            "case": case,
            "jets": p.jets,
            "constituents": p.constituents,
            "dtype": "float32",
            "threads": threads,
            "rounds": rounds,
            "us": us,
            "jets_per_s": 1e6 / us,
            "bytes": bytes,
            "GB_per_s": 1e-3 * bytes / us,
            "flops": flops,
            "limit_us": limit,
            "share": limit / us,
            "peers": compared,
            "target": target or {},
            "checked": True,
            **notes,
        }
        benchmark.extra_info.update(row, **machine, ceilings=ceilings)
        request.config.stash[RESULTS]["rows"].append(row)

    return run
