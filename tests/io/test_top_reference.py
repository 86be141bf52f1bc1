"""The reference layout: golden files by pandas, names by whitelist, order by name, lies refused."""

import hashlib
import os
import pickle
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import fasttag

LAYOUTS = [
    f"{layout}_{complib}" for layout in ("table", "fixed") for complib in ("none", "zlib", "bzip2", "blosc", "blosc2")
]
NAMES = [f"{c}_{i}" for i in range(3) for c in ("E", "PX", "PY", "PZ")]


def pickled(names):
    return np.bytes_(pickle.dumps(names, 0))


def table(path, rows=5, names=NAMES, integers=("is_signal_new",), values=None, label=1, **attributes):
    """A `table` as pandas writes it, with whatever names."""
    dtype = [("index", "<i8"), ("values_block_0", "<f4", (len(names),)), ("values_block_1", "<i8", (len(integers),))]
    data = np.zeros(rows, dtype)
    data["values_block_0"] = np.arange(1, rows * len(names) + 1).reshape(rows, len(names)) if values is None else values
    data["values_block_1"] = label
    with h5py.File(path, "w") as file:
        made = file.create_dataset("table/table", data=data, chunks=(2,), maxshape=(None,))
        file["table"].attrs["pandas_type"] = np.bytes_("frame_table")
        given = {
            "NROWS": np.int64(rows),
            "values_block_0_kind": pickled(names),
            "values_block_1_kind": pickled(list(integers)),
        }
        for key, value in {**given, **attributes}.items():
            made.attrs[key] = value
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_made_by_pandas(data, layout):
    jets = fasttag.read(data / f"pandas_{layout}.h5")
    with np.load(data / "pandas_expected.npz") as expected:
        assert jets.p4.dtype == np.float32 and jets.p4.tobytes() == expected["p4"].tobytes()
        assert (jets.offsets == expected["offsets"]).all()
        assert jets.labels.keys() == {"label", "ttv", "truth_px", "truth_py", "truth_pz", "truth_E"}
        for name, values in jets.labels.items():
            assert values.dtype == expected[name].dtype and values.tobytes() == expected[name].tobytes(), name


def test_an_empty_frame_keeps_its_labels(data):
    jets = fasttag.read(data / "pandas_fixed_empty.h5")
    assert len(jets) == 0 and jets.p4.shape == (4, 0) and jets.p4.dtype == np.float32
    assert jets.labels["label"].dtype == np.int64 and jets.labels["truth_E"].dtype == np.float32


def test_a_table_without_rows(tmp_path):
    (jets,) = fasttag.iter_read(table(tmp_path / "empty.h5", rows=0))
    assert len(jets) == 0 and jets.labels.keys() == {"label"}


@pytest.mark.parametrize("order", ["slots", "components", "shuffled"])
def test_order_comes_from_the_names(tmp_path, order):
    sorts = {
        "slots": None,
        "components": lambda name: name[:2],
        "shuffled": lambda name: hashlib.md5(name.encode()).digest(),
    }
    names = sorted(NAMES, key=sorts[order]) if sorts[order] else NAMES
    values = np.arange(1, 1 + 4 * len(names)).reshape(4, -1).astype(np.float32)
    jets = fasttag.read(table(tmp_path / "t.h5", rows=4, names=names, values=values))
    for k, component in enumerate(("PX", "PY", "PZ", "E")):
        wanted = np.stack([values[:, names.index(f"{component}_{i}")] for i in range(3)], 1)
        assert (jets.p4[k].reshape(4, 3) == wanted).all()


def test_float64_frames_keep_their_precision(tmp_path):
    import h5py

    path = tmp_path / "fixed.h5"
    values = np.random.default_rng(0).uniform(1, 2, (6, len(NAMES)))
    with h5py.File(path, "w") as file:
        group = file.create_group("frame")
        group.attrs["pandas_type"], group.attrs["nblocks"] = np.bytes_("frame"), 2
        group["axis1"] = np.arange(6)
        group["block0_items"], group["block0_values"] = np.array(NAMES, "S"), values
        group["block1_items"], group["block1_values"] = np.array(["is_signal_new"], "S"), np.ones((6, 1), np.int64)
    jets = fasttag.read(path)
    assert jets.p4.dtype == np.float64 and (jets.p4[3].reshape(6, 3) == values[:, 0::4]).all()


class Payload:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("attribute", ["values_block_0_kind", "values_block_1_kind", "info", "non_index_axes"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_planted_pickle_is_not_executed(tmp_path, attribute, protocol):
    """pandas loads such attributes, and so runs what is in them."""
    trace = tmp_path / "executed"
    evil = np.void(pickle.dumps(Payload(f"touch {trace}"), protocol))
    evil = np.bytes_(evil.tobytes()) if protocol == 0 else evil
    path = table(tmp_path / "evil.h5", **{attribute: evil})
    if attribute.endswith("_kind"):
        with pytest.raises(fasttag.FormatError, match=r"evil\.h5: .*values_block"):
            fasttag.read(path)
    else:
        assert len(fasttag.read(path)) == 5
    assert not trace.exists()


@pytest.mark.parametrize(
    "change, error",
    [
        ({"names": NAMES[:-1]}, "look at PZ_2"),
        ({"names": [*NAMES, "mass"]}, "look at mass"),
        ({"names": [*NAMES[:-1], "E_0"]}, "look at PZ_2"),
        ({"names": [*NAMES, "E_0"]}, "a name twice"),
        ({"names": ["E_0"]}, "look at PX_0"),
        ({"integers": ("ttv",)}, "look at is_signal_new"),
        ({"label": 2}, "is_signal_new must be 0 or 1, got 2 at row 0"),
        ({"NROWS": np.int64(4)}, "has 5 rows, its attribute NROWS says 4"),
        ({"values_block_0_kind": np.bytes_(b"(lp0\nVE_0")}, "no newline found"),
        ({"values_block_0_kind": pickled({"E_0": 1})}, "got DICT"),
        ({"values_block_0_kind": 7}, "got int64"),
        ({"values": np.nan}, r"table: Jets: p4 must be finite.* in jet 0, constituent 0"),
    ],
)
def test_tables_that_are_not_what_they_should_be(tmp_path, change, error):
    with pytest.raises(fasttag.FasttagError, match=rf"odd\.h5.*{error}"):
        fasttag.read(table(tmp_path / "odd.h5", **change))


def test_the_row_of_a_bad_value_is_its_row_in_the_file(tmp_path):
    values = np.ones((5000, len(NAMES)), np.float32)
    values[4321, 4] = -1
    path = table(tmp_path / "negative.h5", rows=5000, values=values)
    with pytest.raises(fasttag.CorruptFileError, match="in jet 4321, constituent 1"):
        fasttag.read(path, start=4000)
    assert len(fasttag.read(path, start=4322)) == 678


def test_a_chunk_that_libhdf5_does_not_find_is_not_read_as_zeros(data, tmp_path):
    """One byte of its key in the B-tree is damaged: libhdf5 2.0 gives fill values for its rows, and no error."""
    path = tmp_path / "lost.h5"
    raw = bytearray((data / "pandas_fixed_zlib.h5").read_bytes())
    with h5py.File(data / "pandas_fixed_zlib.h5") as file:
        address = file["table/block1_values"].id.get_chunk_info(0).byte_offset
    raw[raw.index(address.to_bytes(8, "little")) - 5] = 2
    path.write_bytes(raw)
    with h5py.File(path) as file:
        assert not file["table/block1_values"][()].any()
    with pytest.raises(fasttag.CorruptFileError, match=r"lost\.h5"):
        fasttag.read(path)


def test_lzo_is_refused_by_name(tmp_path):
    with h5py.File(tmp_path / "lzo.h5", "w") as file:
        group = file.create_group("table")
        group.attrs["pandas_type"] = np.bytes_("frame_table")
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((10,))
        plist.set_filter(305, h5py.h5z.FLAG_OPTIONAL, (1,))
        h5py.h5d.create(group.id, b"table", h5py.h5t.NATIVE_INT64, h5py.h5s.create_simple((10,)), plist)
    with pytest.raises(fasttag.FormatError, match=r"lzo\.h5: /table/table is compressed with lzo"):
        fasttag.read(tmp_path / "lzo.h5")


def test_two_frames_or_none(tmp_path):
    path = table(tmp_path / "two.h5")
    with h5py.File(path, "r+") as file:
        file.copy("table", "again")
    with pytest.raises(fasttag.FormatError, match="one pandas frame, got 2 frames among again, table"):
        fasttag.read(path)
    with h5py.File(path, "w") as file:
        file["jets"] = np.zeros(3)
    with pytest.raises(fasttag.FormatError, match="got 0 frames among jets"):
        fasttag.read(path)


@pytest.mark.shared
def test_the_simulated_test_sample(shared):
    path = shared / "data" / "test.h5"
    fasttag.read(path)
    start = time.perf_counter()
    jets = fasttag.read(path)
    assert time.perf_counter() - start < 1
    assert len(jets) == 16_000 and jets.labels["label"].sum() == 7_931 and round(jets.counts.mean()) == 46
    with np.load(shared / "data" / "test_kind.npz") as kinds:
        assert (kinds["offsets"] == jets.offsets).all()
    labels = [jets.labels[name] for name in ("label", "ttv", "truth_E", "truth_px")]
    digest = hashlib.sha256()
    for array in (jets.p4, jets.counts, *labels):
        digest.update(array.tobytes())
    assert digest.hexdigest() == FROM_PANDAS


# sha256 of what the script below gets from this file with pandas 3.1.1
FROM_PANDAS = "8b1c11ff8c4156db974a6790247c02528a94826497db9cbafe90aa0e266bbf65"
PANDAS = """
import sys
import numpy as np, pandas as pd
frame = pd.read_hdf(sys.argv[1], key="table")
slots = [[f"{c}_{i}" for i in range(200)] for c in ("PX", "PY", "PZ", "E")]
padded = np.stack([frame[names].to_numpy() for names in slots])
valid = (padded != 0).any(0)
labels = {"label": "is_signal_new", "ttv": "ttv", "truth_E": "truthE", "truth_px": "truthPX"}
np.savez(sys.argv[2], p4=padded[:, valid], counts=valid.sum(1), **{k: frame[v].to_numpy() for k, v in labels.items()})
"""


@pytest.mark.shared
@pytest.mark.peers
def test_the_same_bits_as_pandas(shared, tmp_path):
    python = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
    path, out = shared / "data" / "test.h5", tmp_path / "pandas.npz"
    subprocess.run([python, "-c", PANDAS, path, out], check=True)
    jets = fasttag.read(path)
    with np.load(out) as frame:
        assert jets.p4.tobytes() == frame["p4"].tobytes() and (jets.counts == frame["counts"]).all()
        for name in ("label", "ttv", "truth_E", "truth_px"):
            assert jets.labels[name].tobytes() == frame[name].tobytes()
