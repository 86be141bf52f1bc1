"""HDF5 files that nobody vouches for: what libhdf5 would trust is checked before a value is read.

libhdf5 follows links out of the file, fills chunks that are missing, converts types that almost match and allocates
what a header declares. A sound table has none of that, so all of it is refused.
"""

from __future__ import annotations

import bz2
import itertools
import math
import os
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5s, h5t

from ..errors import CorruptFileError, FormatError

GZIP, SHUFFLE, FLETCHER32, BZIP2, LZO, BLOSC, BLOSC2 = 1, 2, 3, 307, 305, 32001, 32026
# PyTables makes blosc2 chunks as large as the L3 cache of the machine, and up to this
MAX_CHUNK = 2 << 30
# a chunk of the native format is 2 MB at most and is read piece by piece


def open_file(path: str | os.PathLike, cache: int = 1 << 20) -> h5py.File:
    """`cache` bytes of chunks are kept; more than needed costs a third of the speed."""
    return h5py.File(Path(path), "r", rdcc_nbytes=cache)


def is_native(path: str | os.PathLike) -> bool:
    with open_file(path) as file:
        return attribute(file, "format") == b"fasttag-jets"


def child(group: h5py.Group, name: str) -> Any:
    """A member of a group. Links to elsewhere, inside the file or out of it, are refused."""
    where = f"{group.file.filename}: {group.name.rstrip('/')}/{name}"
    if name.encode() not in group.id:
        raise FormatError(f"{where} is missing; the file has {', '.join(list(group)[:9]) or 'nothing'}")
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


class Stored:
    """A dataset that holds all the values it declares. Rows are counted along its first axis, or its last (axis -1).

    libhdf5 reads past the end of the memory, and crashes, where a chunk decodes to fewer bytes than the dataset
    declares: so the size of every chunk is looked up in its Blosc header, or found by decompressing it once more.
    """

    def __init__(self, group: h5py.Group, name: str, filters: Collection[int], axis: int = 0) -> None:
        """Filters are those that may be there, in any number but in the order shuffle, compression, Fletcher32."""
        self._data, self._axis = child(group, name), axis
        self.where = f"{group.file.filename}: {group.name.rstrip('/')}/{name}"
        if not isinstance(self._data, h5py.Dataset) or not self._data.ndim:
            raise FormatError(f"{self.where} must be an array, got {self._data}")
        self.shape, self.dtype, self.chunks = self._data.shape, self._data.dtype, self._data.chunks
        # names may be padded in several ways; numbers must be exactly what NumPy takes them for
        if self.dtype.kind != "S" and not self._data.id.get_type().equal(h5t.py_create(self.dtype)):
            raise FormatError(f"{self.where} must have a standard type, got one close to {self.dtype}")
        self.filters: list[int] = []
        plist = self._data.id.get_create_plist()
        layout, self._file_size = plist.get_layout(), self._data.file.id.get_filesize()
        if plist.get_external_count() or layout not in (h5d.CONTIGUOUS, h5d.CHUNKED):
            raise FormatError(f"{self.where} must keep its values in the file, contiguous or in chunks")
        if layout == h5d.CHUNKED:
            self._check_pipeline([plist.get_filter(i) for i in range(plist.get_nfilters())], filters)
            self._check_index()
        elif self._data.nbytes:
            begin, length = self._data.id.get_offset(), self._data.id.get_storage_size()
            if begin is None or length != self._data.nbytes or begin + length > self._file_size:
                raise CorruptFileError(f"{self.where} declares {self._data.nbytes} bytes that the file does not have")

    def read(self, begin: int, end: int) -> np.ndarray:
        """Rows begin:end."""
        if self.chunks:
            self._check_chunks(begin, end)
        first, shape = [0] * len(self.shape), list(self.shape)
        first[self._axis], shape[self._axis] = begin, end - begin
        out = np.empty(shape, self.dtype)
        if out.size:
            # what h5py's read_direct does, without deriving the type anew: a fifth of the time on short reads
            space = self._data.id.get_space()
            space.select_hyperslab(tuple(first), tuple(shape))
            self._data.id.read(h5s.create_simple(tuple(shape)), space, out, self._data.id.get_type())
        return out

    def attribute(self, name: str) -> Any:
        return attribute(self._data, name)

    def _check_pipeline(self, pipeline: list[tuple], allowed: Collection[int]) -> None:
        self.filters = [code for code, *_ in pipeline]
        self._chunk_bytes = math.prod(self.chunks) * self.dtype.itemsize
        if LZO in self.filters:
            raise FormatError(
                f"{self.where} is compressed with lzo, which has no free plugin; use ptrepack to change it"
            )
        stages = [{SHUFFLE: 0, FLETCHER32: 2}.get(code, 1) for code in self.filters]
        if not {*self.filters} <= {*allowed} or stages != sorted({*stages}):
            raise FormatError(f"{self.where} must use HDF5 filters among {sorted(allowed)}, got {self.filters}")
        self._compressor = next((code for code in self.filters if code not in (SHUFFLE, FLETCHER32)), None)
        for code, _, values, _ in pipeline:
            found, size = (values[:1], self.dtype.itemsize) if code == SHUFFLE else (values[3:4], self._chunk_bytes)
            if code in (SHUFFLE, BLOSC, BLOSC2) and found != (size,):
                raise CorruptFileError(f"{self.where}: filter {code} must be set up for {size} bytes, got {found}")
            if code == BLOSC2 and values[8:] and values[8:] != self.chunks:
                raise CorruptFileError(f"{self.where}: blosc2 must be set up for {self.chunks}, got {values[8:]}")

    def _check_index(self) -> None:
        """All chunks are there, each once, in the file, none on top of another, none exempt from the filters."""
        grid = [-(-length // chunk) for length, chunk in zip(self.shape, self.chunks)]
        count = math.prod(grid)
        if self._chunk_bytes > MAX_CHUNK or count > self._file_size:
            raise CorruptFileError(f"{self.where} declares {count} chunks of {self._chunk_bytes} bytes, too many")
        chunks: list[Any] = []
        self._data.id.chunk_iter(chunks.append)
        place = np.array([chunk.chunk_offset for chunk in chunks], np.int64).reshape(-1, len(grid)) // self.chunks
        begin = np.array([chunk.byte_offset for chunk in chunks], np.int64)
        length = np.array([chunk.size for chunk in chunks], np.int64)
        order = np.argsort(begin)
        ends = (begin + length)[order]
        if (
            len(chunks) != count
            or len(np.unique(place, axis=0)) != count
            or (place >= grid).any()
            or any(chunk.filter_mask for chunk in chunks)
            or (ends > self._file_size).any()
            or (begin[order][1:] < ends[:-1]).any()
        ):
            raise CorruptFileError(f"{self.where}: its index of {count} chunks is damaged")
        order = np.argsort(place[:, self._axis], kind="stable")
        self._index, self._rows = [chunks[i] for i in order], place[order, self._axis]
        self._sound = np.zeros(count, bool)

    def _check_chunks(self, begin: int, end: int) -> None:
        """What has to be looked up chunk by chunk, once, before rows begin:end are read."""
        rows = self.chunks[self._axis]
        first, last = np.searchsorted(self._rows, [begin // rows, -(-end // rows)])
        read_raw = self._data.id.read_direct_chunk
        for chunk in itertools.compress(self._index[first:last], ~self._sound[first:last]):
            # libhdf5 lists a chunk with a damaged key, but does not find it when it reads rows, and gives zeros; asked
            # for the chunk itself it raises an error
            _, raw = read_raw(chunk.chunk_offset)
            size = self._decoded_size(raw)
            if len(raw) != chunk.size or size != self._chunk_bytes:
                raise CorruptFileError(f"{self.where}: a chunk must have {self._chunk_bytes} bytes, got {size}")
        self._sound[first:last] = True

    def _decoded_size(self, raw: bytes) -> int:
        if FLETCHER32 in self.filters:
            raw = raw[:-4]
        if self._compressor is None:
            return len(raw)
        if self._compressor == BLOSC:
            return int.from_bytes(raw[4:8], "little")
        if self._compressor == BLOSC2:
            size = int.from_bytes(raw[30:38], "big")
            # in several dimensions it pads a chunk to whole blocks, and checks for itself that the chunk is all there
            return size if len(self.chunks) == 1 else min(size, self._chunk_bytes)
        stream = zlib.decompressobj() if self._compressor == GZIP else bz2.BZ2Decompressor()
        return len(stream.decompress(raw, self._chunk_bytes + 1))
