"""Small files of every format, written without fasttag, from the same random jets."""

import h5py
import numpy as np

CLASSES = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")
FLAGS = ("isNeutralHadron", "isChargedHadron", "isElectron", "isMuon", "isPhoton")
# id: mass in GeV, kind; the last one is unknown to the samples (a Lambda)
PARTICLES = {
    22: (0.0, 4),
    -11: (0.00051099895, 2),
    13: (0.1056583755, 3),
    -211: (0.13957039, 1),
    321: (0.493677, 1),
    130: (0.497611, 0),
    2212: (0.93827208816, 1),
    -2112: (0.93956542052, 0),
    3122: (0.0, 0),
}


class Made:
    """J jets: p4 (4, N) float32, offsets, kind (N,), extra (N,), classes (J,), counts (J,)."""

    def __init__(self, jets=60, seed=1, most=30):
        rng = np.random.default_rng(seed)
        self.counts = rng.integers(1, most, jets)
        self.counts[3:4] = 0
        self.offsets = np.concatenate([[0], np.cumsum(self.counts)])
        total = self.offsets[-1]
        momenta = rng.normal(0, 50, (3, total)).astype(np.float32)
        self.p4 = np.stack([*momenta, np.linalg.norm(momenta, axis=0)])
        self.kind = rng.integers(0, 5, total)
        self.extra = rng.normal(size=total).astype(np.float32)
        self.classes = rng.integers(0, 10, jets)
        self.jet_pt = rng.uniform(500, 600, jets).astype(np.float32)


def native(path, made, version=(1, 0), **attributes):
    """The native format as its description says, by h5py alone."""

    def store(name, array):
        chunks = (*array.shape[:-1], max(1, min(65536, array.shape[-1])))
        file.create_dataset(name, data=array, chunks=chunks, shuffle=True, compression="gzip", fletcher32=True)

    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.attrs["format"] = np.bytes_("fasttag-jets")
        file.attrs["version"] = version
        store("p4", made.p4)
        store("offsets", made.offsets)
        store("columns/kind", made.kind.astype(np.int8))
        store("columns/extra", made.extra)
        store("labels/label", made.classes % 2)
        for name, value in {"complete": np.uint8(1), **attributes}.items():
            file.attrs[name] = value


def energyflow_arrays(jets=60, seed=1):
    """X (J, M, 4) and y of an EnergyFlow file."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 20, jets)
    x = np.zeros((jets, counts.max(initial=0) + 3, 4))
    for jet, n in zip(x, counts):
        jet[:n] = np.stack(
            [rng.exponential(5, n), rng.normal(size=n), rng.uniform(0, 6.3, n), rng.choice(list(PARTICLES), n)], 1
        )
    return x, rng.integers(0, 2, jets).astype(float)


def energyflow(path, compress=True, **arrays):
    with open(path, "wb") as file:
        (np.savez_compressed if compress else np.savez)(file, **arrays)


def branches(made):
    """name -> (N,) for part_*, name -> (J,) for the rest, with the names of JetClass."""
    parts = dict(zip(("part_px", "part_py", "part_pz", "part_energy"), made.p4))
    parts["part_d0val"] = made.extra
    parts |= {f"part_{flag}": (made.kind == i).astype(np.float32) for i, flag in enumerate(FLAGS)}
    flat = {"jet_pt": made.jet_pt, "jet_nparticles": made.counts.astype(np.float32)}
    flat |= {f"label_{c}": (made.classes == i).astype(np.float32) for i, c in enumerate(CLASSES)}
    return parts, flat


def jetclass(path, parts, flat, counts, compression="ZLIB"):
    """A ROOT tree; `counts` is one array for all branches, or name -> array."""
    import awkward as ak
    import uproot

    lists = {
        name: ak.unflatten(values, counts[name] if isinstance(counts, dict) else counts)
        for name, values in parts.items()
    }
    types = {name: f"var * {values.dtype}" for name, values in parts.items()}
    types |= {name: values.dtype for name, values in flat.items()}
    with uproot.recreate(path, compression=compression and getattr(uproot, compression)(4)) as file:
        file.mktree("tree", types)
        file["tree"].extend(lists | flat)


def parquet(path, parts, flat, counts, large=True, **options):
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.LargeListArray if large else pa.ListArray
    columns = {}
    for name, values in parts.items():
        own = counts[name] if isinstance(counts, dict) else counts
        offsets = np.concatenate([[0], np.cumsum(own)]).astype(np.int64 if large else np.int32)
        columns[name] = kind.from_arrays(offsets, values)
    pq.write_table(pa.table(columns | flat), path, **options)
