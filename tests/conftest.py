"""Markers that skip at collection, with a reason, and a count of what ran and what was skipped per marker."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from children import PEERS

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
COUNTED = ("shared", "gpu", "slow", "soak", "peers", "interpreter", "sanitizer")


def _gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {
        "shared": "" if (SHARED / "data").is_dir() else "the shared data folder is not there",
        "sanitizer": "" if shutil.which("g++") else "no g++",
        "peers": "" if PEERS.exists() else "no .venv-peers: run `make bench` once",
    }
    if any(item.get_closest_marker("gpu") for item in items) and os.environ.get("FASTTAG_REQUIRE_GPU") != "1":
        reasons["gpu"] = "" if _gpu() else "no CUDA device"
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ran, skipped = Counter[str](), Counter[str]()
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            if getattr(report, "when", None) == "call" or outcome == "skipped":
                counter = skipped if outcome == "skipped" else ran
                counter.update(marker for marker in COUNTED if marker in getattr(report, "keywords", ()))
    if skipped["gpu"] and not ran["gpu"]:
        terminalreporter.write_line("no test ran on a GPU: its kernels were compiled, emulated and interpreted only")
    line = ", ".join(f"{m} {ran[m]} run {skipped[m]} skipped" for m in COUNTED if ran[m] + skipped[m])
    terminalreporter.write_line(f"by marker: {line or 'no marked tests'}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the simulated jets, golden files and published scores."""
    return SHARED


@pytest.fixture(scope="session")
def jets64():
    """64 simulated jets, float32, with kinds and labels."""
    import fasttag

    with np.load(Path(__file__).parent / "data" / "jets64.npz") as f:
        p4 = np.ascontiguousarray(f["p4"].T[[1, 2, 3, 0]])
        return fasttag.Jets(p4, f["offsets"], {"kind": f["kind"]}, {"label": f["label"].astype(np.int64)})
