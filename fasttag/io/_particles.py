"""The JetClass names, which ROOT and Parquet files share: part_* per constituent, jet_* and label_* per jet."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..errors import CorruptFileError, FormatError
from ..jets import Jets
from ._checks import checked, zero_or_one

FOUR_VECTOR = ("part_px", "part_py", "part_pz", "part_energy")
# in the order of `kind`
FLAGS = ("part_isNeutralHadron", "part_isChargedHadron", "part_isElectron", "part_isMuon", "part_isPhoton")
CLASSES = tuple(f"label_{c}" for c in ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl"))
# jets read at once: some 20 MB with all columns of JetClass
BLOCK = 4096


def wanted(names: Collection[str], columns: Collection[str] | None, where: str) -> tuple[list[str], list[str]]:
    """The names to read, those per constituent and those per jet. `columns` as in iter_read."""
    if missing := [name for name in FOUR_VECTOR if name not in names]:
        raise FormatError(f"{where} must have {', '.join(FOUR_VECTOR)}, got no {', '.join(missing)}")
    parts = [name for name in names if name.startswith("part_") and name not in FOUR_VECTOR]
    if columns is not None:
        parts = [name for name in parts if name[5:] in columns or (name in FLAGS and "kind" in columns)]
    return [*FOUR_VECTOR, *parts], [name for name in names if name.startswith(("jet_", "label_")) or name == "label"]


def assemble(
    parts: dict[str, tuple[np.ndarray, np.ndarray]],
    labels: dict[str, np.ndarray],
    columns: Collection[str] | None,
    where: str,
    row: int,
) -> Jets:
    """Jets of parts, name -> (values (N,), counts (J,)), and labels, name -> (J,). `row` is the first jet's number."""
    counts = parts["part_px"][1]
    declared = {name: lengths for name, (_, lengths) in parts.items()}
    if "jet_nparticles" in labels:
        declared["jet_nparticles"] = labels["jet_nparticles"]
    for name, lengths in declared.items():
        if (wrong := np.flatnonzero(lengths != counts)).size:
            j = wrong[0]
            raise CorruptFileError(f"{where}: {name} counts {lengths[j]} in row {row + j}, part_px {counts[j]}")
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    values = {name: array for name, (array, _) in parts.items()}
    vectors = [values.pop(name) for name in FOUR_VECTOR]
    if any(vector.dtype.kind != "f" for vector in vectors):
        raise FormatError(f"{where}: {', '.join(FOUR_VECTOR)} must be floats, got {[v.dtype.name for v in vectors]}")
    dtype = np.float32 if all(vector.dtype == np.float32 for vector in vectors) else np.float64
    made = {name[5:]: array for name, array in values.items()}
    if values.keys() >= {*FLAGS}:
        flags = np.stack([values[name] != 0 for name in FLAGS])
        if (wrong := np.flatnonzero(flags.sum(0) > 1)).size:
            j = np.searchsorted(offsets, wrong[0], side="right") - 1
            raise CorruptFileError(f"{where}: only one of {', '.join(FLAGS)} may be set, got more in row {row + j}")
        made["kind"] = flags.argmax(0).astype(np.int8)
    made = {name: array for name, array in made.items() if columns is None or name in columns}
    if labels.keys() >= {*CLASSES}:
        labels = {**labels, "label": _class(np.stack([labels[name] for name in CLASSES]), where, row)}
    return checked(Jets(np.stack(vectors, dtype=dtype), offsets, made, labels), where, row)


def _class(flags: np.ndarray, where: str, row: int) -> np.ndarray:
    """The index of the one class of each jet that is set."""
    flags = zero_or_one(flags.T, f"{where}: label_*", row)
    if (wrong := np.flatnonzero(flags.sum(1) != 1)).size:
        j = wrong[0]
        raise CorruptFileError(f"{where}: one of label_* must be 1, got {flags[j].sum()} of them in row {row + j}")
    return flags.argmax(1)
