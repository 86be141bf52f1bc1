"""Make native_1_0.h5 and native_1_0.npz, what is in it. Never again: a file of version 1.0 stays readable as it is."""

from pathlib import Path

import numpy as np

import fasttag

HERE = Path(__file__).parent

if __name__ == "__main__":
    jets = fasttag.read(fasttag.io.sample_path(), stop=100)
    jets = jets.with_columns(charged=(jets.columns["kind"] > 0) & (jets.columns["kind"] < 4))
    jets = jets.with_labels(weight=np.linspace(0.5, 1.5, len(jets)))
    fasttag.write(HERE / "native_1_0.h5", jets)
    np.savez_compressed(HERE / "native_1_0.npz", p4=jets.p4, offsets=jets.offsets, **jets.columns, **jets.labels)
