"""Parquet as awkward and weaver write it: lists part_*, numbers jet_* and label_*, through pyarrow."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from ..errors import CorruptFileError, FormatError
from ..interop import require
from ..jets import Jets
from ._particles import BLOCK, assemble, wanted


def blocks(path: str | os.PathLike, start: int, stop: int | None, columns: Collection[str] | None) -> Iterator[Jets]:
    """See fasttag.io.read."""
    pa, pq = require("pyarrow"), require("pyarrow.parquet")
    where = str(path)
    with pq.ParquetFile(path, page_checksum_verification=True, buffer_size=1 << 20, pre_buffer=False) as file:
        ends = _row_ends(file.metadata, where)
        schema = file.schema_arrow
        _check_names(path, schema.names, file.metadata.num_row_groups)
        parts, labels = wanted(schema.names, columns, where)
        schema = pa.schema([_field(pa, schema, name, name in parts, where) for name in (*parts, *labels)])
        stop = ends[-1] if stop is None else min(stop, ends[-1])
        groups = [i for i in range(len(ends) - 1) if ends[i] < stop and ends[i + 1] > start]
        row = ends[groups[0]] if groups else start
        batches = file.iter_batches(BLOCK, groups, schema.names, use_threads=False) if groups else [_empty(pa, schema)]
        for batch in batches:
            if not batch.schema.equals(schema):
                raise CorruptFileError(f"{where}: its columns have other types than its schema says")
            inside = batch.slice(max(0, start - row), max(0, stop - max(start, row)))
            lists = {name: _flat(inside.column(name), f"{where}: {name}") for name in parts}
            flat = {name: _numbers(inside.column(name), f"{where}: {name}") for name in labels}
            yield assemble(lists, flat, columns, where, max(start, row))
            row += len(batch)
        if row < stop:
            raise CorruptFileError(f"{where}: has {row} rows, declares {ends[-1]}")


def _row_ends(metadata: Any, where: str) -> list[int]:
    """Where the row groups begin and end."""
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
        raise CorruptFileError(f"{where}: its row groups do not have the {metadata.num_rows} rows it declares")
    return [0, *itertools.accumulate(counts)]


def _check_names(path: str | os.PathLike, names: Collection[str], groups: int) -> None:
    """A name stands in the schema and again in each row group; else one of them is damaged.

    They are looked for in the bytes of the footer: asked for a damaged column, pyarrow 26 ends the process.
    """
    with open(path, "rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        footer = file.read(length)
    if odd := [name for name in names if footer.count(name.encode()) <= groups]:
        raise CorruptFileError(f"{path}: must name its columns in every row group, but not {', '.join(odd)}")


def _field(pa: Any, schema: Any, name: str, jagged: bool, where: str) -> Any:
    """The field, if it holds numbers, in lists or not."""
    number = kind = schema.field(name).type
    if jagged and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        number = kind.value_type
    numeric = pa.types.is_integer(number) or pa.types.is_floating(number) or pa.types.is_boolean(number)
    if jagged == (number is kind) or not numeric:
        raise FormatError(f"{where}: {name} must be numbers{' in lists' * jagged}, got {kind}")
    return schema.field(name)


def _flat(lists: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    values = _numbers(lists.flatten(), where)
    counts = np.diff(_numbers(lists.offsets, where))
    if lists.null_count or counts.sum() != values.size:
        raise CorruptFileError(f"{where} must not have missing lists")
    return values, counts


def _numbers(array: Any, where: str) -> np.ndarray:
    if array.null_count:
        raise CorruptFileError(f"{where} must not have missing values, got {array.null_count}")
    return array.to_numpy(zero_copy_only=False)


def _empty(pa: Any, schema: Any) -> Any:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
