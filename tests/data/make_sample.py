"""Make fasttag/data/sample.h5: the first 4,000 jets of the simulated training sample, with their kinds.

Run: python tests/data/make_sample.py train.h5 train_kind.npz fasttag/data/sample.h5
"""

import sys

import h5py
import numpy as np

import fasttag

PROVENANCE = (
    "Simulated for fasttag: Pythia 8.316, pp at 14 TeV, no multiple interactions, no pile-up; ttbar (all-hadronic W) "
    "against QCD dijets; fast parametrised detector with energy flow; FastJet anti-kT R = 0.8, leading jet with "
    "550 < pT < 650 GeV and |eta| < 2; tops matched to a parton top and its three quarks within 0.8. Massless, GeV."
)

if __name__ == "__main__":
    source, kinds, target = sys.argv[1:]
    jets = fasttag.read(source, stop=4000)
    jets = fasttag.Jets(jets.p4, jets.offsets, labels={"label": jets.labels["label"].astype(np.int64)})
    with np.load(kinds) as file:
        assert np.array_equal(file["offsets"][:4001], jets.offsets)
        jets = jets.with_columns(kind=file["kind"][: jets.offsets[-1]])
    fasttag.write(target, jets)
    with h5py.File(target, "r+", libver=("v110", "v110")) as out:
        out.attrs["provenance"] = np.bytes_(PROVENANCE)
