"""Damaged files give the right data or a FasttagError: never a crash, a hang, another error, or wrong data.

Each case is read, whole and in chunks, in a forked process with a memory limit and 20 s; see fuzz_child.py. The seed of
a case is its name, so `python tests/io/fuzz_child.py FOLDER FORMAT CASE 1` repeats it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import io_files
import pytest

KINDS = ("truncation", "metadata flip", "data flip", "lie")
FORMATS = ("top-reference", "fasttag", "energyflow", "jetclass", "parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data):
    """FORMAT/*: sound files of every format in all its compressions."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name in FORMATS:
        (folder / name).mkdir()
    for path in data.glob("pandas_*_*.h5"):
        if "empty" not in path.name:
            shutil.copy(path, folder / "top-reference")
    made = io_files.Made()
    io_files.native(folder / "fasttag" / "small.h5", made)
    io_files.native(folder / "fasttag" / "large.h5", io_files.Made(300, seed=2))
    x, y = io_files.energyflow_arrays()
    for compress in (True, False):
        io_files.energyflow(folder / "energyflow" / f"{compress}.npz", compress, X=x, y=y)
    parts, flat = io_files.branches(made)
    for compression in ("ZLIB", "LZ4", "ZSTD", None):
        io_files.jetclass(folder / "jetclass" / f"{compression}.root", parts, flat, made.counts, compression)
    options = [
        {"compression": "lz4"},
        {"compression": "none", "large": False, "row_group_size": 25},
        {"compression": "zstd", "write_page_checksum": True},
        {"compression": "snappy", "use_dictionary": False},
    ]
    for chosen in options:
        io_files.parquet(folder / "parquet" / f"{chosen['compression']}.parquet", parts, flat, made.counts, **chosen)
    return folder


def fuzz(folder, name, first, count):
    child = Path(__file__).with_name("fuzz_child.py")
    command = [sys.executable, str(child), str(folder), name, str(first), str(count)]
    out = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "error"})
    assert out.returncode == 0, out.stderr
    cases = [json.loads(line) for line in out.stdout.splitlines()]
    found = Counter((case["seed"].split("/")[1], case["outcome"]) for case in cases)
    print(f"{name}, seeds {name}/KIND/{first}..{first + count - 1}:", dict(sorted(found.items())))
    assert Counter(case["seed"].split("/")[1] for case in cases) == dict.fromkeys(KINDS, count)

    def passes(case):
        # a flipped value may go unnoticed where the format has no checksum on it
        unchecked = case["seed"].split("/")[1] == "data flip" and name in ("top-reference", "jetclass", "parquet")
        return case["outcome"] in ("identical", "typed error", *["other values"] * unchecked)

    failed = [case for case in cases if not passes(case)]
    assert not failed, "\n".join(
        f"{case['seed']} of {case['source']}: {case['outcome']}\n{case['error']}" for case in failed
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files(folder, name):
    fuzz(folder, name, 0, 40)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FORMATS)
def test_many_damaged_files(folder, name):
    fuzz(folder, name, 1000, 400)
