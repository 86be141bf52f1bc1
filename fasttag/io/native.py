"""fasttag's own file: ragged HDF5 with a checksum on every chunk and on all metadata.

Root attributes: format = "fasttag-jets", version = (major, minor), complete = 1, written last. Datasets: p4 (4, N)
float32 or float64, rows px, py, pz, E in GeV; offsets (J+1,) int64 from 0 to N; columns/<name> (N,) and labels/<name>
(J,), numbers. All are chunked by at most 65,536 along the last axis, with filters shuffle, gzip, Fletcher32. A newer
minor version may add members, a newer major version may change these.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from typing import Any

import h5py
import numpy as np

from .._files import replacing
from ..errors import CorruptFileError, FormatError
from ..jets import Jets
from ._checks import checked, spans
from ._hdf5 import FLETCHER32, GZIP, SHUFFLE, Stored, attribute, child, open_file

VERSION = (1, 0)
FILTERS = (SHUFFLE, GZIP, FLETCHER32)
CHUNK = 65536
# reads are not aligned with chunks: this holds those of p4 in float64
CACHE = 16 << 20
# jets read at once: about as many constituents as three chunks hold
BLOCK = 4096


def blocks(path: str | os.PathLike, start: int, stop: int | None, columns: Collection[str] | None) -> Iterator[Jets]:
    """See fasttag.io.read."""
    with open_file(path, CACHE) as file:
        _check_version(file)
        p4, offsets = _stored(file, "p4"), _stored(file, "offsets")
        if len(p4.shape) != 2 or p4.shape[0] != 4 or p4.dtype not in (np.float32, np.float64):
            raise FormatError(f"{p4.where} must be float32 or float64 (4, N), got {p4.dtype} {p4.shape}")
        if len(offsets.shape) != 1 or not offsets.shape[0] or offsets.dtype != np.int64:
            raise FormatError(f"{offsets.where} must be int64 (J+1,), got {offsets.dtype} {offsets.shape}")
        total, jets = p4.shape[1], offsets.shape[0] - 1
        limits = [int(offsets.read(i, i + 1)[0]) for i in (0, jets)]
        if limits != [0, total]:
            raise CorruptFileError(f"{offsets.where} must go from 0 to {total}, got {limits}")
        per_constituent, per_jet = _members(file, "columns", total), _members(file, "labels", jets)
        for begin, end in spans(start, stop, jets, BLOCK):
            ends = offsets.read(begin, end + 1)
            wrong = np.flatnonzero((ends[1:] < ends[:-1]) | (ends[:-1] < 0) | (ends[1:] > total))
            if wrong.size:
                i = wrong[0]
                raise CorruptFileError(
                    f"{offsets.where} must rise within 0..{total}, got {ends[i]} then {ends[i + 1]} in row {begin + i}"
                )
            first, last = int(ends[0]), int(ends[-1])
            kept = {name: data for name, data in per_constituent.items() if columns is None or name in columns}
            found = {name: data.read(first, last) for name, data in kept.items()}
            labels = {name: data.read(begin, end) for name, data in per_jet.items()}
            yield checked(Jets(p4.read(first, last), ends - first, found, labels), p4.where, begin)


def _check_version(file: h5py.File) -> None:
    version = attribute(file, "version")
    if attribute(file, "format") != b"fasttag-jets" or np.shape(version) != (2,):
        raise FormatError(f"{file.filename}: must have format fasttag-jets and a version, got version {version}")
    if version[0] != VERSION[0]:
        raise FormatError(
            f"{file.filename}: must be version {VERSION[0]}.x, got {version[0]}.{version[1]}; update fasttag"
        )
    if attribute(file, "complete") != 1:
        raise CorruptFileError(f"{file.filename}: was not completed by its writer; write it again")


def _stored(group: h5py.Group, name: str) -> Stored:
    data = Stored(group, name, FILTERS, axis=-1)
    if data.filters != [*FILTERS]:
        raise FormatError(f"{data.where} must be stored with shuffle, gzip and Fletcher32, got filters {data.filters}")
    return data


def _members(file: h5py.File, name: str, length: int) -> dict[str, Stored]:
    group = child(file, name)
    members = {member: _stored(group, member) for member in group}
    for data in members.values():
        if data.shape != (length,) or data.dtype.kind not in "biuf":
            raise FormatError(f"{data.where} must be numbers ({length},), got {data.dtype} {data.shape}")
    return members


class Writer:
    """Write a native file piece by piece, in bounded memory: `with Writer(path) as writer: writer.append(jets)`.

    The file appears under its name, replacing an older one, when the block ends without an error. Until then the data
    is in a hidden temporary file next to it, which a killed process leaves behind.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._path = path
        self._pending: list[Jets] = []
        self._schema: dict[str, np.dtype] = {}

    def __enter__(self) -> Writer:
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(replacing(self._path))
            # from v110 on libhdf5 puts checksums on all metadata
            self._file = stack.enter_context(h5py.File(temporary, "w", libver=("v110", "v110")))
            self._file.attrs["format"] = np.bytes_("fasttag-jets")
            self._file.attrs["version"] = np.array(VERSION, np.int64)
            self._file.create_group("columns")
            self._file.create_group("labels")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None:
            self._stack.__exit__(*error)
            return
        with self._stack:
            if not self._schema:
                raise ValueError("write: there must be at least one Jets, got none; an empty one will do")
            self._flush()
            self._file.flush()
            self._file.attrs["complete"] = np.uint8(1)

    def append(self, jets: Jets) -> None:
        """Add jets at the end, from any device.

        Raises ValueError where columns, labels or dtypes differ from those before and for names with a slash,
        TypeError for columns and labels that are not numbers of at most 64 bits.
        """
        jets = jets.to("cpu", library="numpy").compact()
        schema = {name: array.dtype for name, array in _arrays(jets).items()}
        for name, dtype in schema.items():
            if dtype.kind not in "biuf" or dtype.itemsize > 8:
                raise TypeError(f"write: {name} must be numbers of at most 64 bits, got {dtype}; convert it")
            if name.count("/") > 1 or name.endswith(("/", "/.")):
                raise ValueError(f"write: names of columns and labels must not hold a slash, got {name}; rename it")
        self._schema = self._schema or schema
        if schema != self._schema:
            listed = ", ".join(sorted(name for name, _ in schema.items() ^ self._schema.items()))
            raise ValueError(f"write: all pieces must have the same members and dtypes, got other {listed}; convert")
        self._pending.append(jets)
        if sum(map(len, self._pending)) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        jets = Jets.concatenate(self._pending) if len(self._pending) > 1 else self._pending[0]
        self._pending.clear()
        written = self._file["p4"].shape[1] if "p4" in self._file else 0
        offsets = jets.offsets[1:] + written if "offsets" in self._file else jets.offsets
        for name, array in {**_arrays(jets), "offsets": offsets}.items():
            self._extend(name, array)

    def _extend(self, name: str, array: np.ndarray) -> None:
        *rows, length = array.shape
        if name not in self._file:
            self._file.create_dataset(
                name,
                (*rows, 0),
                array.dtype.newbyteorder("<"),
                maxshape=(*rows, None),
                chunks=(*rows, min(CHUNK, max(1, length))),
                shuffle=True,
                compression="gzip",
                fletcher32=True,
            )
        data = self._file[name]
        data.resize(data.shape[-1] + length, axis=len(rows))
        data[..., data.shape[-1] - length :] = array


def _arrays(jets: Jets) -> dict[str, np.ndarray]:
    """All arrays of jets under their names in the file."""
    columns = {f"columns/{name}": array for name, array in jets.columns.items()}
    labels = {f"labels/{name}": array for name, array in jets.labels.items()}
    return {"p4": jets.p4, "offsets": jets.offsets, **columns, **labels}
