"""EnergyFlow's quark/gluon jets: npz with X (J, M, 4) = pt, rapidity, phi, PDG id, padded with zeros, and y, 1 = quark.

The rapidity is that of the massive particle, so the mass that the PDG id stands for is needed to undo it:
mT = sqrt(pt^2 + m^2), E = mT cosh y, pz = mT sinh y.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Collection, Iterator
from typing import IO

import numpy as np

from ..errors import CorruptFileError, FormatError
from ..jets import Jets
from ._checks import checked, spans, zero_or_one

# |PDG id|: mass in GeV, kind. With antiparticles these are the 14 ids of the samples; in rising order.
PARTICLES = {
    11: (0.00051099895, 2),
    13: (0.1056583755, 3),
    22: (0.0, 4),
    130: (0.497611, 0),
    211: (0.13957039, 1),
    321: (0.493677, 1),
    2112: (0.93956542052, 0),
    2212: (0.93827208816, 1),
}
IDS = np.array(list(PARTICLES))
MASSES, KINDS = np.array(list(PARTICLES.values())).T
BLOCK_BYTES = 8 << 20
MAX_SLOTS = 1 << 16


def blocks(path: str | os.PathLike, start: int, stop: int | None, columns: Collection[str] | None) -> Iterator[Jets]:
    """See fasttag.io.read."""
    with zipfile.ZipFile(path) as archive, _open(archive, "X") as x, _open(archive, "y") as y:
        shape, dtype = _header(x, f"{path}: X")
        if len(shape) != 3 or shape[2] != 4 or shape[1] > MAX_SLOTS or dtype != np.float64:
            raise FormatError(f"{path}: X must be float64 (J, M, 4), got {dtype} {shape}")
        if (found := _header(y, f"{path}: y"))[0] != shape[:1] or found[1].kind not in "biuf":
            raise FormatError(f"{path}: y must be {shape[0]} numbers, one per jet, got {found[1]} {found[0]}")
        labels = zero_or_one(_rows(y, *found), f"{path}: y", 0)
        row_bytes = shape[1] * 4 * 8
        ranges = list(spans(start, stop, shape[0], max(1, BLOCK_BYTES // max(1, row_bytes))))
        x.seek(ranges[0][0] * row_bytes, os.SEEK_CUR)
        for begin, end in ranges:
            rows = _rows(x, (end - begin, *shape[1:]), dtype)
            yield _jets(rows, labels[begin:end], f"{path}: X", begin, columns)


def _jets(x: np.ndarray, label: np.ndarray, where: str, row: int, columns: Collection[str] | None) -> Jets:
    valid = x[:, :, 0] != 0
    counts = valid.sum(1)
    pt, y, phi, pid = x[valid].T
    wrong = np.flatnonzero((pt < 0) | (pid != np.rint(pid)) | ~(np.abs(pid) < 2**31))
    jet = np.repeat(np.arange(len(x)), counts)
    if wrong.size:
        i = wrong[0]
        raise CorruptFileError(
            f"{where} must have pt >= 0 and a whole PDG id, got pt {pt[i]} and id {pid[i]} in row {row + jet[i]}"
        )
    entry = np.searchsorted(IDS[:-1], np.abs(pid))
    known = IDS[entry] == np.abs(pid)
    mass = np.where(known, MASSES[entry], 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        mt = np.hypot(pt, mass)
        p4 = np.stack([pt * np.cos(phi), pt * np.sin(phi), mt * np.sinh(y), mt * np.cosh(y)])
    made = {"pid": pid.astype(np.int32), "kind": np.where(known, KINDS[entry], 0).astype(np.int8)}
    kept = {name: column for name, column in made.items() if columns is None or name in columns}
    labels = {"label": label, "n_unknown_pid": np.bincount(jet[~known], minlength=len(x))}
    return checked(Jets(p4, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]), kept, labels), where, row)


def _open(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """An array of the archive, its checksum verified: a first pass, so that no wrong number is ever given out."""
    where = f"{archive.filename}: {name}"
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        names = ", ".join(archive.namelist()[:9])
        raise FormatError(f"{where} is missing; the file has {names or 'nothing'}") from None
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FormatError(f"{where} must be stored or deflated, got zip method {info.compress_type}")
    file, size = archive.open(info), 0
    while piece := file.read(1 << 20):
        size += len(piece)
    if size != info.file_size:
        raise CorruptFileError(f"{where} declares {info.file_size} bytes, the file has {size}")
    file.seek(0)
    return file


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an npy array, which must be what the size of the member says."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise FormatError(f"{where} must be an npy array of version 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order or dtype.hasobject:
        raise FormatError(f"{where} must be numbers in C order, got {dtype}{' in Fortran order' * fortran_order}")
    begin, nbytes = file.tell(), math.prod(shape) * dtype.itemsize
    size = file.seek(0, os.SEEK_END) - file.seek(begin)
    if min(shape, default=0) < 0 or nbytes != size:
        raise CorruptFileError(f"{where} declares {dtype} {shape}, which is not the size of its data")
    return shape, dtype


def _rows(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
