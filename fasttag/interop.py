"""Moving arrays between NumPy, CuPy, torch and Awkward, without a copy where the libraries allow it."""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np

from fasttag_kernels._dispatch import device_of, library_of

_EXTRAS = {
    "torch": "torch",
    "cupy": "cuda13 or cuda12",
    "awkward": "hep",
    "uproot": "hep",
    "pyarrow": "hep",
    "safetensors": "train",
    "tqdm": "train",
    "matplotlib": "plot",
    "onnx": "onnx",
}


def require(module: str) -> Any:
    """Import an optional module, or raise ImportError with the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name not in (package, module):
            raise
        raise ImportError(f"{package} is needed here: install fasttag-hep with the extra {_EXTRAS[package]}") from error


def destination(library: str | None, device: Any, here: str, place: str) -> tuple[str, str]:
    """Library and device that `Jets.to` means, for arrays of library `here` at `place`. See Jets.to."""
    if library not in (None, "numpy", "cupy", "torch"):
        raise ValueError(f'to: library must be "numpy", "cupy" or "torch", got {library!r}; choose one')
    device = str(device or ("cpu" if library == "numpy" else "cuda" if library == "cupy" else place))
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f'to: device must be "cpu", "cuda" or "cuda:<number>", got {device!r}; choose one')
    cuda = device.startswith("cuda")
    if library is None:
        library = "torch" if here == "torch" else "cupy" if cuda else "numpy"
    if (library == "numpy" and cuda) or (library == "cupy" and not cuda):
        raise ValueError(f'to: library "{library}" has no device "{device}"; use "torch", or leave out one of the two')
    return library, device


def stays(place: str, device: str) -> bool:
    """Whether what is at `place` is on `device` already; "cuda" is any GPU."""
    return place == device or (device == "cuda" and place.startswith("cuda"))


def convert(array: Any, library: str, device: str) -> Any:
    """The same values in another library or on another device; the array itself where nothing changes.

    NumPy -> torch on the CPU shares memory, except that a read-only or reversed array is copied: torch has neither.
    CuPy <-> torch on one GPU share memory through DLPack.
    """
    here, place = library_of(array), device_of(array)
    device = place if stays(place, device) else device
    if here == library and place == device:
        return array
    if here == "numpy" and library == "torch":
        torch = require("torch")
        shareable = array.flags.writeable and min(array.strides, default=0) >= 0
        tensor = torch.from_numpy(array if shareable else array.copy())
        # from pinned memory nobody waits for the copy; CuPy goes that way by itself
        return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
    if here == "numpy":
        cupy = require("cupy")
        with cupy.cuda.Device(int(device.partition(":")[2] or 0)):
            return cupy.asarray(array)
    if library == "torch":
        torch = require("torch")
        return (array if here == "torch" else torch.from_dlpack(array)).to(device)
    if library == "cupy":
        cupy = require("cupy")
        if here == "cupy":
            with cupy.cuda.Device(int(device.partition(":")[2] or 0)):
                return cupy.asarray(array)
        return cupy.from_dlpack(array.detach().to(device))
    return array.get() if here == "cupy" else array.detach().cpu().numpy()


def like(array: np.ndarray, other: Any) -> Any:
    """A NumPy array in the library and on the device of `other`."""
    return convert(array, library_of(other) or "numpy", device_of(other))


def jagged(p4: Any, offsets: Any, offsets_host: np.ndarray) -> Any:
    """A torch nested tensor of layout jagged, (J, n_j, 4) with px, py, pz, E last, that shares p4's memory."""
    torch = require("torch")
    first, last = int(offsets_host[0]), int(offsets_host[-1])
    return torch.nested.nested_tensor_from_jagged(p4[:, first:last].T, offsets - first)


def to_awkward(jets: Any) -> Any:
    """See Jets.to_awkward."""
    ak = require("awkward")
    host = jets.to("cpu", library="numpy")
    contents = [ak.contents.NumpyArray(row) for row in host.p4]
    contents += [ak.contents.NumpyArray(np.ascontiguousarray(column)) for column in host.columns.values()]
    record = ak.contents.RecordArray(
        contents,
        ["px", "py", "pz", "E", *host.columns],
        length=host.p4.shape[1],
        parameters={"__record__": "Momentum4D"},
    )
    return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(host.offsets), record))


def from_awkward(array: Any, columns: tuple[str, ...] = ()) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """p4, offsets and columns of a jagged record array. See Jets.from_awkward."""
    ak = require("awkward")
    if not isinstance(array, ak.Array) or array.ndim != 2:
        found = getattr(array, "type", type(array))
        raise ValueError(
            f"from_awkward: array must be jagged records, jets * var * {{px, ...}}, got {found}; nest it so"
        )
    fields = ak.fields(array)
    energy = next((name for name in ("E", "energy", "e", "t") if name in fields), "E")

    def plain(name: str, values: Any) -> np.ndarray:
        if ak.any(ak.is_none(values)):
            raise ValueError(
                f"from_awkward: {name} must have no missing values, got None; use ak.drop_none or ak.fill_none first"
            )
        return ak.to_numpy(values, allow_missing=False)

    offsets = np.concatenate([[0], np.cumsum(plain("array", ak.num(array, axis=1)), dtype=np.int64)])

    def flat(name: str) -> np.ndarray:
        try:
            values = array[name] if name in fields else getattr(array, name)
        except AttributeError:
            raise ValueError(
                f"from_awkward: array must have a field or property {name}, got {', '.join(fields)}; "
                "rename fields, or import vector and name the record Momentum4D"
            ) from None
        return plain(name, ak.flatten(values, axis=1))

    rows = [flat(name) for name in ("px", "py", "pz", energy)]
    dtype = np.float32 if all(row.dtype == np.float32 for row in rows) else np.float64
    return np.stack([row.astype(dtype, copy=False) for row in rows]), offsets, {name: flat(name) for name in columns}
