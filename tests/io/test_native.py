"""The native format: round trips, versions, checksums, atomic writing, and HDF5 that would crash libhdf5."""

import os
import signal
import subprocess
import sys

import h5py
import io_files
import numpy as np
import pytest

import fasttag
from fasttag.io.native import Writer

CHECKED = {"shuffle": True, "compression": "gzip", "fletcher32": True}


def jets(count=500, seed=3, dtype=np.float32):
    made = io_files.Made(count, seed)
    columns = {"kind": made.kind.astype(np.int8), "extra": made.extra, "charged": made.kind > 1}
    labels = {"label": made.classes % 2, "weight": made.jet_pt.astype(np.float64)}
    return fasttag.Jets(made.p4.astype(dtype), made.offsets, columns, labels)


def contents(jets):
    jets = jets.compact()
    arrays = {"p4": jets.p4, "offsets": jets.offsets, **jets.columns, **jets.labels}
    return {name: (array.dtype, array.tobytes()) for name, array in sorted(arrays.items())}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [0, 1, 500])
def test_round_trip(tmp_path, count, dtype):
    fasttag.write(tmp_path / "jets.h5", jets(count, dtype=dtype))
    assert contents(fasttag.read(tmp_path / "jets.h5")) == contents(jets(count, dtype=dtype))
    assert os.listdir(tmp_path) == ["jets.h5"]


def test_a_slice_is_written_compact(tmp_path):
    fasttag.write(tmp_path / "jets.h5", jets()[100:200])
    assert contents(fasttag.read(tmp_path / "jets.h5")) == contents(jets()[100:200])
    with h5py.File(tmp_path / "jets.h5") as file:
        assert file["offsets"][0] == 0 and file["p4"].shape[1] == file["offsets"][-1]


def test_torch_jets_are_written(tmp_path):
    fasttag.write(tmp_path / "jets.h5", jets().to(library="torch"))
    assert contents(fasttag.read(tmp_path / "jets.h5")) == contents(jets())


def test_others_can_read_it(tmp_path):
    """The file is what the description says, chunk by chunk, for a reader that knows nothing of fasttag."""
    fasttag.write(tmp_path / "jets.h5", jets())
    with h5py.File(tmp_path / "jets.h5") as file:
        assert file.attrs["format"] == b"fasttag-jets" and tuple(file.attrs["version"]) == (1, 0)
        assert file.attrs["complete"] == 1 and file.keys() == {"p4", "offsets", "columns", "labels"}
        assert (file["p4"][()] == jets().p4).all() and (file["columns/kind"][()] == jets().columns["kind"]).all()
        found = []
        file.visititems(lambda name, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
        for data in found:
            assert data.shuffle and data.fletcher32 and data.compression == "gzip"
            assert data.chunks[-1] <= min(65536, data.shape[-1])


def test_reading_what_others_write(tmp_path):
    made = io_files.Made()
    io_files.native(tmp_path / "jets.h5", made)
    found = fasttag.read(tmp_path / "jets.h5")
    assert found.p4.tobytes() == made.p4.tobytes() and (found.offsets == made.offsets).all()
    assert (found.columns["kind"] == made.kind).all() and (found.labels["label"] == made.classes % 2).all()


def test_version_1_0_stays_readable(data):
    found = fasttag.read(data / "native_1_0.h5")
    with np.load(data / "native_1_0.npz") as expected:
        assert {name: (a.dtype, a.tobytes()) for name, a in sorted(expected.items())} == contents(found)


def test_a_newer_minor_version_is_read_with_all_its_columns(tmp_path):
    path = tmp_path / "minor.h5"
    io_files.native(path, io_files.Made(), version=(1, 7))
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        values = np.arange(file["p4"].shape[1])
        file.create_dataset("columns/new", data=values, shuffle=True, compression="gzip", fletcher32=True)
        file["members/of/tomorrow"] = np.zeros(3)
    assert (fasttag.read(path).columns["new"] == values).all()


@pytest.mark.parametrize(
    "attributes, kind, error",
    [
        ({"version": (2, 0)}, fasttag.FormatError, "must be version 1.x, got 2.0; update fasttag"),
        ({"version": 1}, fasttag.FormatError, "must have format fasttag-jets and a version"),
        ({"version": "1.0"}, fasttag.FormatError, "attribute version of / must be a string or integers"),
        ({"complete": np.uint8(0)}, fasttag.CorruptFileError, "was not completed by its writer"),
    ],
)
def test_other_versions_and_unfinished_files(tmp_path, attributes, kind, error):
    io_files.native(tmp_path / "odd.h5", io_files.Made(), **attributes)
    with pytest.raises(kind, match=rf"odd\.h5.*{error}"):
        fasttag.read(tmp_path / "odd.h5")


def test_pieces_make_the_whole(tmp_path):
    whole = jets(500)
    with Writer(tmp_path / "pieces.h5") as writer:
        for i in range(0, 500, 77):
            writer.append(whole[i : i + 77])
    assert contents(fasttag.read(tmp_path / "pieces.h5")) == contents(whole)


def test_many_pieces_are_flushed_on_the_way(tmp_path):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3, 150_000)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    p4 = np.abs(rng.normal(size=(4, offsets[-1]))).astype(np.float32)
    whole = fasttag.Jets(p4, offsets, labels={"label": counts})
    with Writer(tmp_path / "many.h5") as writer:
        for i in range(0, 150_000, 40_000):
            writer.append(whole[i : i + 40_000])
    with h5py.File(tmp_path / "many.h5") as file:
        assert file["p4"].chunks == (4, 65536) and file["offsets"].chunks == (65536,)
    assert contents(fasttag.read(tmp_path / "many.h5")) == contents(whole)


@pytest.mark.parametrize(
    "change, kind, error",
    [
        (
            lambda j: j.with_columns(more=j.columns["extra"]),
            ValueError,
            "same members and dtypes, got other columns/more",
        ),
        (lambda j: j.astype("float64"), ValueError, "got other p4"),
        (lambda j: j.with_columns(**{"a/b": j.columns["extra"]}), ValueError, "must not hold a slash, got columns/a/b"),
        (lambda j: j.with_labels(z=np.ones(len(j), complex)), TypeError, "labels/z must be numbers of at most 64 bits"),
        (lambda j: j.with_labels(z=np.full(len(j), "top")), TypeError, "labels/z must be numbers"),
    ],
)
def test_pieces_that_do_not_fit_leave_no_file(tmp_path, change, kind, error):
    with pytest.raises(kind, match=f"^write: .*{error}"), Writer(tmp_path / "jets.h5") as writer:
        writer.append(jets())
        writer.append(change(jets()))
    assert os.listdir(tmp_path) == []


def test_nothing_to_write(tmp_path):
    with pytest.raises(ValueError, match="at least one Jets"), Writer(tmp_path / "jets.h5"):
        pass
    assert os.listdir(tmp_path) == []


def test_an_error_leaves_the_old_file(tmp_path):
    fasttag.write(tmp_path / "jets.h5", jets(10))
    with pytest.raises(RuntimeError), Writer(tmp_path / "jets.h5") as writer:
        writer.append(jets(20))
        raise RuntimeError
    assert len(fasttag.read(tmp_path / "jets.h5")) == 10 and os.listdir(tmp_path) == ["jets.h5"]


KILLED = """
import sys
import numpy as np, fasttag
count = int(sys.argv[2])
p4 = np.ones((4, 30 * count), np.float32)
jets = fasttag.Jets(p4, np.arange(count + 1) * 30, labels={"label": np.zeros(count, np.int64)})
print("ready", flush=True)
while True:
    fasttag.write(sys.argv[1], jets)
"""


def kill_while_writing(path, trials, rng):
    fasttag.write(path, jets(10))
    for _ in range(trials):
        child = subprocess.Popen([sys.executable, "-c", KILLED, path, "20000"], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"ready\n"
        try:
            child.wait(rng.uniform(0, 0.2))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        assert len(fasttag.read(path)) in (10, 20_000)


def test_a_killed_writer_leaves_the_old_file_or_the_new(tmp_path):
    kill_while_writing(tmp_path / "jets.h5", 4, np.random.default_rng(1))


@pytest.mark.soak
def test_a_killed_writer_leaves_the_old_file_or_the_new_200_times(tmp_path):
    kill_while_writing(tmp_path / "jets.h5", 200, np.random.default_rng(2))


@pytest.mark.parametrize("member", ["p4", "offsets", "columns/kind", "labels/label"])
def test_any_flipped_byte_of_a_chunk_is_found(tmp_path, member):
    path = tmp_path / "flipped.h5"
    io_files.native(path, io_files.Made())
    with h5py.File(path) as file:
        chunk = file[member].id.get_chunk_info(0)
    raw = path.read_bytes()
    for place in np.linspace(chunk.byte_offset, chunk.byte_offset + chunk.size - 1, 40, dtype=int):
        damaged = bytearray(raw)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(fasttag.CorruptFileError, match=r"flipped\.h5"):
            fasttag.read(path)


def replace(path, name, **creation):
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        del file[name]
        file.create_dataset(name, **{**CHECKED, **creation})


@pytest.mark.parametrize(
    "name, creation, error",
    [
        ("p4", {"shape": (4, 10**12), "dtype": "f4", "chunks": (4, 65536)}, "/p4 declares 15258790 chunks .* too many"),
        ("p4", {"shape": (4, 862), "dtype": "f4"}, r"/p4: its index of \d+ chunks is damaged"),
        ("p4", {"data": np.ones((4, 862), ">f4")}, "/p4 must be float32 or float64"),
        ("p4", {"data": np.ones((862, 4), "f4")}, "/p4 must be float32 or float64"),
        ("p4", {"data": np.ones((4, 861), "f4")}, r"/offsets must go from 0 to 861, got \[0, 862\]"),
        ("p4", {"data": np.full((4, 862), np.inf, "f4")}, "/p4: Jets: p4 must be finite with E >= 0, got .* in jet 0"),
        (
            "p4",
            {"data": np.ones((4, 862), "f4"), "fletcher32": False},
            "/p4 must be stored with shuffle, gzip and Fletcher32",
        ),
        ("offsets", {"data": np.arange(61.0)}, "/offsets must be int64"),
        (
            "offsets",
            {"data": np.r_[0, 900, np.full(59, 862)]},
            r"/offsets must rise within 0..862, got 0 then 900 in row 0",
        ),
        ("columns/kind", {"data": np.ones(861, np.int8)}, r"/columns/kind must be numbers \(862,\)"),
        ("columns/kind", {"data": np.full(862, b"x")}, "/columns/kind must be numbers"),
        ("labels/label", {"data": np.ones(61)}, r"/labels/label must be numbers \(60,\)"),
    ],
)
def test_files_that_lie(tmp_path, name, creation, error):
    path = tmp_path / "lie.h5"
    io_files.native(path, io_files.Made())
    replace(path, name, **creation)
    with pytest.raises(fasttag.FasttagError, match=rf"lie\.h5: {error}"):
        fasttag.read(path)


def test_a_small_file_that_claims_terabytes(tmp_path):
    path = tmp_path / "claim.h5"
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["version"] = np.bytes_("fasttag-jets"), (1, 0)
        file.attrs["complete"] = np.uint8(1)
        file.create_dataset("p4", (4, 10**12), "f4")
    assert path.stat().st_size < 4096
    with pytest.raises(fasttag.CorruptFileError, match="/p4 declares 16000000000000 bytes that the file does not have"):
        fasttag.read(path)


def test_a_chunk_that_decodes_to_less_than_it_should(tmp_path):
    """libhdf5 2.0 reads past the end of the memory here, and the process dies: so a child tries it."""
    path, size = tmp_path / "short.h5", 50_000_000
    io_files.native(path, io_files.Made())
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        small = file.create_dataset("small", data=np.zeros((4, 8), "f4"), chunks=(4, 8), **CHECKED)
        file.flush()
        _, raw = small.id.read_direct_chunk((0, 0))
        for name in ("p4", "offsets", "small"):
            del file[name]
        large = file.create_dataset("p4", (4, size), "f4", chunks=(4, size), **CHECKED)
        large.id.write_direct_chunk((0, 0), raw)
        file.create_dataset("offsets", data=np.r_[0, np.full(60, size)], **CHECKED)
        del file["columns/kind"], file["columns/extra"]
    code = "import sys, fasttag; fasttag.read(sys.argv[1])"
    child = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert child.returncode == 1 and "/p4: a chunk must have 800000000 bytes, got 128" in child.stderr


@pytest.mark.parametrize("target", ["soft", "external", "virtual"])
def test_links_are_refused(tmp_path, target):
    path = tmp_path / "link.h5"
    io_files.native(path, io_files.Made())
    io_files.native(tmp_path / "other.h5", io_files.Made())
    with h5py.File(path, "r+") as file:
        shape = file["p4"].shape
        del file["p4"]
        if target == "virtual":
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = h5py.VirtualSource(str(tmp_path / "other.h5"), "p4", shape)
            file.create_virtual_dataset("p4", layout)
        else:
            links = {"soft": h5py.SoftLink("/columns/extra"), "external": h5py.ExternalLink("other.h5", "p4")}
            file["p4"] = links[target]
    with pytest.raises(fasttag.FormatError, match=r"link\.h5: /p4 must (be in|keep its values in) the file"):
        fasttag.read(path)


def test_values_in_another_file_are_refused(tmp_path):
    path = tmp_path / "external.h5"
    io_files.native(path, io_files.Made())
    (tmp_path / "raw").write_bytes(np.ones((4, 862), "f4").tobytes())
    with h5py.File(path, "r+") as file:
        del file["p4"]
        file.create_dataset("p4", (4, 862), "f4", external=[(str(tmp_path / "raw"), 0, 4 * 862 * 4)])
    with pytest.raises(fasttag.FormatError, match=r"/p4 must keep its values in the file"):
        fasttag.read(path)
