"""Jets: ragged four-vectors with per-constituent columns and per-jet labels. The one data type."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fasttag_kernels._dispatch import (
    FLOATS,
    check_arrays,
    check_floats,
    check_offset_values,
    check_offsets,
    device_of,
    dtype_of,
    library_of,
)

from . import _transfer, interop

ORDERS = {"px,py,pz,E": [0, 1, 2, 3], "E,px,py,pz": [1, 2, 3, 0]}


@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class Jets:
    """J jets with N constituents, jet j being constituents offsets[j]:offsets[j+1].

    Parameters
    ----------
    p4 : (4, N) float32 or float64, rows px, py, pz, E in GeV, each row contiguous.
    offsets : (J+1,) int64, never falling, within 0..N; may start above zero.
    columns : name -> (N,) further values per constituent, for instance `kind`.
    labels : name -> (J,) values per jet, for instance `label` (the class index, 1 = signal).

    All arrays belong to one library (NumPy, CuPy or torch) and device. `offsets_host` is `offsets` in NumPy, so that
    sizes never wait for a device. Slices share memory; nothing is ever changed in place.

    Raises TypeError for kinds (library, device, dtype) and ValueError for shapes and values.
    """

    p4: Any
    offsets: Any
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    offsets_host: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", dict(self.columns))
        object.__setattr__(self, "labels", dict(self.labels))
        check_arrays("Jets", **dict(self._arrays()))
        check_floats("Jets", p4=self.p4)
        check_offsets("Jets", self.offsets)
        object.__setattr__(self, "offsets_host", interop.convert(self.offsets, "numpy", "cpu"))
        self._check_shapes()

    def _check_shapes(self) -> None:
        if self.p4.ndim != 2 or self.p4.shape[0] != 4:
            raise ValueError(
                f"Jets: p4 must have shape (4, N), rows px, py, pz, E, got {tuple(self.p4.shape)}; transpose it"
            )
        n = self.p4.shape[1]
        step = self.p4.stride(1) if library_of(self.p4) == "torch" else self.p4.strides[1] / self.p4.itemsize
        if n > 1 and step != 1:
            raise ValueError("Jets: p4 must have contiguous rows, got a transposed array; use np.ascontiguousarray(p4)")
        check_offset_values("Jets", self.offsets_host, n)
        for group, entries, length in (("columns", self.columns, n), ("labels", self.labels, len(self))):
            for name, array in entries.items():
                if tuple(array.shape) != (length,):
                    raise ValueError(
                        f"Jets: {group}[{name!r}] must have shape ({length},), got {tuple(array.shape)}; "
                        f"give one value per {'constituent' if group == 'columns' else 'jet'}"
                    )

    def _arrays(self) -> list[tuple[str, Any]]:
        named = [("p4", self.p4), ("offsets", self.offsets)]
        named += [(f"columns[{name!r}]", array) for name, array in self.columns.items()]
        return named + [(f"labels[{name!r}]", array) for name, array in self.labels.items()]

    @classmethod
    def _make(cls, p4: Any, offsets: Any, columns: dict, labels: dict, offsets_host: np.ndarray) -> Jets:
        """Build from parts that are known to be sound, without looking at a device."""
        jets = object.__new__(cls)
        for name, value in zip(cls.__slots__, (p4, offsets, columns, labels, offsets_host)):
            object.__setattr__(jets, name, value)
        return jets

    @property
    def library(self) -> str:
        """The library of the arrays: "numpy", "cupy" or "torch"."""
        return library_of(self.p4) or ""

    @property
    def device(self) -> str:
        """Where the arrays are: "cpu", "cuda:0", and so on."""
        return device_of(self.p4)

    @property
    def counts(self) -> np.ndarray:
        """Constituents per jet, (J,) int64, in NumPy."""
        return np.diff(self.offsets_host)

    def __len__(self) -> int:
        return self.offsets_host.size - 1

    def __repr__(self) -> str:
        first, last = self.offsets_host[[0, -1]]
        parts = [f"<Jets: {len(self)} jets, {last - first} constituents, {dtype_of(self.p4)}"]
        parts += [f"{self.library} on {self.device}"]
        parts += [f"{kind}: {', '.join(d)}" for kind, d in (("columns", self.columns), ("labels", self.labels)) if d]
        return ", ".join(parts) + ">"

    def __getitem__(self, key: Any) -> Jets:
        """jets[a:b] shares memory. jets[a:b:step], jets[mask] and jets[indices] copy the jets named, in that order."""
        jets = len(self)
        if isinstance(key, slice) and key.step in (None, 1):
            a, b, _ = key.indices(jets)
            b = max(a, b)
            labels = {name: array[a:b] for name, array in self.labels.items()}
            return self._make(
                self.p4, self.offsets[a : b + 1], dict(self.columns), labels, self.offsets_host[a : b + 1]
            )
        if isinstance(key, (int, np.integer)):
            if not -jets <= key < jets:
                raise IndexError(f"Jets: index must lie in {-jets}..{jets - 1}, got {key}; there are {jets} jets")
            return self[int(key) % jets : int(key) % jets + 1]
        if isinstance(key, slice):
            return self._gather(np.arange(jets)[key])
        chosen = interop.convert(key, "numpy", "cpu") if library_of(key) else np.asarray(key)
        chosen = chosen.astype(int) if isinstance(key, list) and not key else chosen
        if chosen.ndim != 1 or chosen.dtype.kind not in "bi":
            raise TypeError(
                f"Jets: an index must be a slice, an integer, a mask or integers, got {key!r}; use one of these"
            )
        if chosen.dtype == bool and chosen.size != jets:
            raise ValueError(
                f"Jets: a mask must have one entry per jet, {jets}, got {chosen.size}; build it from labels"
            )
        outside = chosen[(chosen < -jets) | (chosen >= jets)] if chosen.dtype != bool else chosen[:0]
        if outside.size:
            raise IndexError(f"Jets: index must lie in {-jets}..{jets - 1}, got {outside[0]}; there are {jets} jets")
        return self._gather(np.arange(jets)[chosen])

    def _gather(self, chosen: np.ndarray) -> Jets:
        starts, counts = self.offsets_host[:-1][chosen], self.counts[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        rows = interop.like(np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1]), self.p4)
        jets = interop.like(chosen, self.p4)
        torch = self.library == "torch"
        return self._make(
            self.p4.index_select(1, rows) if torch else self.p4.take(rows, axis=1),  # p4[:, rows] may be column-major
            interop.like(offsets, self.p4),
            {name: array[rows] for name, array in self.columns.items()},
            {name: array[jets] for name, array in self.labels.items()},
            offsets,
        )

    def compact(self) -> Jets:
        """The same jets with offsets starting at zero and no constituents beyond them. Shares p4's memory."""
        first, last = (int(i) for i in self.offsets_host[[0, -1]])
        if first == 0 and last == self.p4.shape[1]:
            return self
        columns = {name: array[first:last] for name, array in self.columns.items()}
        return self._make(
            self.p4[:, first:last], self.offsets - first, columns, dict(self.labels), self.offsets_host - first
        )

    def with_columns(self, **columns: Any) -> Jets:
        """The same jets with further or replaced columns of shape (N,)."""
        return self._with({**self.columns, **columns}, dict(self.labels))

    def with_labels(self, **labels: Any) -> Jets:
        """The same jets with further or replaced labels of shape (J,)."""
        return self._with(dict(self.columns), {**self.labels, **labels})

    def _with(self, columns: dict, labels: dict) -> Jets:
        jets = self._make(self.p4, self.offsets, columns, labels, self.offsets_host)
        check_arrays("Jets", **dict(jets._arrays()))
        jets._check_shapes()
        return jets

    def validate(self, *, row: int = 0) -> Jets:
        """Check that every four-vector is finite with E >= 0, and give back the jets. Readers call this.

        E < |p| by rounding is allowed: half of all massless float32 constituents have it. Raises ValueError naming the
        first jet and constituent that fail; `row` is the number of the first jet, for jets from the middle of a file.
        """
        first, last = self.offsets_host[[0, -1]]
        p4 = self.p4[:, first:last]
        finite = interop.require(self.library).isfinite(p4)
        if not (bool(finite.all()) and bool((p4[3] >= 0).all())):
            good = finite.all(0) & (p4[3] >= 0)
            i = int((~good).nonzero()[0][0]) + int(first)
            j = int(np.searchsorted(self.offsets_host, i, side="right")) - 1
            values = ", ".join(f"{float(v):g}" for v in self.p4[:, i])
            raise ValueError(
                f"Jets: p4 must be finite with E >= 0, got ({values}) in jet {j + row}, "
                f"constituent {i - self.offsets_host[j]}; drop or mend it"
            )
        return self

    def to(self, device: str | None = None, *, library: str | None = None) -> Jets:
        """Move to "cpu", "cuda" or "cuda:1", keeping the family: NumPy goes to CuPy and back, torch stays torch.

        `library` ("numpy", "cupy", "torch") changes the family; on one device no data is copied, except that read-only
        or reversed NumPy arrays are when they become tensors.

        To another device only the constituents of these jets move, and offsets then start at zero. To a GPU that is one
        asynchronous copy from pinned memory on the current stream, all arrays in one buffer: nobody waits. (Tensors
        that require grad, or whose dtype NumPy lacks, make every array move alone.)

        Raises ImportError without the library, RuntimeError without a GPU or a driver that it can use.
        """
        library, device = interop.destination(library, device, self.library, self.device)
        stays = interop.stays(self.device, device)
        if self.device == "cpu" and not stays:
            link = _transfer.LINKS[library](device)
            if _transfer.fits(self):
                return _transfer.send(link, self)()
        jets = self if stays else self.compact()
        move = lambda array: interop.convert(array, library, device)
        return self._make(
            move(jets.p4),
            move(jets.offsets if stays else jets.offsets_host),
            {name: move(array) for name, array in jets.columns.items()},
            {name: move(array) for name, array in jets.labels.items()},
            jets.offsets_host,
        )

    def astype(self, dtype: str) -> Jets:
        """The same jets with p4 as "float32" or "float64"; the jets themselves where p4 has that dtype already."""
        if dtype not in FLOATS:
            raise TypeError(f"astype: dtype must be float32 or float64, got {dtype!r}; choose one")
        if dtype_of(self.p4) == dtype:
            return self
        xp = interop.require(self.library)
        p4 = self.p4.to(getattr(xp, dtype)) if self.library == "torch" else self.p4.astype(dtype)
        return self._make(p4, self.offsets, dict(self.columns), dict(self.labels), self.offsets_host)

    def to_jagged(self) -> Any:
        """A torch jagged tensor (J, n_j, 4), px, py, pz, E last, sharing memory with p4 (torch jets only)."""
        if self.library != "torch":
            raise TypeError(f'to_jagged: jets must be torch, got {self.library}; use jets.to(library="torch")')
        return interop.jagged(self.p4, self.offsets, self.offsets_host)

    @classmethod
    def from_padded(cls, p4: Any, valid: Any = None, *, order: str) -> Jets:
        """Jets from a padded block.

        p4 : (J, L, 4) float32 or float64; `order` says what the last axis is, "px,py,pz,E" or "E,px,py,pz".
        valid : (J, L) bool, True = real constituent; None: real where any of the four components is not zero.
        """
        rows = _order("from_padded", order)
        check_arrays("from_padded", p4=p4, **({} if valid is None else {"valid": valid}))
        check_floats("from_padded", p4=p4)
        if p4.ndim != 3 or p4.shape[2] != 4:
            raise ValueError(
                f"from_padded: p4 must have shape (J, L, 4), got {tuple(p4.shape)}; put the four components last"
            )
        valid = (p4 != 0).any(2) if valid is None else valid
        if tuple(valid.shape) != tuple(p4.shape[:2]) or dtype_of(valid) != "bool":
            raise ValueError(
                f"from_padded: valid must be bool of shape {tuple(p4.shape[:2])}, "
                f"got {dtype_of(valid)} {tuple(valid.shape)}; True is a real constituent"
            )
        counts = interop.convert(valid.sum(1), "numpy", "cpu")
        offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        flat = p4[valid]
        out = interop.require(library_of(p4) or "").stack([flat[:, row] for row in rows])
        return cls._make(out, interop.like(offsets, p4), {}, {}, offsets)

    def to_padded(self, length: int, *, order: str = "px,py,pz,E", truncate: bool = False) -> tuple[Any, Any]:
        """p4 (J, length, 4), zero-padded, and valid (J, length) bool, True = real. See `fasttag_kernels.pad`."""
        from fasttag_kernels.pad import pad

        rows = np.argsort(_order("to_padded", order)).tolist()
        p4 = self.p4 if rows == [0, 1, 2, 3] else interop.require(self.library).stack([self.p4[row] for row in rows])
        return pad(p4, self.offsets, length, truncate=truncate, offsets_host=self.offsets_host)

    def to_awkward(self) -> Any:
        """A jagged Awkward array of Momentum4D records px, py, pz, E and the columns, sharing memory with p4."""
        return interop.to_awkward(self)

    @classmethod
    def from_awkward(cls, array: Any, *, columns: Iterable[str] = (), labels: Mapping[str, Any] | None = None) -> Jets:
        """Jets from a jagged record array with px, py, pz and E (or energy) as fields, or as vector's properties.

        Costs one gather: Awkward keeps records in any layout, Jets wants four contiguous rows. float32 only if all
        four are float32.
        """
        p4, offsets, found = interop.from_awkward(array, tuple(columns))
        return cls(p4, offsets, found, labels or {})

    @classmethod
    def concatenate(cls, parts: Iterable[Jets]) -> Jets:
        """All jets of several Jets of one library and device, with the same columns and labels, in order."""
        parts = [part.compact() for part in parts]
        if not parts:
            raise ValueError(
                "concatenate: parts must hold at least one Jets, got none; make an empty one with offsets [0]"
            )
        first = parts[0]
        blocks = {f"parts[{i}].p4": part.p4 for i, part in enumerate(parts)}
        check_arrays("concatenate", **blocks)
        check_floats("concatenate", **blocks)
        for part in parts[1:]:
            if set(part.columns) != set(first.columns) or set(part.labels) != set(first.labels):
                raise ValueError("concatenate: all parts must have the same columns and labels; drop those that differ")
        xp = interop.require(first.library)
        ends = np.cumsum([0, *(int(part.offsets_host[-1]) for part in parts)])
        host = np.concatenate([part.offsets_host[:-1] + end for part, end in zip(parts, ends)] + [ends[-1:]])
        host = host.astype(np.int64)
        join = lambda arrays, axis=0: xp.concatenate(tuple(arrays), axis)
        return cls._make(
            join((part.p4 for part in parts), 1),
            interop.like(host, first.p4),
            {name: join(part.columns[name] for part in parts) for name in first.columns},
            {name: join(part.labels[name] for part in parts) for name in first.labels},
            host,
        )


def _order(op: str, order: str) -> list[int]:
    if order not in ORDERS:
        raise ValueError(
            f"{op}: order must be one of {', '.join(map(repr, ORDERS))}, got {order!r}; name the last axis"
        )
    return ORDERS[order]
