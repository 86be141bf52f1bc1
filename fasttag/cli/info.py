"""Print versions, backends, threads, HDF5 filters and GPU."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform

from .. import __version__, get_threads, interop
from .._backends import backends

PACKAGES = (
    *("numpy", "numba", "llvmlite", "h5py", "hdf5plugin", "torch", "triton", "cupy-cuda12x", "cupy-cuda13x"),
    *("awkward", "uproot", "pyarrow", "safetensors", "tqdm", "matplotlib"),
)
FILTERS = {"deflate": 1, "shuffle": 2, "fletcher32": 3, "lzf": 32000, "bzip2": 307, "blosc": 32001, "blosc2": 32026}


def arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> None:
    from fasttag_kernels._numba import CACHE_FOLDER

    print(f"fasttag {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"CPU: {_cpu()}, {os.cpu_count()} cores; default threads {get_threads()}")
    print(f"GPU: {_gpu()}")
    print("packages: " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    print("HDF5 filters: " + ", ".join(f"{name} {'yes' if _filter(code) else 'no'}" for name, code in FILTERS.items()))
    print(f"compiled kernels are kept in: {CACHE_FOLDER or 'nowhere, no folder is writeable'}")
    print("operations:")
    for op, row in backends().items():
        print(f"  {op:20s} " + ", ".join(f"{name} ({device})" for name, device in row.items()))


def _cpu() -> str:
    import llvmlite.binding

    return llvmlite.binding.get_host_cpu_name()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def _filter(code: int) -> bool:
    import h5py
    import hdf5plugin  # noqa: F401  registers its filters

    return bool(h5py.h5z.filter_avail(code))


def _gpu() -> str:
    try:
        torch = interop.require("torch")
    except ImportError:
        return "unknown (torch is not installed)"
    if not torch.cuda.is_available():
        return "none"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
