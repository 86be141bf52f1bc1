"""Pack jets for a machine that gets nothing but this folder: px, py, pz and offsets, under 50 MB.

python benchmarks/pack_sample.py ../shared/data/test_large.npz       # or any file that fasttag.read takes
writes .carry/sample.h5, which git ignores; tests and benchmarks on a GPU use it where it is there. Constituents become
massless: E = |p|.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import h5py
import numpy as np

import fasttag

SAMPLE = Path(__file__).resolve().parent.parent / ".carry" / "sample.h5"
MOST = 50_000_000  # bytes


def unpack(jets: int | None = None) -> fasttag.Jets:
    """The sample, or its first jets, with E computed anew."""
    with h5py.File(SAMPLE) as file:
        offsets = file["offsets"][: None if jets is None else jets + 1]
        p3 = np.array([file[name][: offsets[-1]] for name in ("px", "py", "pz")])
    energy = np.sqrt((p3.astype(np.float64) ** 2).sum(0)).astype(np.float32)
    return fasttag.Jets(np.concatenate([p3, energy[None]]), offsets)


def pack(path: str, jets: int) -> None:
    """Write the first jets of a file."""
    if path.endswith(".npz"):
        with np.load(path) as file:
            p3, offsets = np.ascontiguousarray(file["p3"].T), file["offsets"]
    else:
        found = fasttag.read(path, stop=jets).compact()
        p3, offsets = found.p4[:3].astype(np.float32), found.offsets
    offsets = offsets[: jets + 1]
    SAMPLE.parent.mkdir(exist_ok=True)
    with h5py.File(SAMPLE, "w") as file:
        for name, row in zip(("px", "py", "pz"), p3):
            file.create_dataset(name, data=row[: offsets[-1]], chunks=(65536,), shuffle=True, compression=9)
        file.create_dataset("offsets", data=offsets, shuffle=True, compression=9)
    size = SAMPLE.stat().st_size
    if size >= MOST:
        raise SystemExit(f"{SAMPLE} has {size / 1e6:.1f} MB, {MOST / 1e6:.0f} are allowed: pass fewer --jets")
    print(f"{SAMPLE}: {len(offsets) - 1} jets, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--jets", type=int, default=100_000)
    arguments = parser.parse_args()
    pack(arguments.path, arguments.jets)
