"""HDF5 files that nobody vouches for: what libhdf5 would trust is checked before a value is read.

libhdf5 follows links out of the file, fills chunks that are missing, converts types that almost match and allocates
what a header declares. A sound table has none of that, so all of it is refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5t

from ..errors import CorruptFileError, FormatError

GZIP, SHUFFLE, FLETCHER32, BZIP2, LZO, BLOSC, BLOSC2 = 1, 2, 3, 307, 305, 32001, 32026
# PyTables makes blosc2 chunks as large as the L3 cache of the machine, 480 MiB where we looked
MAX_CHUNK = 1 << 30
CACHE = 16 << 20


def open_file(path: str | os.PathLike) -> h5py.File:
    return h5py.File(Path(path), "r", rdcc_nbytes=CACHE)


def is_native(path: str | os.PathLike) -> bool:
    with open_file(path) as file:
        return attribute(file, "format") == b"fasttag-jets"


def child(group: h5py.Group, name: str) -> Any:
    """A member of a group. Links to elsewhere, inside the file or out of it, are refused."""
    where = f"{group.file.filename}: {group.name.rstrip('/')}/{name}"
    if name.encode() not in group.id:
        raise FormatError(f"{where} is missing; the file has {', '.join(group) or 'nothing'}")
    if group.id.links.get_info(name.encode()).type != h5l.TYPE_HARD:
        raise FormatError(f"{where} must be in the file itself, got a link")
    return group[name]


def attribute(item: h5py.HLObject, name: str) -> Any:
    """The value of an attribute, None if there is none: a number, an array of numbers or fixed-length bytes."""
    if not h5a.exists(item.id, name.encode()):
        return None
    kind = h5a.open(item.id, name.encode()).get_type()
    if not isinstance(kind, h5t.TypeIntegerID) and not (
        isinstance(kind, h5t.TypeStringID) and not kind.is_variable_str()
    ):
        raise FormatError(f"{item.file.filename}: attribute {name} of {item.name} must be a string or integers")
    value = item.attrs[name]
    return b"" if isinstance(value, h5py.Empty) else value


def dataset(group: h5py.Group, name: str, filters: Collection[int]) -> h5py.Dataset:
    """A dataset that holds all the values it declares, stored with the filters listed and nothing else."""
    data = child(group, name)
    where = f"{group.file.filename}: {data.name}"
    if not isinstance(data, h5py.Dataset) or data.shape is None:
        raise FormatError(f"{where} must be a dataset, got {type(data).__name__}")
    # names may be padded in several ways; numbers must be exactly what NumPy takes them for
    if data.dtype.kind != "S" and not data.id.get_type().equal(h5t.py_create(data.dtype)):
        raise FormatError(f"{where} must have a standard type, got one close to {data.dtype}")
    plist = data.id.get_create_plist()
    layout, size = plist.get_layout(), data.file.id.get_filesize()
    if plist.get_external_count() or layout not in (h5d.CONTIGUOUS, h5d.CHUNKED):
        raise FormatError(f"{where} must keep its values in the file, contiguous or in chunks")
    if layout == h5d.CONTIGUOUS:
        offset = data.id.get_offset()
        if data.nbytes and (offset is None or data.id.get_storage_size() != data.nbytes or offset + data.nbytes > size):
            raise CorruptFileError(f"{where} declares {data.nbytes} bytes that the file does not have")
    else:
        _check_chunks(where, data, [plist.get_filter(i) for i in range(plist.get_nfilters())], filters, size)
    return data


def _check_chunks(where: str, data: h5py.Dataset, pipeline: list[tuple], allowed: Collection[int], size: int) -> None:
    names = [code for code, *_ in pipeline]
    if LZO in names:
        raise FormatError(f"{where} is compressed with lzo, which has no free plugin; use ptrepack --complib=blosc")
    if unexpected := set(names) - set(allowed):
        raise FormatError(f"{where} must use HDF5 filters {sorted(allowed)} only, got {sorted(unexpected)}")
    nbytes = math.prod(data.chunks) * data.dtype.itemsize
    grid = [-(-n // c) for n, c in zip(data.shape, data.chunks)]
    count = math.prod(grid)
    if nbytes > MAX_CHUNK or count > size:
        raise CorruptFileError(f"{where} declares {count} chunks of {nbytes} bytes in a file of {size} bytes")
    for code, _, values, _ in pipeline:
        found, expected = (
            values[:1] if code == SHUFFLE else values[3:4],
            data.dtype.itemsize if code == SHUFFLE else nbytes,
        )
        if code in (SHUFFLE, BLOSC, BLOSC2) and found != (expected,):
            raise CorruptFileError(f"{where}: filter {code} must be set up for {expected} bytes, got {found}")
    chunks: list[Any] = []
    data.id.chunk_iter(chunks.append)
    if len(chunks) != count:
        raise CorruptFileError(f"{where} declares {count} chunks, the file has {len(chunks)}")
    if not chunks:
        return
    index = np.array([chunk.chunk_offset for chunk in chunks], np.int64) / data.chunks
    begin = np.array([chunk.byte_offset for chunk in chunks], np.int64)
    length = np.array([chunk.size for chunk in chunks], np.int64)
    order = np.argsort(begin)
    begin, end = begin[order], (begin + length)[order]
    sound = (
        len(np.unique(index, axis=0)) == count
        and (index == np.floor(index)).all()
        and (index < grid).all()
        and not any(chunk.filter_mask for chunk in chunks)
        and (length > 0).all()
        and end[-1] <= size
        and (begin[1:] >= end[:-1]).all()
    )
    if not sound or (not pipeline and (length != nbytes).any()):
        raise CorruptFileError(f"{where}: its index of chunks is damaged")
