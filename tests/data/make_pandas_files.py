"""Make the small reference files pandas_{table,fixed}_{complib}.h5 and pandas_expected.npz, what is in them.

Run with pandas 3 and PyTables 3.11: .venv-peers/bin/python tests/data/make_pandas_files.py
"""

from pathlib import Path

import numpy as np
import pandas as pd
import tables.leaf

HERE = Path(__file__).parent
COMPLIBS = (None, "zlib", "bzip2", "blosc", "blosc2")
JETS, SLOTS = 90, 24


def frame() -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    rng = np.random.default_rng(11)
    counts = rng.integers(1, SLOTS + 1, JETS)
    counts[3] = 0
    padded = np.zeros((JETS, SLOTS, 4), np.float32)
    for jet, count in zip(padded, counts):
        jet[:count, 1:] = rng.normal(0, 50, (count, 3))
        jet[:count, 0] = np.linalg.norm(jet[:count, 1:], axis=1)
    # a slot is padding only if all four components are zero, whatever the sign of the zeros
    padded[5, 0, 1:3] = 0.0
    padded[6, counts[6] :] = -0.0
    names = [f"{c}_{i}" for i in range(SLOTS) for c in ("E", "PX", "PY", "PZ")]
    data = pd.DataFrame(padded.reshape(JETS, -1), columns=names)
    truth = rng.normal(0, 300, (JETS, 4)).astype(np.float32)
    data[["truthE", "truthPX", "truthPY", "truthPZ"]] = truth
    data["ttv"], data["is_signal_new"] = rng.integers(0, 3, JETS), rng.integers(0, 2, JETS)
    slots = padded[(padded != 0).any(2)]
    expected = {
        "p4": slots[:, [1, 2, 3, 0]].T,
        "offsets": np.concatenate([[0], np.cumsum(counts)]),
        "label": data["is_signal_new"].to_numpy(),
        "ttv": data["ttv"].to_numpy(),
        **{f"truth_{c}": truth[:, i] for i, c in enumerate(("E", "px", "py", "pz"))},
    }
    return data.copy(), expected


if __name__ == "__main__":
    # otherwise PyTables makes blosc2 chunks as large as the L3 cache of the machine, hundreds of MB
    tables.leaf.get_cpu_info = dict
    data, expected = frame()
    np.savez_compressed(HERE / "pandas_expected.npz", **expected)
    for layout in ("table", "fixed"):
        for complib in COMPLIBS:
            name = HERE / f"pandas_{layout}_{complib or 'none'}.h5"
            data.to_hdf(name, key="table", mode="w", format=layout, complib=complib, complevel=complib and 9)
    data.iloc[:0].to_hdf(HERE / "pandas_fixed_empty.h5", key="table", mode="w", format="fixed")
