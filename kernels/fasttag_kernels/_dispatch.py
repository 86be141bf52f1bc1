"""From arrays to a backend: look at the array's type, never import a library to ask about it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import numbers
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import _threads
from ._table import TABLE

FLOATS = ("float32", "float64")
HALVES = ("float16", "bfloat16")
_NAMES = {np.dtype(name): name for name in (*FLOATS, "int32", "int64")}  # NumPy takes 2 us to make a name

_ARRAYS = (("numpy", "ndarray"), ("cupy", "ndarray"), ("torch", "Tensor"))


def library_of(array: Any) -> str | None:
    """Say "numpy", "cupy" or "torch"; None for anything else.

    Not memoised: it takes 0.1 us, and torch.compile warns of functools caches and fails on dicts with types as keys.
    """
    kind = type(array)
    if kind is np.ndarray:
        return "numpy"
    if kind.__name__ == "Tensor" and kind.__module__ == "torch":
        return "torch"
    for base in kind.__mro__:
        if base.__name__ in ("ndarray", "Tensor"):
            root = base.__module__.partition(".")[0]
            if (root, base.__name__) in _ARRAYS:
                return root
    return None


def device_of(array: Any) -> str:
    """ "cpu", "cuda:0", ... of an array of one of the three libraries."""
    library = library_of(array)
    if library == "torch":
        return "cpu" if array.is_cpu else str(array.device)
    return f"cuda:{array.device.id}" if library == "cupy" else "cpu"


def dtype_of(array: Any) -> str:
    """The dtype's plain name, the same in all three libraries: "float32", "int64", ... (">f4" for swapped bytes)."""
    if library_of(array) == "torch":
        return str(array.dtype).removeprefix("torch.")
    return _NAMES.get(array.dtype) or (array.dtype.name if array.dtype.isnative else array.dtype.str)


def check_arrays(op: str, **arrays: Any) -> str:
    """Every argument an array, all of one library and device; gives back the library."""
    first, *_ = given = list(arrays.values())
    kind, library = type(first), library_of(first)
    # the usual case, of which there may be twenty; lists, as generators take 0.3 us
    alike = False not in [type(x) is kind for x in given]
    if alike and (library == "numpy" or (library == "torch" and False not in [x.is_cpu for x in given])):
        return library
    seen = {name: library_of(array) for name, array in arrays.items()}
    for name, found in seen.items():
        if found is None:
            raise TypeError(
                f"{op}: {name} must be a NumPy, CuPy or torch array, got {type(arrays[name]).__name__}; "
                f"use np.asarray({name})"
            )
    # of tensors the device itself: its name takes longer to make, and there may be twenty of them
    if len({(seen[name], a.device if seen[name] == "torch" else device_of(a)) for name, a in arrays.items()}) > 1:
        places = {name: f"{seen[name]} on {device_of(array)}" for name, array in arrays.items()}
        listed = ", ".join(f"{name} is {place}" for name, place in places.items())
        raise TypeError(f"{op}: all arrays must share one library and device, got {listed}; move them first")
    return library or ""


def check_floats(op: str, halves: bool = False, **arrays: Any) -> None:
    """All float32 or all float64; with `halves`, of tensors on a GPU, also float16 or bfloat16."""
    first, *others = arrays.values()
    if dtype_of(first) in FLOATS and False not in [other.dtype == first.dtype for other in others]:
        return
    dtypes = {name: dtype_of(array) for name, array in arrays.items()}
    allowed = (*FLOATS, *HALVES) if halves and library_of(first) == "torch" and first.is_cuda else FLOATS
    for name, dtype in dtypes.items():
        if dtype not in allowed:
            listed = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
            also = " (float16 or bfloat16 for tensors on a GPU only)" if halves and dtype in HALVES else ""
            raise TypeError(f"{op}: {name} must be {listed}, got {dtype}{also}; convert it")
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{op}: all floats must share one dtype, got {listed}; convert one")


def check_integer(op: str, name: str, value: Any, least: int, hint: str) -> None:
    """An integer of any library (no bool) of at least `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{op}: {name} must be an integer, got {value!r}; {hint}")
    if value < least:
        raise ValueError(f"{op}: {name} must be {least} or more, got {value}; {hint}")


def least(a: Any, b: Any) -> Any:
    """The smaller of two sizes, which torch may trace as symbols."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return importlib.import_module("torch").sym_min(a, b)


def check_eps(op: str, eps: Any) -> None:
    """Of a LayerNorm: above 0 and finite."""
    if not isinstance(eps, (float, int)) or isinstance(eps, bool):
        raise TypeError(f"{op}: eps must be a number, got {eps!r}; PyTorch's default is 1e-5")
    if not 0 < eps < math.inf:
        raise ValueError(f"{op}: eps must be above 0 and finite, got {eps}; PyTorch's default is 1e-5")


def check_dropout(op: str, dropout: Any, seed: Any, layer: Any) -> tuple[float, Any, Any]:
    """A probability below 1, and what fits into key and counter of Philox4x32; as Python's own numbers."""
    if type(dropout) is not float and (not isinstance(dropout, numbers.Real) or isinstance(dropout, bool)):
        raise TypeError(f"{op}: dropout must be a number, got {dropout!r}; 0.0 is none")
    dropout = float(dropout)
    if not 0 <= dropout < 1:
        raise ValueError(f"{op}: dropout must lie in 0..1, 1 left out, got {dropout}; it is the part dropped")
    seed, layer = _word(op, "seed", seed, 1 << 63), _word(op, "layer", layer, 1 << 32)
    return dropout, seed, layer


def _word(op: str, name: str, value: Any, end: int) -> Any:
    """An integer below `end`; a symbol of torch, which must not be asked for its value, stays one."""
    symbol = type(value).__name__ == "SymInt"
    if not (symbol or isinstance(value, int)) or isinstance(value, bool):
        if isinstance(value, bool) or library_of(value) or not hasattr(value, "__index__"):
            raise TypeError(f"{op}: {name} must be an integer, got {value!r}; convert it")
        value = operator.index(value)
    if value < 0 or value >= end:
        raise ValueError(f"{op}: {name} must lie in 0..{end - 1}, got {value}; take it modulo {end}")
    return value


def check_offsets(op: str, offsets: Any) -> None:
    """The shape and dtype of offsets; their values are checked by `check_offset_values`, outside any tracing."""
    if dtype_of(offsets) != "int64":
        raise TypeError(f"{op}: offsets must be int64, got {dtype_of(offsets)}; convert them")
    if offsets.ndim != 1 or offsets.shape[0] < 1:
        raise ValueError(
            f"{op}: offsets must have shape (J+1,), got {tuple(offsets.shape)}; no jets at all are offsets = [0]"
        )


def check_offset_values(op: str, offsets: np.ndarray, n: int) -> None:
    """Offsets that never fall and stay within 0..n."""
    if offsets[0] < 0 or offsets[-1] > n:
        raise ValueError(
            f"{op}: offsets must lie in 0..{n}, got {offsets[0]}..{offsets[-1]}; they count constituents of this array"
        )
    falls = offsets[1:] < offsets[:-1]
    if np.count_nonzero(falls):  # 0.2 us, where any() takes 1
        j = int(falls.argmax())
        raise ValueError(
            f"{op}: offsets must not fall, got {offsets[j]} then {offsets[j + 1]} at jet {j}; "
            "jet j is offsets[j]:offsets[j+1]"
        )


@functools.cache
def _package(op: str) -> Any:
    return importlib.import_module(f"fasttag_kernels.{op}")


@functools.cache
def implementation(op: str, backend: str, direction: str = "backends") -> Any:
    """The function the table names, imported on first use; `direction` is "backends" or "backward"."""
    module, _, function = TABLE[op][direction][backend].partition(":")
    return getattr(importlib.import_module(f"fasttag_kernels.{module}"), function)


def backend_for(op: str, library: str, device: str) -> str:
    """The first backend of the table that runs on this device."""
    kind = device.partition(":")[0]
    for backend in TABLE[op]["backends"]:
        if RUNS_ON[backend] == kind and (library == "torch" or backend not in TENSORS_ONLY):
            return backend
    row = ", ".join(
        f"{backend} on {RUNS_ON[backend]}{TENSORS_ONLY.get(backend, '')}" for backend in TABLE[op]["backends"]
    )
    raise NotImplementedError(f"{op}: no kernel for {library} on {device}; there is {row}; move the arrays there")


RUNS_ON = {"numba": "cpu", "cuda": "cuda", "triton": "cuda"}
TENSORS_ONLY = {"triton": " (torch)"}


def call(op: str, *arguments: Any, threads: int | None = None, offsets_host: Any = None) -> Any:
    """Run an op whose argument kinds and shapes its public function has checked. The first argument is an array.

    `offsets_host` is the argument `offsets` in NumPy: a GPU backend takes sizes from it and waits for nothing.
    An op with "saved" outputs has a last argument `needed`, filled in here: which gradient arguments require grad. It
    returns its first "returned" outputs (default: one), of which only the first has a gradient; the saved ones, all but
    the first, are for its `backward`, and empty where nothing needs them.
    """
    library, device = library_of(arguments[0]), device_of(arguments[0])
    backend = backend_for(op, library or "", device)
    threads = _threads.resolve(op, threads)
    if RUNS_ON[backend] == "cpu":
        offsets_host = None
    else:
        offsets = dict(zip(TABLE[op]["arguments"], arguments)).get("offsets")
        offsets_host = _on_host(op, offsets, offsets_host)
    if library == "torch":
        from . import _torch

        return _torch.call(op, arguments, offsets_host, threads)
    empty: Callable = np.empty
    if library == "cupy":
        from . import _cuda

        empty = _cuda.empty
    if "saved" in TABLE[op]:
        arguments = (*arguments, [False] * len(TABLE[op]["gradients"]))
        return returned(op, execute(op, backend, arguments, offsets_host, threads, empty))
    return execute(op, backend, arguments, offsets_host, threads, empty)


def returned(op: str, outs: tuple) -> Any:
    """What the caller of an op with "saved" outputs gets of them."""
    number = TABLE[op].get("returned", 1)
    return outs[0] if number == 1 else outs[:number]


def _on_host(op: str, offsets: Any, offsets_host: Any) -> np.ndarray | None:
    if offsets is None:
        return None
    if offsets_host is None:
        raise ValueError(
            f"{op}: offsets_host must be given for arrays on a GPU, got None; pass Jets, which have it, or the offsets "
            "once more in NumPy"
        )
    if not isinstance(offsets_host, np.ndarray):
        raise TypeError(f"{op}: offsets_host must be a NumPy array, got {type(offsets_host).__name__}; convert it")
    if tuple(offsets_host.shape) != tuple(offsets.shape):
        raise ValueError(
            f"{op}: offsets_host must have the shape of offsets, {tuple(offsets.shape)}, got {offsets_host.shape}; "
            "pass the same numbers"
        )
    return offsets_host


def execute(
    op: str, backend: str, arguments: tuple, offsets_host: np.ndarray | None, threads: int, empty: Callable
) -> Any:
    """Check values, allocate, run. `empty(shape, dtype=name)` makes an output; kernels see NumPy or CuPy views of it,
    Triton's the tensor.

    Values that lie on a GPU are not looked at, but for those of `offsets`, which `offsets_host` has.
    """
    package = _package(op)
    if offsets_host is not None and offsets_host.dtype != np.int64:  # torch.compile could not trace this further out
        raise TypeError(f"{op}: offsets_host must be int64, got {offsets_host.dtype}; convert it")
    place, view, keywords = _way(op, backend, arguments[0], offsets_host, threads)
    with place:
        views = known = arguments if view is _same else [_views(view, argument) for argument in arguments]
        if offsets_host is not None:
            known = list(views)
            known[list(TABLE[op]["arguments"]).index("offsets")] = offsets_host
        package.check_values(*known)
        outs = [empty(shape, dtype=dtype) for shape, dtype in package.outputs(*arguments)]
        implementation(op, backend)(*views, *map(view, outs), **keywords)
    return outs[0] if len(outs) == 1 else tuple(outs)


def execute_backward(
    op: str,
    backend: str,
    gradient: Any,
    arguments: tuple,
    offsets_host: np.ndarray | None,
    threads: int,
    empty: Callable,
) -> Any:
    """The gradients in the arguments that the table names, given the gradient in the first output.

    `arguments` are those of the op and then its saved outputs. The gradient in an argument that is None is empty, that
    in a list is a list; a gradient that is not needed is empty, too.
    """
    place, view, keywords = _way(op, backend, arguments[0], offsets_host, threads)

    def new(like: Any, need: bool) -> Any:
        if isinstance(like, list | tuple):
            return [new(one, need) for one in like]
        shape = tuple(like.shape) if need and like is not None else (0,)
        return empty(shape, dtype=dtype_of(gradient if like is None else like))

    with place:
        outs = [new(*given) for given in differentiable(op, arguments)]
        run = implementation(op, backend, "backward")
        run(view(gradient), *(_views(view, a) for a in arguments), *(_views(view, out) for out in outs), **keywords)
    return outs[0] if len(outs) == 1 else tuple(outs)


def differentiable(op: str, arguments: tuple) -> Iterator[tuple[Any, bool]]:
    """The arguments that the table has gradients in, and whether they are needed: of an op without "saved" all are."""
    given = dict(zip(TABLE[op]["arguments"], arguments))
    names = TABLE[op]["gradients"]
    return zip([given[name] for name in names], given["needed"] if "saved" in TABLE[op] else [True] * len(names))


def _views(view: Callable, argument: Any) -> Any:
    return [view(one) for one in argument] if isinstance(argument, list | tuple) else view(argument)


def _way(
    op: str, backend: str, array: Any, offsets_host: np.ndarray | None, threads: int
) -> tuple[Any, Callable, dict]:
    """How a backend is called: the device of `array` to be on, how it sees arrays, its keywords."""
    if RUNS_ON[backend] == "cpu":
        view = _same if type(array) is np.ndarray else _numpy_view
        return contextlib.nullcontext(), view, {"threads": threads}
    keywords = {"offsets_host": offsets_host} if "offsets" in TABLE[op]["arguments"] else {}
    if backend == "triton":
        from . import _triton

        return _triton.on(array), _same, keywords
    from . import _cuda

    return _cuda.on(array), _cuda.view, keywords


def _same(argument: Any) -> Any:
    return argument


def _numpy_view(argument: Any) -> Any:
    return argument.numpy(force=True) if library_of(argument) == "torch" else argument
