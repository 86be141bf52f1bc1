"""EnergyFlow npz: massive kinematics by the PDG id, checksums before numbers, headers that lie."""

import math
import struct
import zipfile

import io_files
import numpy as np
import pytest

import fasttag


@pytest.mark.parametrize("compress", [True, False])
def test_every_particle_by_hand(tmp_path, compress):
    x, y = io_files.energyflow_arrays()
    io_files.energyflow(tmp_path / "qg.npz", compress, X=x, y=y)
    jets = fasttag.read(tmp_path / "qg.npz")
    assert jets.p4.dtype == np.float64 and jets.columns["pid"].dtype == np.int32
    assert jets.columns["kind"].dtype == np.int8 and jets.labels["label"].dtype == np.int64
    assert (jets.labels["label"] == y).all()
    i = 0
    for j, rows in enumerate(x):
        unknown = 0
        for pt, rapidity, phi, pid in rows[rows[:, 0] > 0]:
            mass, kind = io_files.PARTICLES[int(pid)]
            px, py, pz, e = jets.p4[:, i]
            assert math.isclose(math.hypot(px, py), pt, rel_tol=1e-12)
            assert math.isclose(math.cos(math.atan2(py, px) - phi), 1, rel_tol=1e-12)
            assert math.isclose(0.5 * math.log((e + pz) / (e - pz)), rapidity, rel_tol=1e-9, abs_tol=1e-9)
            assert math.isclose(e * e - px * px - py * py - pz * pz, mass**2, abs_tol=1e-11 * e * e)
            assert jets.columns["kind"][i] == kind and jets.columns["pid"][i] == pid
            unknown += int(pid) == 3122
            i += 1
        assert jets.offsets[j + 1] == i and jets.labels["n_unknown_pid"][j] == unknown


def test_fourteen_ids_are_known(tmp_path):
    ids = [22, 130, *(sign * i for i in (11, 13, 211, 321, 2212, 2112) for sign in (1, -1))]
    x = np.array([[[1.0, 0.0, 0.0, i] for i in (*ids, 0, 111, 3122)]])
    io_files.energyflow(tmp_path / "qg.npz", X=x, y=np.ones(1))
    jets = fasttag.read(tmp_path / "qg.npz")
    assert len(ids) == 14 and jets.labels["n_unknown_pid"].tolist() == [3]
    assert ((jets.p4[3] > 1) == [i != 22 for i in ids] + [False] * 3).all()


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (3, 5, 4)])
def test_files_without_particles(tmp_path, shape):
    io_files.energyflow(tmp_path / "empty.npz", X=np.zeros(shape), y=np.zeros(shape[0]))
    (jets,) = fasttag.iter_read(tmp_path / "empty.npz")
    assert len(jets) == shape[0] and jets.p4.shape == (4, 0)


def one(**change):
    row = {"pt": 2.0, "y": 0.5, "phi": 1.0, "pid": 211.0} | change
    x, y = io_files.energyflow_arrays()
    x[7, 0] = list(row.values())
    return {"X": x, "y": y}


X, Y = io_files.energyflow_arrays()


@pytest.mark.parametrize(
    "arrays, error",
    [
        (one(pt=-1.0), "X must have pt >= 0 and a whole PDG id, got pt -1.0 and id 211.0 in row 7"),
        (one(pid=211.5), "got pt 2.0 and id 211.5 in row 7"),
        (one(pid=np.nan), "got pt 2.0 and id nan in row 7"),
        (one(pid=1e12), "got pt 2.0 and id 1000000000000.0 in row 7"),
        (one(pt=np.nan), "X: Jets: p4 must be finite with E >= 0, got .* in jet 7, constituent 0"),
        (one(y=1000.0), "X: Jets: p4 must be finite with E >= 0, got .* in jet 7, constituent 0"),
        ({"X": X, "y": Y + 1}, r"y must be 0 or 1, got 2.0 at row \d+"),
        ({"X": X, "y": Y[1:]}, r"y must be 60 numbers, one per jet, got float64 \(59,\)"),
        ({"X": X.astype("f4"), "y": Y}, "X must be float64"),
        ({"X": X.astype(">f8"), "y": Y}, "X must be float64"),
        ({"X": X[..., :3], "y": Y}, r"X must be float64 \(J, M, 4\), got float64 \(60, 22, 3\)"),
        ({"X": np.asfortranarray(X), "y": Y}, "X must be numbers in C order"),
        ({"X": X, "y": np.array(Y, object)}, "y must be numbers in C order, got object"),
        ({"X": X}, "y is missing; the file has X.npy"),
        ({}, "X is missing; the file has nothing"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, arrays, error):
    io_files.energyflow(tmp_path / "odd.npz", **arrays)
    with pytest.raises(fasttag.FasttagError, match=rf"odd\.npz.*{error}"):
        fasttag.read(tmp_path / "odd.npz")


def test_a_header_that_claims_terabytes(tmp_path):
    path = tmp_path / "claim.npz"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 139, 4), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))
        archive.writestr("y.npy", b"")
    with pytest.raises(
        fasttag.CorruptFileError, match=r"X declares float64 \(1000000000, 139, 4\), which is not the size"
    ):
        fasttag.read(path)


@pytest.mark.parametrize("compress", [True, False])
def test_no_jet_comes_out_before_the_checksum_is_verified(tmp_path, compress):
    """The damage is at the end of the file, far behind the first chunk."""
    path = tmp_path / "flipped.npz"
    x, y = io_files.energyflow_arrays(3000)
    io_files.energyflow(path, compress, X=x, y=y)
    with zipfile.ZipFile(path) as archive:
        end = archive.getinfo("y.npy").header_offset
    raw = bytearray(path.read_bytes())
    raw[end - 20] ^= 4
    path.write_bytes(raw)
    with pytest.raises(fasttag.CorruptFileError, match=r"flipped\.npz"):
        next(fasttag.iter_read(path, chunk=1))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_zip_methods_are_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "odd.npz", "w", method) as archive:
        archive.writestr("X.npy", b"x")
    with pytest.raises(fasttag.FormatError, match="X must be stored or deflated"):
        fasttag.read(tmp_path / "odd.npz")
