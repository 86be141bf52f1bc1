"""Files to Jets: the reference HDF5 against pandas on the same file, and the native format."""

import json
import subprocess
import sys

import numpy as np
import pytest

import fasttag
from fasttag import io

ROW_BYTES = 3240  # of a jet in the reference layout, uncompressed

# peak memory above that of a process which has read one jet, in bytes, and the size of the result
MEMORY = """
import json, re, sys
import fasttag
def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
fasttag.read(sys.argv[1], stop=1)
before = status("VmRSS")
jets = fasttag.read(sys.argv[1])
result = jets.p4.nbytes + jets.offsets.nbytes + sum(a.nbytes for a in jets.labels.values())
print(json.dumps({"peak": status("VmHWM") - before, "result": result}))
"""


def same(jets, p):
    assert np.array_equal(jets.p4, p.p4) and np.array_equal(jets.offsets, p.offsets), "wrong jets: not timed"


def test_reference_hdf5(compare, problem, child, tmp_path):
    if child is None:
        pytest.skip("no .venv-peers, so no pandas to write the file: run `make bench` once")
    p = problem("reference")
    path = tmp_path / "reference.h5"
    padded, _ = fasttag.Jets(p.p4, p.offsets).to_padded(200)
    child.prepare("pandas_write", {"padded": padded}, path=str(path))
    child.round()
    same(fasttag.read(path), p)
    child.prepare("pandas", {}, path=str(path))
    child.round()
    same(fasttag.Jets(*child.result()[:2]), p)
    notes = {}
    if sys.platform == "linux":
        found = json.loads(subprocess.check_output([sys.executable, "-c", MEMORY, path]))
        notes["memory"] = {**found, "chunk": ROW_BYTES * min(p.jets, io.CHUNK)}
    compare(
        "read",
        "reference",
        "reference HDF5, table, blosc",
        p,
        lambda: fasttag.read(path),
        {"pandas.read_hdf": (child.round, p.jets)},
        bytes=path.stat().st_size / p.jets + 16 * p.constituents,
        target={"ratio": 3.0},
        **notes,
    )


@pytest.mark.parametrize("way", ["read", "write"])
def test_native(compare, problem, tmp_path, way):
    p = problem("reference")
    jets, path = fasttag.Jets(p.p4, p.offsets), tmp_path / "native.h5"
    fasttag.write(path, jets)
    same(fasttag.read(path), p)
    compare(
        way,
        "reference",
        "native HDF5, gzip",
        p,
        (lambda: fasttag.read(path)) if way == "read" else (lambda: fasttag.write(path, jets)),
        {},
        bytes=path.stat().st_size / p.jets + 16 * p.constituents,
    )
