"""Damage files and read each in a forked process under limits. Started by test_fuzz.py; prints one JSON line per case.

Run: python fuzz_child.py FOLDER FORMAT FIRST COUNT. FOLDER/FORMAT holds sound files. Cases FIRST to FIRST + COUNT of
each kind of damage depend on nothing but random.Random(f"{format}/{kind}/{case}").
"""

import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import traceback
import zipfile
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  registers the filters, for lies about compressed files
import io_files as files
import numpy as np

import fasttag
import fasttag.io

KINDS = ("truncation", "metadata flip", "data flip", "lie")
OUTCOMES = ("identical", "typed error", "other values", "WRONG DATA", "UNTYPED ERROR")
IDENTICAL, TYPED, OTHER, WRONG, UNTYPED = range(len(OUTCOMES))
MEMORY, SECONDS = 4 << 30, 20


def same(jets, expected):
    pairs = [(jets.p4, expected.p4), (jets.offsets, expected.offsets)]
    for found, wanted in ((jets.columns, expected.columns), (jets.labels, expected.labels)):
        if found.keys() != wanted.keys():
            return False
        pairs += [(found[name], wanted[name]) for name in wanted]
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


def classify(load, expected):
    try:
        jets = load()
    except fasttag.FasttagError:
        return TYPED
    except BaseException:
        traceback.print_exc()
        return UNTYPED
    if same(jets, expected):
        return IDENTICAL
    return OTHER if len(jets) == len(expected) and np.isfinite(jets.p4).all() else WRONG


def outcome(path, expected, log):
    """Read and iter_read in a forked process: the worse outcome, and what it wrote to stderr."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(SECONDS)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        whole = classify(lambda: fasttag.read(path), expected)
        pieces = classify(lambda: fasttag.Jets.concatenate(fasttag.iter_read(path, chunk=7)), expected)
        os._exit(max(whole, pieces))
    status = os.waitpid(pid, 0)[1]
    name = f"SIGNAL {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else OUTCOMES[os.WEXITSTATUS(status)]
    return name, log.read_text(errors="replace")[-1500:]


def value_ranges(path, name):
    """Where the values of a sound file are: (begin, end) in bytes."""
    if name in ("top-reference", "fasttag"):
        with h5py.File(path) as file:
            datasets = []
            file.visititems(lambda n, d: datasets.append(d) if isinstance(d, h5py.Dataset) else None)
            if name == "top-reference":
                datasets = [d for d in datasets if d.name.endswith(("table/table", "_values"))]
            chunks = []
            for data in datasets:
                if data.chunks:
                    data.id.chunk_iter(chunks.append)
            ranges = [(d.id.get_offset(), d.id.get_offset() + d.nbytes) for d in datasets if not d.chunks]
            return ranges + [(chunk.byte_offset, chunk.byte_offset + chunk.size) for chunk in chunks]
    if name == "energyflow":
        with zipfile.ZipFile(path) as archive:
            begins = [(i.header_offset + 30 + len(i.filename), i) for i in archive.infolist()]
            extra = {i: struct.unpack_from("<H", Path(path).read_bytes(), i.header_offset + 28)[0] for _, i in begins}
            return [(begin + extra[i], begin + extra[i] + i.compress_size) for begin, i in begins]
    if name == "jetclass":
        import uproot

        with uproot.open(path) as file:
            keys = [branch.basket_key(i) for branch in file["tree"].branches for i in range(branch.num_baskets)]
            return [(key.fSeekKey + key.fKeylen, key.fSeekKey + key.fNbytes) for key in keys]
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    begins = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    return [(begin, begin + column.total_compressed_size) for begin, column in zip(begins, columns)]


def damage(source, kind, name, rng, out):
    """A damaged copy of a sound file."""
    raw = bytearray(source.read_bytes())
    if kind == "truncation":
        out.write_bytes(raw[: rng.randrange(len(raw))])
        return
    values = np.zeros(len(raw), bool)
    for begin, end in value_ranges(source, name):
        values[begin:end] = True
    places = np.flatnonzero(values == (kind == "data flip"))
    for _ in range(rng.choice((1, 1, 2, 8))):
        raw[places[rng.randrange(len(places))]] ^= rng.choice((1 << rng.randrange(8), rng.randrange(1, 256)))
    out.write_bytes(raw)


def lie_hdf5(source, rng, out):
    """An HDF5 file, sound as such, in which one dataset is not what the rest of the file says."""
    shutil.copy(source, out)
    with h5py.File(out, "r+") as file:
        names = []
        file.visititems(lambda n, d: names.append(n) if isinstance(d, h5py.Dataset) else None)
        name = rng.choice([n for n in names if "_i_table" not in n and not n.endswith("axis0")])
        data = file[name]
        values, attributes, chunks = data[()], dict(data.attrs), data.chunks
        filters = {"shuffle": data.shuffle, "fletcher32": data.fletcher32} if chunks else {}
        filters |= {"compression": "gzip"} if data.compression == "gzip" else {}
        resizable = chunks and data.maxshape[-1] is None
        # jets and constituents are counted along the rows of pandas and along the last axis of the native format
        along = 0 if name.startswith("table") else values.ndim - 1
        lies = ["huge", "shorter", "longer", "link", "external", "virtual"]
        lies += (
            ["short chunk"] * bool(chunks)
            + ["resized"] * bool(resizable)
            + ["dtype", "missing"] * (name.endswith(("values", "p4", "offsets")))
        )
        lie = rng.choice(lies)
        if lie == "resized":
            data.resize(len(data) + rng.choice((-1, 1, 100_000, 10**12)), 0)
            return
        if lie == "short chunk":
            raw, kind, plist = (
                data.id.read_direct_chunk((0,) * values.ndim)[1],
                data.id.get_type(),
                data.id.get_create_plist(),
            )
            plist.set_chunk(tuple(20_000 if axis == along else n for axis, n in enumerate(chunks)))
            shape = tuple(20_000 if axis == along else n for axis, n in enumerate(values.shape))
            space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED,) * values.ndim)
            attributes |= {"NROWS": np.int64(20_000)}
        del file[name]
        if lie == "short chunk":
            made = h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, plist))
            made.id.write_direct_chunk((0,) * values.ndim, raw)
        elif lie == "huge":
            shape = list(values.shape)
            shape[along] = rng.choice((10**6, 10**9, 2**40 + 7))
            made = file.create_dataset(name, shape, values.dtype, chunks=rng.choice((None, True)))
        elif lie == "shorter":
            made = file.create_dataset(
                name, data=np.delete(values, rng.randrange(values.shape[along]), along), **filters
            )
        elif lie == "longer":
            made = file.create_dataset(name, data=np.concatenate([values, values], along), **filters)
        elif lie == "dtype":
            made = file.create_dataset(name, data=values.astype(rng.choice(("f2", ">f4", ">i8", "u8"))), **filters)
        elif lie == "virtual":
            layout = h5py.VirtualLayout(values.shape, values.dtype)
            layout[...] = h5py.VirtualSource(str(source), name, values.shape)
            made = file.create_virtual_dataset(name, layout)
        elif lie == "missing":
            return
        else:
            file["elsewhere"] = values
            file[name] = h5py.SoftLink("/elsewhere") if lie == "link" else h5py.ExternalLink(str(source), name)
            return
        for key, value in attributes.items():
            made.attrs[key] = value


def lie_energyflow(source, rng, out):
    """An npz whose checksums are right but whose headers are not, or whose directory declares other sizes."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with np.load(source) as file:
        arrays = dict(file)
    name = rng.choice(("X", "y"))
    lie = rng.choice(("shape", "shape", "dtype", "order", "directory", "other shape", "value"))
    if lie in ("shape", "dtype", "order"):
        header = {"descr": arrays[name].dtype.str, "fortran_order": False, "shape": arrays[name].shape}
        if lie == "shape":
            grown = list(arrays[name].shape)
            grown[rng.randrange(len(grown))] = rng.choice((0, 1, -1, 3, 10**6, 10**12, 2**63))
            header["shape"] = tuple(grown)
        elif lie == "dtype":
            header["descr"] = rng.choice(("<f4", ">f8", "<i8" if name == "X" else "<c16", "|O", "<f2", "<U2", "|V8"))
        else:
            header |= {"fortran_order": True, "shape": arrays[name].shape[::-1]}
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, header)
        size = int.from_bytes(members[f"{name}.npy"][8:10], "little") + 10
        members[f"{name}.npy"] = stream.getvalue() + members[f"{name}.npy"][size:]
    elif lie in ("other shape", "value"):
        if lie == "value":
            arrays[name].flat[0] = rng.choice((np.nan, np.inf, -1.0, 0.5 if name == "y" else -0.5))
        else:
            axis = rng.randrange(arrays[name].ndim)
            other = (np.delete(arrays[name], 0, axis), arrays[name][None], arrays[name].astype("f4")[..., None])
            arrays[name] = other[rng.randrange(2 if name == "X" and axis == 1 else 3) or 1]
        with open(out, "wb") as file:
            np.savez(file, **arrays)
        return
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    if lie == "directory":
        raw = bytearray(out.read_bytes())
        entry = raw.rfind(b"PK\x01\x02")
        struct.pack_into("<I", raw, entry + rng.choice((16, 20, 24, 42)), rng.choice((0, 1, 100, 2**31, 2**32 - 2)))
        out.write_bytes(raw)


def lie_particles(name, rng, out):
    """A ROOT or Parquet file whose branches do not fit together."""
    made = files.Made()
    parts, flat = files.branches(made)
    counts = dict.fromkeys(parts, made.counts)
    part, branch = rng.choice(list(parts)), rng.choice(list(flat))
    lie = rng.choice(("counts", "shorter", "missing", "type", "flat", "nan", "nparticles", "label", "entries"))
    if lie == "counts":
        counts[part] = np.roll(made.counts, 1)
    elif lie == "shorter":
        counts[part], parts[part] = made.counts - np.eye(1, made.counts.size, dtype=int)[0], parts[part][1:]
    elif lie == "missing":
        del parts[rng.choice(list(parts)[:4])]
    elif lie == "type":
        vector = rng.choice(list(parts)[:4])
        parts[vector] = parts[vector].astype("i4")
    elif lie == "flat":
        del parts[part]
        flat[part] = np.zeros(made.counts.size)
    elif lie == "nan":
        parts["part_energy"] = parts["part_energy"].copy()
        parts["part_energy"][rng.randrange(made.kind.size)] = rng.choice((np.nan, np.inf, -1))
    elif lie == "nparticles":
        flat["jet_nparticles"] = flat["jet_nparticles"] + 1
    elif lie == "label":
        flat[f"label_{rng.choice(files.CLASSES)}"] = np.full(made.counts.size, rng.choice((0, 1, 2, 0.5)), "f4")
    elif name == "parquet":
        flat[branch] = [None, *flat[branch][1:]]
    if name == "parquet":
        files.parquet(out, parts, flat, counts)
        return
    files.jetclass(out, parts, flat, counts, None)
    if lie == "entries":
        raw = bytearray(out.read_bytes())
        pattern = made.counts.size.to_bytes(8, "big")
        spot = rng.choice([i for i in range(len(raw)) if raw[i : i + 8] == pattern])
        raw[spot : spot + 8] = rng.choice((0, 1, 59, 61, 10**6, 10**12, 2**62)).to_bytes(8, "big")
        out.write_bytes(raw)


def lie(source, name, rng, out):
    if name in ("top-reference", "fasttag"):
        lie_hdf5(source, rng, out)
    elif name == "energyflow":
        lie_energyflow(source, rng, out)
    else:
        lie_particles(name, rng, out)


def main(folder, name, first, count):
    sources = sorted((Path(folder) / name).iterdir())
    expected = {source: fasttag.read(source) for source in sources}
    out, log = (Path(folder) / f"{name}.{first}.{end}" for end in ("damaged", "log"))
    for kind in KINDS:
        for case in range(int(first), int(first) + int(count)):
            seed = f"{name}/{kind}/{case}"
            rng = random.Random(seed)
            source = rng.choice(sources)
            out.unlink(missing_ok=True)
            if kind == "lie":
                lie(source, name, rng, out)
            else:
                damage(source, kind, name, rng, out)
            got, error = outcome(out, expected[source], log)
            print(json.dumps({"seed": seed, "source": source.name, "outcome": got, "error": error}))


if __name__ == "__main__":
    main(*sys.argv[1:])
