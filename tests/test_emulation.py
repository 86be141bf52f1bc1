"""The emulation itself: wrong kernels are found, each by the check that is there for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import emulation
from children import environment
from fasttag_kernels import _cuda

pytestmark = pytest.mark.sanitizer

KERNELS = {
    "reverse": """
KERNEL reverse(int* values, int64 n) {
  __shared__ int held[64];
  held[threadIdx.x] = values[threadIdx.x];
  %s
  values[threadIdx.x] = held[n - 1 - threadIdx.x];
}""",
    "past_the_end": "KERNEL past_the_end(int* values, int64 n) { values[threadIdx.x] = values[n - threadIdx.x]; }",
    "past_shared": """
KERNEL past_shared(int* values, int64 n) {
  __shared__ int held[8];
  held[threadIdx.x + n] = 1;
  __syncthreads();
  values[threadIdx.x] = held[threadIdx.x];
}""",
    "half_a_barrier": "KERNEL half_a_barrier(int* values, int64 n) { if (threadIdx.x < n / 2) __syncthreads(); }",
    "half_a_shuffle": """
KERNEL half_a_shuffle(int* values, int64 n) {
  if (threadIdx.x < n / 4) values[threadIdx.x] = __shfl_xor_sync(ALL, values[threadIdx.x], 1);
}""",
    "not_written": """
KERNEL not_written(int* values, int64 n) {
  __shared__ int held[64];
  if (threadIdx.x > 0) held[threadIdx.x] = 7;
  __syncthreads();
  values[threadIdx.x] = held[threadIdx.x];
}""",
    "misaligned": """
KERNEL misaligned(int* values, int64 n) { if (threadIdx.x == 0) *(int4*)(values + 1) = make_int4(1, 2, 3, 4); }""",
}
BARRIER = "__syncthreads();"


def run(text: str, monkeypatch: pytest.MonkeyPatch, *, falling: bool = False, values: np.ndarray | None = None):
    """What the kernel of the text leaves in 0, 1, ..., 63."""
    monkeypatch.setattr(_cuda, "source", lambda name: (Path(_cuda.__file__).parent / "device.cu").read_text() + text)
    monkeypatch.setattr(emulation.Settings, "falling", falling)
    values = np.arange(64, dtype=np.int32) if values is None else values
    kernel = emulation.HostKernel(f"{hash(text)}.cu", emulation.KERNELS.findall(text)[0], _cuda.options())
    _cuda.launch(kernel, 1, len(values), values, len(values))
    return values


def test_threads_see_what_others_wrote_before_a_barrier(monkeypatch):
    text = KERNELS["reverse"] % BARRIER
    for falling in (False, True):
        assert run(text, monkeypatch, falling=falling).tolist() == list(range(63, -1, -1))


def test_a_missing_barrier_shows_in_the_other_order(monkeypatch):
    text = KERNELS["reverse"] % ""
    assert not np.array_equal(run(text, monkeypatch), run(text, monkeypatch, falling=True))


def test_shared_memory_holds_nothing_at_first(monkeypatch):
    assert run(KERNELS["not_written"], monkeypatch).tolist() == [-1] + [7] * 63


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(4, np.int64), 4), "int64 for pi4"),
        ((np.zeros(4, np.int32), np.int32(4)), "int32 for ii8"),
        ((np.zeros(4, np.int32), 4.0), "float64 for ii8"),
        ((np.zeros(4, np.int32),), "2 arguments"),
        ((np.zeros((4, 2), np.int32)[:, 0], 4), "an array for pi4"),
        ((_cuda.NULL, _cuda.NULL), "a null pointer for ii8"),
    ],
)
def test_arguments_of_other_sizes_are_refused(arguments, message, monkeypatch):
    monkeypatch.setattr(
        _cuda, "source", lambda name: (Path(_cuda.__file__).parent / "device.cu").read_text() + KERNELS["past_the_end"]
    )
    kernel = emulation.HostKernel("past_the_end.cu", "past_the_end", _cuda.options())
    with pytest.raises(AssertionError, match=message):
        _cuda.launch(kernel, 1, 4, *arguments)


CHILD = """
import sys
sys.path.insert(0, "tests")
import pytest, emulation, test_emulation
emulation.Settings.sanitize = {sanitize}
with pytest.MonkeyPatch.context() as patch:
    test_emulation.run(test_emulation.KERNELS[{name!r}], patch)
"""


@pytest.mark.parametrize(
    ("name", "sanitize", "message"),
    [
        ("half_a_barrier", False, "threads wait for others that never come"),
        ("half_a_shuffle", False, "threads wait for others that never come"),
        ("past_the_end", True, "heap-buffer-overflow"),
        ("past_shared", True, "out of bounds"),
        ("misaligned", True, "misaligned address"),
    ],
)
def test_what_ends_the_process(name, sanitize, message):
    extra = emulation.sanitizer_environment() if sanitize else {}
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(name=name, sanitize=sanitize)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(**extra),
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode != 0 and message in done.stderr, done.stderr[-2000:]
