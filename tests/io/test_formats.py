"""What holds for every format: counts, order, ranges, streaming, and errors that name the file."""

import shutil
import sys

import io_files
import numpy as np
import pytest

import fasttag
import fasttag.io

FORMATS = ("top-reference", "fasttag", "energyflow", "jetclass", "parquet")
JETS = 90


@pytest.fixture(scope="module")
def sound(tmp_path_factory, data):
    """format -> a file of 90 jets."""
    folder = tmp_path_factory.mktemp("formats")
    made = io_files.Made(JETS)
    parts, flat = io_files.branches(made)
    paths = {name: folder / name for name in FORMATS}
    shutil.copy(data / "pandas_table_blosc.h5", paths["top-reference"])
    io_files.native(paths["fasttag"], made)
    x, y = io_files.energyflow_arrays(JETS)
    io_files.energyflow(paths["energyflow"], X=x, y=y)
    io_files.jetclass(paths["jetclass"], parts, flat, made.counts)
    io_files.parquet(paths["parquet"], parts, flat, made.counts, row_group_size=25)
    return paths


def equal(a, b):
    a, b = a.compact(), b.compact()
    assert a.columns.keys() == b.columns.keys() and a.labels.keys() == b.labels.keys()
    for name, array in {"p4": a.p4, "offsets": a.offsets, **a.columns, **a.labels}.items():
        other = {"p4": b.p4, "offsets": b.offsets, **b.columns, **b.labels}[name]
        assert array.dtype == other.dtype and array.tobytes() == other.tobytes(), name
    return True


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_is_recognised_by_content(sound, name):
    jets = fasttag.read(sound[name])
    assert len(jets) == JETS and jets.library == "numpy"
    assert equal(jets, fasttag.read(str(sound[name]), format=name))


@pytest.mark.parametrize("chunk", [1, 7, JETS, 1000])
@pytest.mark.parametrize("name", FORMATS)
def test_streaming_equals_the_whole(sound, name, chunk):
    pieces = list(fasttag.iter_read(sound[name], chunk=chunk))
    assert [len(piece) for piece in pieces] == [min(chunk, JETS - i) for i in range(0, JETS, chunk)]
    assert equal(fasttag.Jets.concatenate(pieces), fasttag.read(sound[name]))


@pytest.mark.parametrize(
    "start, stop", [(0, 1), (3, 4), (13, 77), (24, 26), (89, None), (50, 10**12), (0, 0), (200, 300)]
)
@pytest.mark.parametrize("name", FORMATS)
def test_ranges_are_slices(sound, name, start, stop):
    whole = fasttag.read(sound[name])
    assert equal(fasttag.read(sound[name], start=start, stop=stop), whole[start:stop])
    pieces = list(fasttag.iter_read(sound[name], chunk=8, start=start, stop=stop))
    assert equal(fasttag.Jets.concatenate(pieces), whole[start:stop])


@pytest.mark.parametrize("name", ["fasttag", "energyflow", "jetclass", "parquet"])
def test_columns_are_selected(sound, name):
    (jets,) = fasttag.iter_read(sound[name], columns=["kind"])
    assert list(jets.columns) == ["kind"]
    assert (jets.columns["kind"] == fasttag.read(sound[name]).columns["kind"]).all()
    assert not next(fasttag.iter_read(sound[name], columns=[])).columns


@pytest.mark.parametrize("name", FORMATS)
def test_a_column_that_is_not_there_is_an_error(sound, name):
    with pytest.raises(ValueError, match=r"iter_read: columns must be in .*, got colour"):
        next(fasttag.iter_read(sound[name], columns=["colour"]))


@pytest.mark.parametrize("name", FORMATS)
def test_every_truncation_is_an_error(sound, name, tmp_path):
    raw = sound[name].read_bytes()
    path = tmp_path / "truncated"
    for size in np.linspace(0, len(raw) - 100, 25, dtype=int):
        path.write_bytes(raw[:size])
        with pytest.raises(fasttag.FasttagError, match="truncated"):
            fasttag.read(path)


@pytest.mark.parametrize("name", FORMATS)
def test_another_format_is_an_error(sound, name):
    for other in FORMATS:
        if other != name:
            with pytest.raises(fasttag.FasttagError, match=name):
                fasttag.read(sound[name], format=other)


@pytest.mark.parametrize("raw, got", [(b"", "an empty file"), (b"GIF89a.......", "starts with b'GIF89a..'")])
def test_files_of_no_format(tmp_path, raw, got):
    path = tmp_path / "file"
    path.write_bytes(raw)
    with pytest.raises(fasttag.FormatError, match=got):
        fasttag.read(path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        fasttag.read(tmp_path / "absent.h5")
    with pytest.raises(IsADirectoryError):
        fasttag.read(tmp_path)


def test_arguments(sound):
    path = sound["fasttag"]
    for arguments in ({"start": -1}, {"stop": -1}):
        with pytest.raises(ValueError, match=r"^read: start and stop must not be negative"):
            fasttag.read(path, **arguments)
    with pytest.raises(ValueError, match=r"^read: format must be one of top-reference, .*, got 'csv'"):
        fasttag.read(path, format="csv")
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        next(fasttag.iter_read(path, chunk=0))


def test_chunks_go_where_they_are_asked_to(sound):
    (jets,) = fasttag.iter_read(sound["fasttag"], library="torch")
    assert jets.library == "torch" and jets.device == "cpu"


def test_importing_the_readers_loads_no_library_for_files():
    import subprocess

    code = "import sys, fasttag.io; print(sorted({'h5py', 'uproot', 'pyarrow', 'awkward', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_sample():
    jets = fasttag.read(fasttag.io.sample_path())
    assert len(jets) == 4000 and jets.labels["label"].sum() == 1952
    assert jets.p4.dtype == np.float32 and jets.columns["kind"].dtype == np.int8 and jets.labels.keys() == {"label"}
    assert set(np.unique(jets.columns["kind"])) == {0, 1, 2, 3, 4}
    assert fasttag.io.sample_path().stat().st_size <= 3e6
