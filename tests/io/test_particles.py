"""ROOT trees and Parquet files with the names of JetClass."""

import awkward as ak
import io_files
import numpy as np
import pytest

import fasttag

MADE = io_files.Made(300)


@pytest.fixture(params=["jetclass", "parquet"])
def store(request, tmp_path):
    """Write (parts, flat, counts) as a ROOT or a Parquet file and give its path."""

    def write(parts, flat, counts=MADE.counts, **options):
        path = tmp_path / "jets.file"
        getattr(io_files, request.param)(path, parts, flat, counts, **options)
        return path

    write.format = request.param
    return write


def test_what_comes_out_is_what_went_in(store):
    parts, flat = io_files.branches(MADE)
    jets = fasttag.read(store(parts, flat))
    assert jets.p4.dtype == np.float32 and jets.p4.tobytes() == MADE.p4.tobytes()
    assert (jets.offsets == MADE.offsets).all()
    assert jets.columns.keys() == {"d0val", "kind", *io_files.FLAGS}
    assert jets.columns["kind"].dtype == np.int8 and (jets.columns["kind"] == MADE.kind).all()
    assert (jets.columns["d0val"] == MADE.extra).all()
    assert jets.labels.keys() == {"label", *flat}
    assert jets.labels["label"].dtype == np.int64 and (jets.labels["label"] == MADE.classes).all()
    assert (jets.labels["jet_pt"] == MADE.jet_pt).all()


@pytest.mark.parametrize(
    "options", [{"compression": c} for c in ("none", "lz4", "zstd")] + [{"large": False}, {"row_group_size": 7}]
)
def test_parquet_as_others_write_it(tmp_path, options):
    parts, flat = io_files.branches(MADE)
    io_files.parquet(tmp_path / "jets.parquet", parts, flat, MADE.counts, **options)
    assert fasttag.read(tmp_path / "jets.parquet").p4.tobytes() == MADE.p4.tobytes()


def test_parquet_by_awkward(tmp_path):
    parts, flat = io_files.branches(MADE)
    record = ak.zip({name: ak.unflatten(v, MADE.counts) for name, v in parts.items()} | flat, depth_limit=1)
    ak.to_parquet(record, tmp_path / "jets.parquet", row_group_size=100)
    jets = fasttag.read(tmp_path / "jets.parquet", start=50, stop=250)
    assert jets.p4.tobytes() == np.ascontiguousarray(MADE.p4[:, MADE.offsets[50] : MADE.offsets[250]]).tobytes()


@pytest.mark.parametrize("compression", ["ZLIB", "LZMA", "LZ4", "ZSTD", None])
def test_root_in_all_compressions(tmp_path, compression):
    parts, flat = io_files.branches(MADE)
    io_files.jetclass(tmp_path / "jets.root", parts, flat, MADE.counts, compression)
    assert fasttag.read(tmp_path / "jets.root").p4.tobytes() == MADE.p4.tobytes()


def test_only_four_vectors(store):
    parts, _ = io_files.branches(MADE)
    parts = {name: parts[name].astype("f8") for name in ("part_px", "part_py", "part_pz", "part_energy")}
    jets = fasttag.read(store(parts, {}))
    assert jets.p4.dtype == np.float64 and not jets.columns and not jets.labels


def test_a_label_of_its_own_and_other_columns(store):
    """Converted top-tagging files have `label` instead of the ten classes, and more than a reader needs."""
    parts, _ = io_files.branches(MADE)
    labels = MADE.classes % 2
    jets = fasttag.read(store(parts, {"label": labels, "event": labels}))
    assert (jets.labels["label"] == labels).all() and jets.labels.keys() == {"label"}


def test_no_jets(store):
    none = io_files.Made(0)
    parts, flat = io_files.branches(none)
    (jets,) = fasttag.iter_read(store(parts, flat, none.counts))
    assert len(jets) == 0 and jets.columns["kind"].dtype == np.int8 and jets.labels["label"].dtype == np.int64


def change(name, values):
    parts, flat = io_files.branches(MADE)
    (parts if name in parts else flat)[name] = values((parts if name in parts else flat)[name].copy())
    return parts, flat


def at(index, value):
    def put(array):
        array[index] = value
        return array

    return put


def second_class(array):
    array[4] = 1
    return array


OTHER = next(c for c in io_files.CLASSES if c != io_files.CLASSES[MADE.classes[4]])
FLAG = f"part_{io_files.FLAGS[(MADE.kind[MADE.offsets[4]] + 1) % 5]}"


@pytest.mark.parametrize(
    "name, values, error",
    [
        ("part_energy", at(MADE.offsets[4], np.nan), "p4 must be finite with E >= 0, got .* in jet 4, constituent 0"),
        ("part_energy", at(MADE.offsets[4] + 1, -1.0), "p4 must be finite with E >= 0, got .* in jet 4, constituent 1"),
        ("part_px", lambda array: array.astype("i4"), "must be floats, got .*int32"),
        ("jet_nparticles", at(9, 100), r"jet_nparticles counts 100(\.0)? in row 9, part_px \d+"),
        ("label_QCD", at(4, 0.5), r"label_\* must be 0 or 1, got .*at row 4"),
        (f"label_{OTHER}", second_class, r"one of label_\* must be 1, got 2 of them in row 4"),
        (FLAG, at(MADE.offsets[4], 1), "only one of part_isNeutralHadron.* may be set, got more in row 4"),
    ],
)
def test_values_that_cannot_be(store, name, values, error):
    path = store(*change(name, values))
    with pytest.raises(fasttag.FasttagError, match=rf"jets\.file.*{error}"):
        fasttag.read(path)


def test_branches_of_other_lengths(store):
    parts, flat = io_files.branches(MADE)
    counts = dict.fromkeys(parts, MADE.counts) | {"part_d0val": np.roll(MADE.counts, 1)}
    with pytest.raises(fasttag.CorruptFileError, match=r"part_d0val counts \d+ in row 0, part_px \d+"):
        fasttag.read(store(parts, flat, counts))


@pytest.mark.parametrize("missing", ["part_px", "part_energy"])
def test_missing_branches(store, missing):
    parts, flat = io_files.branches(MADE)
    del parts[missing]
    with pytest.raises(fasttag.FormatError, match=rf"must have part_px, .*, got no {missing}"):
        fasttag.read(store(parts, flat))


@pytest.mark.parametrize("name, lists", [("part_pz", True), ("jet_pt", False)])
def test_branches_of_other_kinds(store, name, lists):
    parts, flat = io_files.branches(MADE)
    parts.pop(name, None), flat.pop(name, None)
    if lists:
        flat[name] = np.zeros(300, np.float32)
    else:
        parts[name] = np.zeros(MADE.kind.size, np.float32)
    with pytest.raises(fasttag.FormatError, match=f"{name} must be numbers{' in lists' * lists}"):
        fasttag.read(store(parts, flat))


def test_missing_values_in_parquet(tmp_path):
    parts, flat = io_files.branches(MADE)
    flat["jet_pt"] = [None, *flat["jet_pt"][1:].tolist()]
    io_files.parquet(tmp_path / "jets.parquet", parts, flat, MADE.counts)
    with pytest.raises(fasttag.CorruptFileError, match="jet_pt must not have missing values, got 1"):
        fasttag.read(tmp_path / "jets.parquet")


def test_page_checksums_are_verified(tmp_path):
    path = tmp_path / "jets.parquet"
    parts, flat = io_files.branches(MADE)
    io_files.parquet(path, parts, flat, MADE.counts, compression="none", write_page_checksum=True, use_dictionary=False)
    raw = bytearray(path.read_bytes())
    place = raw.find(MADE.p4[0, :200].tobytes())
    raw[place + 403] ^= 1
    path.write_bytes(raw)
    with pytest.raises(fasttag.CorruptFileError, match=r"jets\.parquet"):
        fasttag.read(path)


def test_another_tree(tmp_path):
    import uproot

    with uproot.recreate(tmp_path / "other.root") as file:
        file["events"] = {"x": np.zeros(3)}
    with pytest.raises(fasttag.FormatError, match="tree must be a TTree, the file has events"):
        fasttag.read(tmp_path / "other.root")
