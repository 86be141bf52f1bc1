"""The GPU backends on the host: the same .cu files through g++, the same Python around them, on the contract cases.

`test_sanitized` runs this file once more, in a Python with the address and undefined-behaviour sanitizers loaded.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import emulation
import problems
from cases import CASES, OPS, arguments_of, assert_agrees, outputs_of, same_bits
from children import environment
from fasttag_kernels import TABLE, _dispatch
from many_jets import assert_gpu_is_cpu

ON_GPU = [op for op, row in TABLE.items() if "cuda" in row["backends"]]
WITH_GRADIENT = [op for op in ON_GPU if TABLE[op]["backward"]]

pytestmark = pytest.mark.sanitizer
every_op = pytest.mark.parametrize("op", ON_GPU)
every_case = pytest.mark.parametrize("case", CASES)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    emulation.emulated(monkeypatch)


def run(op: str, arguments: tuple):
    options = {"offsets_host": arguments[OPS[op].offsets_at].copy()} if OPS[op].ragged else {}
    return OPS[op].run(*arguments, **options)


@every_op
@every_case
@every_dtype
def test_agrees_with_the_oracle(op, case, dtype, monkeypatch):
    """Within twice the bounds of the CPU kernels; the same bits with threads in falling order, inputs untouched."""
    arguments = arguments_of(op, case, dtype)
    before = [a.copy() for a in arguments]
    result = run(op, arguments)
    assert_agrees(op, dtype, arguments, result, times=2.0)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(arguments, before)), "an input was changed"
    monkeypatch.setattr(emulation.Settings, "falling", True)
    assert same_bits(result, run(op, arguments)), "the result depends on the order of threads"


@every_op
def test_strided_input(op):
    arguments = arguments_of(op, "mixed", "float32")
    at = OPS[op].offsets_at if OPS[op].ragged else None
    strided = tuple(np.repeat(a, 2, axis=-1)[..., ::2] if i != at else a for i, a in enumerate(arguments))
    assert same_bits(run(op, arguments), run(op, strided))


@pytest.mark.parametrize("op", [op for op in ON_GPU if OPS[op].ragged])
@pytest.mark.parametrize("case", ["mixed", "offsets above zero", "across pi"])
def test_jets_do_not_see_each_other(op, case):
    arguments = list(arguments_of(op, case, "float32"))
    at = OPS[op].offsets_at
    offsets = arguments[at]
    whole = outputs_of(run(op, tuple(arguments)))
    for j in range(len(offsets) - 1):
        arguments[at] = offsets[j : j + 2]
        for part, all_parts in zip(outputs_of(run(op, tuple(arguments))), whole):
            alone, among = OPS[op].of_jet(part, offsets[j : j + 2], 0), OPS[op].of_jet(all_parts, offsets, j)
            assert alone.tobytes() == among.tobytes(), f"jet {j} alone differs"


@pytest.mark.parametrize("op", [op for op in ON_GPU if OPS[op].ragged])
def test_offsets_in_numpy_are_needed(op):
    arguments = arguments_of(op, "mixed", "float32")
    with pytest.raises(ValueError, match=f"{op}: offsets_host must be given for arrays on a GPU, got None; pass Jets"):
        OPS[op].run(*arguments)
    offsets = arguments[OPS[op].offsets_at]
    with pytest.raises(TypeError, match=f"{op}: offsets_host must be int64, got int32"):
        OPS[op].run(*arguments, offsets_host=offsets.astype(np.int32))
    with pytest.raises(TypeError, match=f"{op}: offsets_host must be a NumPy array, got list"):
        OPS[op].run(*arguments, offsets_host=offsets.tolist())
    with pytest.raises(ValueError, match=f"{op}: offsets_host must have the shape of offsets"):
        OPS[op].run(*arguments, offsets_host=offsets[:-1])
    with pytest.raises(ValueError, match=f"{op}: offsets must not fall"):
        OPS[op].run(*arguments, offsets_host=np.concatenate([offsets[:2], offsets[:1], offsets[3:]]))


def massive(case: str, dtype: str) -> tuple:
    """A case with masses of at least 5 GeV: that of a massless particle is rounding, and so is its derivative."""
    p4, offsets = CASES[case]()
    p4[3] = np.hypot(p4[3], 5.0)
    return np.ascontiguousarray(p4, dtype), offsets


def gradient_arguments(op: str, case: str, dtype: str) -> list[tuple]:
    """Of each call that the op's case makes: its gradient, arguments as the table has them, offsets, what it saved."""
    calls = []

    def call(name, *arguments, threads=None, offsets_host=None):
        if "saved" in TABLE[op]:
            arguments = (*arguments, [True] * len(TABLE[op]["gradients"]))
        found = _dispatch.execute(name, "numba", arguments, None, 1, np.empty)
        outs = found if isinstance(found, tuple) else (found,)
        out = np.asarray(outs[0])
        gradient = np.random.default_rng(5).normal(size=out.shape).astype(out.dtype)
        calls.append((gradient, arguments, offsets_host, outs[1:]))
        return found[0] if "saved" in TABLE[op] else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dispatch, "call", call)
        run(op, OPS[op].arguments(*massive(case, dtype)))
    return calls


@pytest.mark.parametrize("op", WITH_GRADIENT)
@every_dtype
@pytest.mark.parametrize("case", ["mixed", "no jets", "empty jets", "offsets above zero", "duplicates", "massive"])
def test_gradient_agrees_with_the_cpu(op, dtype, case):
    """The CPU's gradients are checked against finite differences and oracles in kernels/test_gradients.py."""
    for gradient, arguments, offsets_host, saved in gradient_arguments(op, case, dtype):
        expected = _dispatch.execute_backward(op, "numba", gradient, (*arguments, *saved), None, 1, np.empty)
        if saved:
            saved = _dispatch.execute(op, "cuda", arguments, offsets_host, 1, emulation.poisoned)[1:]
        arguments = (*arguments, *saved)
        found = _dispatch.execute_backward(op, "cuda", gradient, arguments, offsets_host, 1, emulation.poisoned)
        # sums in float64 in both, in another order: rounding of the inputs' size, and once more to the dtype
        tolerance = 1e-10 if dtype == "float64" else 1e-6
        for a, b in zip(outputs_of(found), outputs_of(expected), strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            size = np.abs(b[np.isfinite(b)]).max(initial=0.0)
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * size)


@every_dtype
@pytest.mark.parametrize("channels", [1, 3, 33])
def test_gradient_of_a_maximum_goes_to_the_first(dtype, channels):
    """Ties, NaN and columns of -inf: to the bit what the CPU gives, whichever lane saw them."""
    values = np.random.default_rng(6).integers(0, 3, (150, channels)).astype(dtype)
    values[::7, 0] = np.nan
    values[100:, -1] = -np.inf
    offsets = np.array([2, 3, 3, 6, 100, 140])
    gradient = np.arange(1, 5 * channels + 1, dtype=dtype).reshape(5, channels)
    arguments = (values, offsets, "max")
    expected = _dispatch.execute_backward("segment", "numba", gradient, arguments, None, 1, np.empty)
    found = _dispatch.execute_backward("segment", "cuda", gradient, arguments, offsets, 1, emulation.poisoned)
    assert same_bits(found, expected)


def _many_jets(jets: int, monkeypatch) -> None:
    @contextlib.contextmanager
    def on_gpu():
        with pytest.MonkeyPatch.context() as patch:
            emulation.emulated(patch)
            yield

    monkeypatch.undo()
    p = problems.problem("gpu" if jets > 10_000 else "reference").first(jets)
    assert_gpu_is_cpu(*p, lambda array: array, lambda result: result, on_gpu)


@pytest.mark.slow
def test_many_jets(monkeypatch):
    _many_jets(500, monkeypatch)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_jets(monkeypatch):
    _many_jets(100_000, monkeypatch)


@pytest.mark.slow
def test_sanitized():
    """Everything above, with every read and write of the kernels checked."""
    command = [sys.executable, "-c", SANITIZED.format(path=str(Path(__file__)))]
    extra = emulation.sanitizer_environment()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(**extra), cwd=Path(__file__).parent.parent
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert "passed" in done.stdout and "failed" not in done.stdout


SANITIZED = """
import sys
sys.path.insert(0, "tests")
import emulation, pytest
emulation.Settings.sanitize = True
select = ["-m", "not slow and not soak", "-k", "not float64 or gradient"]
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *select, {path!r}]))
"""
