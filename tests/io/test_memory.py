"""Memory stays bounded: the peak of a fresh process over what it had before reading."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
from test_top_reference import pickled

MEASURE = """
import resource, sys
import hdf5plugin, numpy as np, fasttag, fasttag.io
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
fasttag.read(sys.argv[1], stop=10)
before, jets = peak(), 0
if sys.argv[2] == "whole":
    jets = fasttag.read(sys.argv[1])
    print(peak() - before, len(jets), jets.p4.nbytes + jets.offsets.nbytes + jets.labels["label"].nbytes)
else:
    largest = 0
    for piece in fasttag.iter_read(sys.argv[1], chunk=int(sys.argv[2])):
        jets, largest = jets + len(piece), max(largest, piece.p4.nbytes)
    print(peak() - before, jets, largest)
"""
SLOTS, ROWS, CONSTITUENTS = 200, 200_000, 46


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """200,000 jets in the reference layout: 640 MB of rows, a few MB on disk, 147 MB of constituents."""
    path = tmp_path_factory.mktemp("memory") / "large.h5"
    names = [f"{c}_{i}" for i in range(SLOTS) for c in ("E", "PX", "PY", "PZ")]
    dtype = np.dtype([("index", "<i8"), ("values_block_0", "<f4", (4 * SLOTS,)), ("values_block_1", "<i8", (1,))])
    rows = np.zeros(2000, dtype)
    rows["values_block_0"][:, : 4 * CONSTITUENTS] = np.arange(1, 4 * CONSTITUENTS + 1)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("table/table", (ROWS,), dtype, chunks=(40,), compression="gzip", compression_opts=1)
        for begin in range(0, ROWS, len(rows)):
            data[begin : begin + len(rows)] = rows
        file["table"].attrs["pandas_type"] = np.bytes_("frame_table")
        data.attrs["NROWS"] = np.int64(ROWS)
        data.attrs["values_block_0_kind"], data.attrs["values_block_1_kind"] = (
            pickled(names),
            pickled(["is_signal_new"]),
        )
    return path, dtype.itemsize


def measure(path, how):
    out = subprocess.run([sys.executable, "-c", MEASURE, path, how], capture_output=True, text=True, check=True)
    return map(int, out.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [2000, 16_384])
def test_streaming_needs_the_chunk_and_the_result(large, chunk):
    path, row_bytes = large
    peak, jets, largest = measure(path, str(chunk))
    assert jets == ROWS
    assert peak < 1.5 * chunk * row_bytes + 2 * largest + (12 << 20)


@pytest.mark.slow
def test_reading_needs_the_chunk_and_the_result(large):
    """Far below the limit of 1.5 chunks of rows: no more than two chunks of jets on top of the result."""
    path, _ = large
    peak, jets, result = measure(path, "whole")
    assert jets == ROWS
    assert peak < result + 2 * 65536 * CONSTITUENTS * 16 + (12 << 20), f"{peak / 1e6:.0f} MB for {result / 1e6:.0f} MB"
