"""Files to Jets: one reader per format, all streaming, none through pandas, none unpickling. One writer: native.

Each format is a module with `blocks(path, start, stop, columns)`, a generator of at least one Jets of a few thousand
jets each, validated, in file order. Everything else is here.
"""

from __future__ import annotations

import functools
import importlib
import importlib.resources
import os
from collections.abc import Collection, Generator, Iterable, Iterator
from pathlib import Path

import numpy as np

from .. import _transfer, interop
from ..errors import FormatError
from ..jets import Jets
from ._checks import parsing

FORMATS = ("top-reference", "fasttag", "energyflow", "jetclass", "parquet")
CHUNK = 65536
_MODULES = {"fasttag": "native", "top-reference": "top_reference"}
_SIGNATURES = {b"PK\x03\x04": "energyflow", b"PK\x05\x06": "energyflow", b"root": "jetclass", b"PAR1": "parquet"}


def read(path: str | os.PathLike, *, format: str | None = None, start: int = 0, stop: int | None = None) -> Jets:
    """Read the jets start:stop of a file, in file order, as NumPy Jets. Every one is checked.

    Formats (None: recognised by content)
    -------------------------------------
    "top-reference" : the top-tagging reference HDF5, pandas layouts `table` and `fixed`. p4 float32 with the bits of
        the file, slots of four zeros dropped; labels `label` (is_signal_new), `ttv`, `truth_px`, ..., `truth_E`.
    "fasttag" : the native ragged HDF5 that `write` makes, with checksums.
    "energyflow" : quark/gluon npz, (J, M, 4) = pt, rapidity, phi, PDG id. p4 float64 of massive particles; columns
        `pid`, `kind`; labels `label` (1 = quark), `n_unknown_pid` (particles taken as massless neutral hadrons).
    "jetclass", "parquet" : ROOT tree `tree` or Parquet with part_*, jet_*, label_*. part_* become columns without the
        prefix, `kind` comes from the part_is* flags, jet_* and label_* become labels, `label` is the class index.

    p4 is in GeV. `kind` is int8: 0 neutral hadron, 1 charged hadron, 2 electron, 3 muon, 4 photon.
    start and stop count jets; a stop beyond the end is clamped as in slices.

    Raises FormatError for a file that is not what it should be, CorruptFileError for a damaged one (truncated, failing
    a checksum, lying about its size, non-finite four-vectors), both naming file, dataset and row where known;
    ImportError where the format needs an extra; ValueError for negative start or stop.
    """
    return _join(list(_regroup(_blocks("read", path, format, start, stop, None), CHUNK)))


def iter_read(
    path: str | os.PathLike,
    *,
    chunk: int = CHUNK,
    columns: Collection[str] | None = None,
    device: str = "cpu",
    library: str | None = None,
    format: str | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Jets]:
    """Read a file as Jets of `chunk` jets each, the last one shorter, in bounded memory. See `read`.

    columns : the columns to keep, None for all.
    device, library : where each chunk goes, as in `Jets.to`: None is NumPy on the CPU, CuPy on a GPU.

    For a GPU a thread reads the next chunk and starts to copy it, beside the kernels at work on this one; two chunks at
    most are in memory. They belong to the stream that is current at the first of them.

    Yields one empty Jets where there are no jets at all, so that columns and labels are never unknown. Raises as `read`
    does, at the chunk in question, and ValueError for columns that the file does not have.
    """
    if chunk < 1:
        raise ValueError(f"iter_read: chunk must be at least 1, got {chunk}; it counts jets")
    library, device = interop.destination(library, device, "numpy", "cpu")
    chunks = _chunks(path, chunk, columns, format, start, stop)
    if device == "cpu":
        for jets in chunks:
            yield jets.to(device, library=library)
    else:
        link = _transfer.LINKS[library](device, aside=True)
        yield from _transfer.ahead(chunks, functools.partial(_transfer.send, link))


def _chunks(
    path: str | os.PathLike,
    chunk: int,
    columns: Collection[str] | None,
    format: str | None,
    start: int,
    stop: int | None,
) -> Generator[Jets, None, None]:
    for jets in _regroup(_blocks("iter_read", path, format, start, stop, columns), chunk):
        if missing := sorted(set(columns or ()) - set(jets.columns)):
            raise ValueError(f"iter_read: columns must be in {path}, got {', '.join(missing)}; leave them out")
        yield jets


def write(path: str | os.PathLike, jets: Jets) -> None:
    """Write jets to a native file: ragged HDF5, gzip, a checksum on every chunk.

    Atomic: the file appears under its name when it is complete and on disk, or not at all. To write more jets than fit
    into memory use `fasttag.io.native.Writer`.
    """
    from .native import Writer

    with Writer(path) as writer:
        writer.append(jets)


def sample_path() -> Path:
    """The 4,000 simulated jets that come with fasttag, half top (`label` 1), half QCD; see fasttag/data/README.md."""
    return Path(str(importlib.resources.files("fasttag"))) / "data" / "sample.h5"


def _blocks(
    caller: str,
    path: str | os.PathLike,
    format: str | None,
    start: int,
    stop: int | None,
    columns: Collection[str] | None,
) -> Iterator[Jets]:
    if format not in (None, *FORMATS):
        raise ValueError(f"{caller}: format must be one of {', '.join(FORMATS)}, got {format!r}; None recognises it")
    if start < 0 or (stop is not None and stop < 0):
        raise ValueError(f"{caller}: start and stop must not be negative, got {start} and {stop}; count from the front")
    with parsing(path):
        format = format or _detect(path)
        module = importlib.import_module(f".{_MODULES.get(format, format)}", __package__)
        yield from module.blocks(path, start, stop, columns)


def _detect(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        head = file.read(8)
    if head == b"\x89HDF\r\n\x1a\n":
        from ._hdf5 import is_native

        return "fasttag" if is_native(path) else "top-reference"
    if head[:4] in _SIGNATURES:
        return _SIGNATURES[head[:4]]
    got = f"a file that starts with {head!r}" if head else "an empty file"
    raise FormatError(f"{path}: must be HDF5, npz, ROOT or Parquet, got {got}")


def _regroup(blocks: Iterable[Jets], chunk: int) -> Iterator[Jets]:
    """The same jets in Jets of exactly `chunk`, but for the last."""
    parts: list[Jets] = []
    held, pending = 0, True
    for block in blocks:
        while held + len(block) >= chunk:
            cut = chunk - held
            yield _join([*parts, block[:cut]])
            block, parts, held, pending = block[cut:], [], 0, False
        if len(block) or (pending and not parts):
            parts.append(block)
            held += len(block)
    if parts:
        yield _join(parts)


def _join(parts: list[Jets]) -> Jets:
    """All jets of `parts`, which is emptied on the way.

    An allocator keeps small arrays that are freed, but gives those of CHUNK jets back at once: joined in that size
    first, a large file needs little more memory than its jets.
    """
    first = parts[0]
    if len(parts) == 1:
        return first.compact()
    counts = np.concatenate([part.counts for part in parts])
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    p4 = np.empty((4, offsets[-1]), first.p4.dtype)
    columns = {name: np.empty(offsets[-1], array.dtype) for name, array in first.columns.items()}
    labels = {name: np.concatenate([part.labels[name] for part in parts]) for name in first.labels}
    end = int(offsets[-1])
    while parts:
        part = parts.pop().compact()
        begin = end - part.p4.shape[1]
        p4[:, begin:end] = part.p4
        for name, column in columns.items():
            column[begin:end] = part.columns[name]
        end = begin
    return Jets(p4, offsets, columns, labels)
