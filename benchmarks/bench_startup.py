"""A process that imports fasttag, computes and ends, with the kernels in the cache and only the core installed."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / ".venv-core" / "bin" / "python"
FIRST_CALL = """
import sys
import numpy as np
import fasttag
jets = fasttag.Jets(np.array([[3, 0], [4, 1], [0, 2], [13, 3]], np.float32), np.array([0, 2]))
assert fasttag.kinematics(jets).mass[0] == 12
assert fasttag.knn(jets, 1).tolist() == [[1], [0]]
assert not {"torch", "awkward", "scipy"} & set(sys.modules), "not a core-only environment: not timed"
"""


def test_import_and_first_call(compare, problem):
    if not CORE.exists():
        pytest.skip("no .venv-core: run `make bench` once")

    def process(code: str) -> None:
        subprocess.run([CORE, "-c", code], check=True, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})

    process(FIRST_CALL)
    compare(
        "startup",
        "one jet",
        "process, import, kinematics and knn of one jet",
        problem("reference").first(1),
        lambda: process(FIRST_CALL),
        {},
        target={"s": 1.2},
    )
