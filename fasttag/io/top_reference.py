"""The top-tagging reference files (Zenodo 2603256): HDF5 as pandas writes it, layouts `table` and `fixed`.

A row is a jet: E_i, PX_i, PY_i, PZ_i of (usually) 200 slots padded with zeros, truthE, truthPX, truthPY, truthPZ, ttv,
is_signal_new. pandas keeps the names of the columns as a pickle, which is walked here and never run.
"""

from __future__ import annotations

import itertools
import math
import os
import pickletools
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import h5py
import numpy as np

from ..errors import CorruptFileError, FormatError
from ..jets import Jets
from ._checks import checked, spans, zero_or_one
from ._hdf5 import BLOSC, BLOSC2, BZIP2, FLETCHER32, GZIP, SHUFFLE, Stored, attribute, child, open_file

FILTERS = (GZIP, SHUFFLE, FLETCHER32, BZIP2, BLOSC, BLOSC2)
LABELS = {
    "is_signal_new": "label",
    "ttv": "ttv",
    "truthPX": "truth_px",
    "truthPY": "truth_py",
    "truthPZ": "truth_pz",
    "truthE": "truth_E",
}
DTYPES = tuple(map(np.dtype, ("f4", "f8", "i4", "i8")))
MAX_COLUMNS = 1 << 16
# some MB stay in cache between reading and converting; two such blocks are alive at a time
BLOCK_BYTES = 4 << 20

# which matrix of a frame, and what to take from its second axis
_Place = tuple[int, Any]


class _Frame(NamedTuple):
    """A pandas frame: matrices (rows, columns), of which `read(begin, end)` gives some rows; `step` at once is good."""

    rows: int
    step: int
    dtypes: list[np.dtype]
    names: list[list[str]]
    read: Callable[[int, int], list[np.ndarray]]


def blocks(path: str | os.PathLike, start: int, stop: int | None, columns: Collection[str] | None) -> Iterator[Jets]:
    """See fasttag.io.read."""
    import hdf5plugin  # noqa: F401  registers bzip2, blosc and blosc2

    with open_file(path) as file:
        group, layout = _find(file)
        where = f"{path}: {group.name}"
        frame = layout(group, where)
        (home, positions), labels = _schema(frame, where)
        for begin, matrices in _ahead(frame.read, list(spans(start, stop, frame.rows, frame.step))):
            p4, offsets = _ragged(_columns(matrices[home], positions))
            found = {name: matrices[i][:, column].copy() for name, (i, column) in labels.items()}
            found["label"] = zero_or_one(found["label"], f"{where}: is_signal_new", begin)
            yield checked(Jets(p4, offsets, {}, found), where, begin)


def _ahead(
    read: Callable[[int, int], list[np.ndarray]], ranges: list[tuple[int, int]]
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """begin and read(begin, end) of each range. Another thread decompresses the next while this one is converted."""
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(read, *ranges[0])
        for (begin, _), following in itertools.zip_longest(ranges, ranges[1:]):
            matrices = future.result()
            if following:
                future = thread.submit(read, *following)
            yield begin, matrices


def _columns(matrix: np.ndarray, positions: list[int]) -> np.ndarray:
    """Some columns of a matrix: a view where they follow one another, as in the published files."""
    first, last = positions[0], positions[-1] + 1
    return matrix[:, first:last] if positions == list(range(first, last)) else matrix.take(positions, 1)


def _ragged(slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p4 (4, N) and offsets of rows E_0, PX_0, PY_0, PZ_0, E_1, ..., without the slots where all four are zero."""
    slots = slots.reshape(len(slots), slots.shape[1] // 4, 4)
    # four booleans and four components are each taken as one number: twice as fast as component by component
    valid = (slots != 0).view(np.uint32)[..., 0] != 0
    offsets = np.concatenate([[0], np.cumsum(np.count_nonzero(valid, axis=1), dtype=np.int64)])
    kept = slots.view(f"V{4 * slots.itemsize}")[..., 0][valid].view(slots.dtype).reshape(-1, 4)
    p4 = np.empty((4, offsets[-1]), slots.dtype)
    for row, component in zip(p4, (1, 2, 3, 0)):
        row[:] = kept[:, component]
    return p4, offsets


def _find(file: h5py.File) -> tuple[h5py.Group, Any]:
    layouts = {b"frame_table": _table, b"frame": _fixed}
    members = [child(file, name) for name in file]
    kinds = [(group, attribute(group, "pandas_type")) for group in members if isinstance(group, h5py.Group)]
    frames = [(group, layouts[kind]) for group, kind in kinds if kind in layouts]
    if len(frames) != 1:
        raise FormatError(
            f"{file.filename}: must be a native file or hold one pandas frame, got {len(frames)} frames among "
            f"{', '.join(list(file)[:9]) or 'no members'}"
        )
    return frames[0]


def _table(group: h5py.Group, where: str) -> _Frame:
    data = Stored(group, "table", FILTERS)
    rows, declared = data.shape[0], data.attribute("NROWS")
    if data.dtype.names is None or len(data.shape) != 1:
        raise FormatError(f"{data.where} must be a table, got {data.dtype} {data.shape}")
    if declared != rows:
        raise CorruptFileError(f"{data.where} has {rows} rows, its attribute NROWS says {declared}")
    fields = [name for name in data.dtype.names if name.startswith("values_block_")]
    names = [_names(data.attribute(f"{field}_kind"), f"{data.where}: {field}") for field in fields]
    dtypes = [data.dtype[field].base for field in fields]

    def read(begin: int, end: int) -> list[np.ndarray]:
        records = data.read(begin, end)
        return [records[field] for field in fields]

    return _Frame(rows, _step(data), dtypes, names, read)


def _fixed(group: h5py.Group, where: str) -> _Frame:
    axis = Stored(group, "axis1", FILTERS)
    blocks = range(attribute(group, "nblocks") or 0)
    names = [_items(Stored(group, f"block{i}_items", FILTERS)) for i in blocks]
    values = [Stored(group, f"block{i}_values", FILTERS) for i in blocks]
    # pandas stores an empty array as one placeholder and says so in the attribute `shape`
    if axis.attribute("shape") is not None:
        dtypes = [np.dtype(data.attribute("value_type").decode()) for data in values]
        return _Frame(0, 1, dtypes, names, lambda *_: [np.empty((0, len(n)), d) for n, d in zip(names, dtypes)])
    rows = axis.shape[0]
    for data, columns in zip(values, names):
        if data.shape != (rows, len(columns)):
            raise CorruptFileError(f"{data.where} must have shape {(rows, len(columns))}, got {data.shape}")
    step = max(map(_step, values), default=1)
    dtypes = [data.dtype for data in values]
    return _Frame(rows, step, dtypes, names, lambda begin, end: [data.read(begin, end) for data in values])


def _items(data: Stored) -> list[str]:
    if len(data.shape) != 1 or data.dtype.kind != "S" or data.shape[0] > MAX_COLUMNS:
        raise FormatError(f"{data.where} must hold names of columns, got {data.dtype} {data.shape}")
    return [name.decode() for name in data.read(0, data.shape[0])]


def _names(pickled: Any, where: str) -> list[str]:
    """The list of strings in a pickle of protocol 0. No pickle is ever loaded: loading one can run any program."""
    if not isinstance(pickled, bytes):
        raise FormatError(f"{where} must have its column names in an attribute, got {type(pickled).__name__}")
    names: list[Any] = []
    for opcode, value, _ in pickletools.genops(pickled):
        if opcode.name in ("UNICODE", "STRING"):
            names.append(value)
        elif opcode.name not in ("MARK", "LIST", "PUT", "APPEND", "STOP"):
            raise FormatError(f"{where} must have a pickled list of strings as column names, got {opcode.name}")
    return names


def _step(data: Stored) -> int:
    """Rows to read at once: whole HDF5 chunks, so that none is decompressed twice; several if they are small."""
    chunk = data.chunks[0] if data.chunks else 1
    row_bytes = math.prod(data.shape[1:]) * data.dtype.itemsize
    return chunk * max(1, BLOCK_BYTES // max(1, chunk * row_bytes))


def _schema(frame: _Frame, where: str) -> tuple[_Place, dict[str, _Place]]:
    """Where E_0, PX_0, PY_0, PZ_0, E_1, ... are, and where the labels are. By name: no order is assumed."""
    place = {name: (i, column) for i, names in enumerate(frame.names) for column, name in enumerate(names)}
    slots = max(1, sum(name.startswith("E_") for name in place))
    vectors = [f"{component}_{i}" for i in range(slots) for component in ("E", "PX", "PY", "PZ")]
    required = {*vectors, "is_signal_new"}
    if len(place) != sum(map(len, frame.names)) or not required <= place.keys() <= required.union(LABELS):
        odd = sorted(required - place.keys()) or sorted(place.keys() - required.union(LABELS)) or ["a name twice"]
        raise FormatError(
            f"{where} must have the columns E_i, PX_i, PY_i, PZ_i, is_signal_new, perhaps ttv and truthE, truthPX, "
            f"truthPY, truthPZ and no others, each once; look at {', '.join(odd[:5])}"
        )
    home = place["E_0"][0]
    if frame.dtypes[home].kind != "f" or any(place[n][0] != home for n in vectors) or not {*frame.dtypes} <= {*DTYPES}:
        raise FormatError(f"{where} must have all four-vectors in float32 or in float64, got blocks of {frame.dtypes}")
    labels = {label: place[name] for name, label in LABELS.items() if name in place}
    return (home, [place[name][1] for name in vectors]), labels
