"""torch custom operators made from the table: fasttag::<op> and, where it has gradients, fasttag::<op>_backward.

Both are functional: outputs are allocated here and filled by the backend's `run` or `backward`.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.overrides import has_torch_function
from torch.utils._pytree import tree_flatten, tree_unflatten

from ._dispatch import backend_for, differentiable, execute, execute_backward, returned
from ._table import TABLE

# CuPy's scratch memory is its own: a CUDA graph would write to it after others have got it
TAGS = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()
LAST = "Tensor? offsets_host, int threads"  # of every schema; offsets_host is on the CPU, and None where all else is

_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
for _key in ("AutogradCPU", "ADInplaceOrView", "AutocastCPU", "BackendSelect"):
    _KEYS = _KEYS.add(getattr(torch._C.DispatchKey, _key))
FOREIGN = ~_KEYS.raw_repr()  # what dispatches calls, but for the keys of an ordinary tensor on the CPU


def call(op: str, arguments: tuple, offsets_host: np.ndarray | None, threads: int) -> Any:
    """Run an op on tensors; an input that needs a gradient which the op cannot give raises."""
    row = TABLE[op]
    seen = None if torch.compiler.is_compiling() else _seen(arguments)
    if seen is not None and not seen[1]:
        views = [*seen[0], [False] * len(row["gradients"])] if "saved" in row else seen[0]
        found = _tensors_of(execute(op, backend_for(op, "torch", "cpu"), tuple(views), None, threads, _memory))
        return returned(op, found) if "saved" in row else found
    tensors = [(name, x) for name, argument in zip(row["arguments"], arguments) for x in _tensors(argument)]
    for name, tensor in tensors if forward_ad._current_level >= 0 else ():  # asking each tensor takes 1 us
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{op}: {name} must not be a dual tensor, there is no forward mode; use backward")
    if torch.is_grad_enabled():
        for name, tensor in tensors:
            if tensor.requires_grad and name not in row["gradients"]:
                able = ", ".join(row["gradients"]) or "none of its arguments"
                raise RuntimeError(f"{op}: {name} must not require grad, it is differentiable in {able}; detach it")
    if "saved" in row:
        wanted = {name for name, tensor in tensors if torch.is_grad_enabled() and tensor.requires_grad}
        arguments = (*arguments, [name in wanted for name in row["gradients"]])
    if seen is not None:
        lengths = [len(x) if isinstance(x, list | tuple) else None for x in arguments]
        found = _Recorded.apply(op, threads, lengths, *_flat(arguments))
    else:
        last = (None if offsets_host is None else torch.from_numpy(offsets_host.copy()), threads)
        found = getattr(torch.ops.fasttag, op)(*arguments, *last)
    return returned(op, found) if "saved" in row else found


def _seen(arguments: tuple | list) -> tuple[list, bool] | None:
    """NumPy's views of tensors, and whether autograd records them; None where torch's dispatcher has more to do.

    That is with transforms, modes or tracing, and for tensors elsewhere or of a kind of their own. Where it has no more
    to do than to call autograd and the CPU's backend, it takes 20 us, and 100 with gradients.
    """
    if has_torch_function(arguments) or forward_ad._current_level >= 0:
        return None
    if torch._C._dispatch_tls_local_include_set().raw_repr() & FOREIGN:
        return None
    recorded, enabled = False, torch.is_grad_enabled()
    views: list[Any] = []
    for x in arguments:
        if isinstance(x, torch.Tensor):
            if torch._C._dispatch_keys(x).raw_repr() & FOREIGN:
                return None
            recorded = recorded or (enabled and x.requires_grad)
            views.append(x.numpy(force=True))
        elif isinstance(x, list):
            several = _seen(x)
            if several is None:
                return None
            recorded = recorded or several[1]
            views.append(several[0])
        else:
            views.append(x)
    return views, recorded


class _Recorded(torch.autograd.Function):
    """An op and its gradient on the CPU, past the dispatcher. Lists of arguments are flat, `lengths` has theirs."""

    @staticmethod
    def forward(ctx: Any, op: str, threads: int, lengths: list, *flat: Any) -> Any:
        views = [x.numpy(force=True) if isinstance(x, torch.Tensor) else x for x in flat]
        backend = backend_for(op, "torch", "cpu")
        found = _tensors_of(execute(op, backend, tuple(_listed(views, lengths)), None, threads, _memory))
        extras = found[1:] if "saved" in TABLE[op] else ()
        ctx.mark_non_differentiable(*extras)
        ctx.set_materialize_grads(False)  # no zeros for the extras, which can be large
        ctx.given = op, threads, lengths, [None if isinstance(x, torch.Tensor) else x for x in flat]
        ctx.save_for_backward(*(x if isinstance(x, torch.Tensor) else None for x in flat), *extras)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: None) -> tuple:
        op, threads, lengths, rest = ctx.given
        if gradient is None:
            return (None,) * (3 + len(rest))
        saved = ctx.saved_tensors
        flat = [value if tensor is None else tensor for value, tensor in zip(rest, saved)]
        values = [gradient, *_listed(flat, lengths), *saved[len(rest) :]]
        seen = _seen(values)
        if seen is None or seen[1]:  # the gradient is to be differentiated, too, or vectorised
            found = getattr(torch.ops.fasttag, f"{op}_backward")(*values, None, threads)
        else:
            views, backend = seen[0], backend_for(op, "torch", "cpu")
            found = _tensors_of(execute_backward(op, backend, views[0], tuple(views[1:]), None, threads, _memory))
        row, places = TABLE[op], [None if length is None else [None] * length for length in lengths]
        found = [found] if len(row["gradients"]) == 1 else found
        for name, value in zip(row["gradients"], found):
            places[list(row["arguments"]).index(name)] = value
        gradients = zip(_flat(places), ctx.needs_input_grad[3:])
        return None, None, None, *(one if need else None for one, need in gradients)


def _flat(arguments: Any) -> list:
    return [one for x in arguments for one in (x if isinstance(x, list | tuple) else [x])]


def _listed(flat: list, lengths: list) -> list:
    """What `_flat` has made flat."""
    rest = iter(flat)
    return [next(rest) if length is None else [next(rest) for _ in range(length)] for length in lengths]


def _tensors_of(found: Any) -> Any:
    """Tensors of arrays, of a tuple or lists of them as well."""
    return torch.from_numpy(found) if isinstance(found, np.ndarray) else type(found)(map(_tensors_of, found))


def _tensors(argument: Any) -> list[torch.Tensor]:
    """The tensors of an argument, which may be one, several or none."""
    if isinstance(argument, list | tuple):
        return [one for one in argument if isinstance(one, torch.Tensor)]
    return [argument] if isinstance(argument, torch.Tensor) else []


def _memory(shape: tuple, *, dtype: str) -> np.ndarray:
    """NumPy's: it asks for huge pages, which fresh memory is filled five times as fast in as in torch's."""
    return np.empty(shape, dtype)


def _empty_on(device: torch.device) -> Any:
    if device.type == "cpu":
        return lambda shape, *, dtype: torch.from_numpy(_memory(shape, dtype=dtype))
    return lambda shape, *, dtype: torch.empty(shape, dtype=getattr(torch, dtype), device=device)


def _numpy(offsets_host: torch.Tensor | None) -> np.ndarray | None:
    return None if offsets_host is None else offsets_host.numpy()


def _register(op: str, row: dict[str, Any]) -> None:
    arguments = ", ".join(f"{kind} {name}" for name, kind in row["arguments"].items())
    torch.library.define(f"fasttag::{op}", f"({arguments}, {LAST}) -> {row['returns']}", tags=TAGS)

    @torch.library.impl(f"fasttag::{op}", ("cpu", "cuda"))
    def _(*arguments: Any) -> Any:
        *rest, offsets_host, threads = arguments
        device = arguments[0].device
        backend = backend_for(op, "torch", device.type)
        return execute(op, backend, tuple(rest), _numpy(offsets_host), threads, _empty_on(device))

    @torch.library.register_fake(f"fasttag::{op}")
    def _(*arguments: Any) -> Any:
        package = importlib.import_module(f"fasttag_kernels.{op}")
        first = arguments[0]
        outs = [first.new_empty(s, dtype=getattr(torch, d)) for s, d in package.outputs(*arguments[:-2])]
        return outs[0] if len(outs) == 1 else tuple(outs)

    if row["gradients"]:
        _register_gradient(op, row, arguments)


def _register_gradient(op: str, row: dict[str, Any], arguments: str) -> None:
    saved_names = row.get("saved", ())
    arguments += "".join(f", Tensor {name}" for name in saved_names)
    names = list(row["arguments"])
    places = [names.index(name) for name in row["gradients"]]
    lists = [kind == "Tensor[]" for kind in (*row["arguments"].values(), "offsets_host", "threads")]
    kinds = [row["arguments"][name].rstrip("?") for name in row["gradients"]]
    returns = kinds[0] if len(places) == 1 else f"({', '.join(kinds)})"
    torch.library.define(f"fasttag::{op}_backward", f"(Tensor gradient, {arguments}, {LAST}) -> {returns}", tags=TAGS)

    @torch.library.impl(f"fasttag::{op}_backward", ("cpu", "cuda"))
    def _(gradient: torch.Tensor, *arguments: Any) -> Any:
        *rest, offsets_host, threads = arguments
        backend, empty = backend_for(op, "torch", gradient.device.type), _empty_on(gradient.device)
        return execute_backward(op, backend, gradient, tuple(rest), _numpy(offsets_host), threads, empty)

    @torch.library.register_fake(f"fasttag::{op}_backward")
    def _(gradient: torch.Tensor, *arguments: Any) -> Any:
        def new(like: Any, need: bool) -> Any:
            if isinstance(like, list | tuple):
                return [new(one, need) for one in like]
            if not need or like is None:
                return (gradient if like is None else like).new_empty((0,))
            return torch.empty_like(like, memory_format=torch.contiguous_format)

        outs = [new(*given) for given in differentiable(op, arguments)]
        return outs[0] if len(outs) == 1 else tuple(outs)

    def setup(ctx: Any, inputs: tuple, output: Any) -> None:
        *rest, offsets_host, threads = inputs
        extras = output[1:] if saved_names else ()
        ctx.mark_non_differentiable(*extras)
        ctx.set_materialize_grads(False)  # no zeros for the extras, which can be large
        values = [*rest, *extras, offsets_host, threads]
        flat, ctx.shape = tree_flatten(values)
        ctx.is_tensor = [isinstance(value, torch.Tensor) for value in flat]
        ctx.rest = [None if isinstance(value, torch.Tensor) else value for value in flat]
        ctx.save_for_backward(*(value for value in flat if isinstance(value, torch.Tensor)))

    def backward(ctx: Any, gradient: torch.Tensor, *_: None) -> tuple:
        saved = iter(ctx.saved_tensors)
        flat = [next(saved) if is_tensor else value for is_tensor, value in zip(ctx.is_tensor, ctx.rest)]
        values = tree_unflatten(flat, ctx.shape)
        gradients: list[Any] = [[None] * len(value) if many else None for value, many in zip(values, lists)]
        if gradient is None:
            return tuple(gradients)
        if saved_names:
            for place, need in zip(places, values[names.index("needed")]):
                wanted = ctx.needs_input_grad[place]
                if not need and (any(wanted) if isinstance(wanted, list | tuple) else wanted):
                    raise RuntimeError(f"{op}: recorded without gradients; export or call it with gradients enabled")
        found = getattr(torch.ops.fasttag, f"{op}_backward")(gradient, *values)
        found = (found,) if len(places) == 1 else found
        for place, value in zip(places, found):
            needs = ctx.needs_input_grad[place]
            if isinstance(value, list | tuple):
                gradients[place] = [one if need else None for one, need in zip(value, needs)]
            else:
                gradients[place] = value if needs else None
        return tuple(gradients)

    def no_double(ctx: Any, *_: Any) -> None:
        raise NotImplementedError(f"{op}: there is no second derivative; detach the gradient")

    torch.library.register_autograd(f"fasttag::{op}", backward, setup_context=setup)
    torch.library.register_autograd(f"fasttag::{op}_backward", no_double)


for _op, _row in TABLE.items():
    _register(_op, _row)
