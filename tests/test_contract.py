"""Every op, backend, dtype and ragged case: against the oracle, and the promises that hold for all operations."""

from __future__ import annotations

import doctest
import importlib
from typing import Any

import numpy as np
import pytest
import torch

from cases import CASES, OPS, arguments_of, assert_agrees, outputs_of, pairs_of_jet, same_bits
from fasttag_kernels import TABLE, _dispatch

every_op = pytest.mark.parametrize("op", OPS)
every_case = pytest.mark.parametrize("case", CASES)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def test_every_op_of_the_table_is_here():
    assert set(OPS) == set(TABLE)


@every_op
def test_the_example_of_the_docstring_runs(op):
    found = doctest.testmod(importlib.import_module(f"fasttag_kernels.{op}"))
    assert found.attempted >= 2 and found.failed == 0


@every_op
@every_case
@every_dtype
def test_agrees_with_the_oracle(op, case, dtype):
    arguments = arguments_of(op, case, dtype)
    assert_agrees(op, dtype, arguments, OPS[op].run(*arguments))


@every_op
@every_case
@every_dtype
def test_promises(op, case, dtype, monkeypatch):
    arguments = arguments_of(op, case, dtype)
    before = [a.copy() for a in arguments]
    result = OPS[op].run(*arguments)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(arguments, before)), "an input was changed"
    assert same_bits(result, OPS[op].run(*arguments)), "a second run differs"
    assert same_bits(result, OPS[op].run(*arguments, threads=3)), "three threads differ from one"

    tensors = [torch.from_numpy(a.copy()) for a in arguments]
    assert same_bits(result, OPS[op].run(*tensors)), "torch differs from NumPy"

    for a in arguments:
        a.flags.writeable = False
    assert same_bits(result, OPS[op].run(*arguments)), "read-only input differs"
    at = OPS[op].offsets_at if OPS[op].ragged else None
    strided = [np.repeat(a, 2, axis=-1)[..., ::2] if i != at else a for i, a in enumerate(arguments)]
    assert same_bits(result, OPS[op].run(*strided)), "non-contiguous input differs"

    execute = _dispatch.execute

    def poisoned(*args: Any) -> Any:
        return execute(*args[:-1], _poison)

    monkeypatch.setattr(_dispatch, "execute", poisoned)
    assert same_bits(result, OPS[op].run(*arguments)), "some output element is never written"


def _poison(shape: tuple, dtype: str) -> np.ndarray:
    kind = np.dtype(dtype).kind
    return np.full(shape, np.nan if kind == "f" else np.iinfo(dtype).min if kind == "i" else True, dtype)


@pytest.mark.parametrize("op", [name for name, op in OPS.items() if op.ragged])
@every_case
def test_jets_do_not_see_each_other(op, case):
    arguments = list(arguments_of(op, case, "float32"))
    offsets = arguments[OPS[op].offsets_at]
    whole = outputs_of(OPS[op].run(*arguments))
    pairs_at = OPS[op].pairs_at
    pairs = None if pairs_at is None else arguments[pairs_at]
    for j in range(len(offsets) - 1):
        arguments[OPS[op].offsets_at] = offsets[j : j + 2]
        if pairs_at is not None:
            arguments[pairs_at] = pairs_of_jet(pairs, offsets, j)
        for part, all_parts in zip(outputs_of(OPS[op].run(*arguments)), whole):
            alone, among = OPS[op].of_jet(part, offsets[j : j + 2], 0), OPS[op].of_jet(all_parts, offsets, j)
            assert alone.tobytes() == among.tobytes(), f"jet {j} alone differs"


@every_op
def test_library_independence(op):
    arguments = arguments_of(op, "mixed", "float32")
    if len(arguments) > 1:
        with pytest.raises(TypeError, match=f"{op}: all arrays must share one library and device"):
            OPS[op].run(torch.from_numpy(arguments[0]), *arguments[1:])
    with pytest.raises(TypeError, match=f"{op}: .* must be a NumPy, CuPy or torch array, got list"):
        OPS[op].run(arguments[0].tolist(), *arguments[1:])
    with pytest.raises(TypeError, match=f"{op}: .* must be float32 or float64, got int64"):
        OPS[op].run(arguments[0].astype(np.int64), *arguments[1:])
    with pytest.raises(TypeError, match=f"{op}: .* must be float32 or float64, got >f4"):
        OPS[op].run(arguments[0].astype(">f4"), *arguments[1:])
    with pytest.raises(NotImplementedError, match=f"{op}: no kernel for torch on meta; there is (numba|torch) on cpu"):
        OPS[op].run(*(torch.from_numpy(a).to("meta") for a in arguments))
    for bad in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=f"{op}: threads must be a positive integer"):
            OPS[op].run(*arguments, threads=bad)


@pytest.mark.parametrize("op", [name for name, op in OPS.items() if op.ragged])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda o: o + 10_000, ValueError, "offsets must lie in 0"),
        (lambda o: o - 1, ValueError, "offsets must lie in 0"),
        (lambda o: np.concatenate([o[:2], o[:1], o[2:]]), ValueError, "offsets must not fall, got 3 then 0 at jet 1"),
        (lambda o: o.astype(np.int32), TypeError, "offsets must be int64, got int32"),
        (lambda o: o[:0], ValueError, r"offsets must have shape \(J\+1,\)"),
        (lambda o: o[None], ValueError, r"offsets must have shape \(J\+1,\)"),
    ],
)
def test_bad_offsets(op, change, error, message):
    arguments = list(arguments_of(op, "mixed", "float32"))
    at = OPS[op].offsets_at
    arguments[at] = change(arguments[at])
    with pytest.raises(error, match=f"{op}: {message}"):
        OPS[op].run(*arguments)
    with pytest.raises(error, match=f"{op}: {message}"):
        OPS[op].run(*map(torch.from_numpy, arguments))
