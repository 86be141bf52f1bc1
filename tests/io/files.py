"""Small files of every format, written without fasttag, and the arrays that are in them."""

import h5py
import numpy as np

CLASSES = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")
KINDS = ("isNeutralHadron", "isChargedHadron", "isElectron", "isMuon", "isPhoton")
MASS = {22: 0.0, 11: 0.00051099895, 13: 0.1056583755, 211: 0.13957039, 321: 0.493677, 130: 0.497611}
MASS |= {2212: 0.93827208816, 2112: 0.93956542052}


def jets(count, seed=1, dtype=np.float32):
    """p4 (4, N), offsets, kind (N,) of random massless jets, an empty one among them."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 60, count)
    counts[1:2] = 0
    offsets = np.concatenate([[0], np.cumsum(counts)])
    momenta = rng.normal(size=(3, offsets[-1])).astype(dtype) * 50
    return np.stack([*momenta, np.linalg.norm(momenta, axis=0)]).astype(dtype), offsets, rng.integers(0, 5, offsets[-1])
