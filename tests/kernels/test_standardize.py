"""Standardise, clip, pad: by hand, the lengths of rows, wrapping, and that the loop is packed."""

from __future__ import annotations

import platform
import re

import numpy as np
import pytest
import torch

from children import python
from fasttag_kernels.standardize import numba_cpu, reference, standardize

VALUES = np.array([[0.0, 1.0, np.nan, 3.0, np.inf, -np.inf, 9.0], [5.0, 4.0, 3.0, 2.0, 1.0, 0.0, -0.0]])
OFFSETS = np.array([1, 4, 4, 7])
ALL = {
    "center": np.array([1.0, 0.0]),
    "scale": np.array([2.0, -1.0]),
    "low": np.array([-1.0, -2.0]),
    "high": np.array([3.0, -1.0]),
    "pad_value": np.array([np.nan, 8.0]),
}


def test_by_hand():
    found = standardize(VALUES, OFFSETS, 4, **ALL)
    nan = np.nan
    np.testing.assert_array_equal(found[:, 0], [[0, 0, 3, nan], [nan] * 4, [3, -1, 3, nan]])
    np.testing.assert_array_equal(found[:, 1], [[-2, -2, -2, 8], [8] * 4, [-1, -1, -1, 8]])


def test_defaults_only_pad_and_clear_nan():
    found = standardize(VALUES, OFFSETS, 4)
    np.testing.assert_array_equal(found[:, 0], [[1, 0, 3, 0], [0] * 4, [np.inf, -np.inf, 9, 0]])
    assert np.signbit(found[2, 1]).tolist() == [False, False, True, False], "-0.0 stays"


def test_wrapping_repeats_and_fills_jets_without_constituents():
    found = standardize(VALUES, OFFSETS, 8, wrap=True, pad_value=np.array([np.nan, 8.0]))
    np.testing.assert_array_equal(found[0, 1], [4, 3, 2, 4, 3, 2, 4, 3])
    np.testing.assert_array_equal(found[1], [[np.nan] * 8, [8] * 8])
    np.testing.assert_array_equal(found[2, 0], ([np.inf, -np.inf, 9] * 3)[:8])


def test_low_wins_over_high():
    low, high = np.full(1, 2.0), np.full(1, -2.0)
    assert standardize(np.array([[-9.0, 0.0, 9.0]]), np.array([0, 3]), 3, low=low, high=high).tolist() == [[[2, 2, -2]]]


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 33, 64])
def test_every_row_length_to_the_bit(length, wrap):
    """Rows of 0 to 70: vectors, overlapping vectors, single values, cut rows. The reference in float32 is exact."""
    counts = np.arange(71)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    rng = np.random.default_rng(5)
    values = rng.integers(-8, 9, (3, offsets[-1])).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    settings = np.array([[1, 0, -2], [0.5, 2, -1], [-3, -9, 2], [2, 9, -2], [0.25, -1, np.nan]], np.float32)
    names = ("center", "scale", "low", "high", "pad_value")
    found = standardize(values, offsets, length, wrap=wrap, **dict(zip(names, settings)))
    expected = reference.standardize(values, offsets, *settings, length, wrap)
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    flat = values.reshape(-1)
    out = np.full((71, 3, length), -99, np.float32)
    starts = np.arange(3) * offsets[-1]
    numba_cpu.fill(flat, starts, offsets, settings, wrap, out, threads=1)
    if wrap:
        expected[0] = -99  # without constituents: left alone
    np.testing.assert_array_equal(out, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("values", "length", "options", "error", "message"),
    [
        (VALUES[0], 3, {}, ValueError, "values must have shape (C, N), got (7,); use values[None] for one channel"),
        (VALUES, -1, {}, ValueError, "length must be 0 or more, got -1"),
        (VALUES, 3.5, {}, TypeError, "length must be an integer, got 3.5"),
        (VALUES, 3, {"low": np.ones(3)}, ValueError, "low must have shape (2,), got (3,); give one number per channel"),
        (VALUES, 3, {"scale": np.ones(2, np.float32)}, TypeError, "all floats must share one dtype, got values is"),
        (VALUES, 3, {"center": np.ones(2, int)}, TypeError, "center must be float32 or float64, got int64"),
    ],
)
def test_refuses(values, length, options, error, message):
    for move in (np.asarray, torch.from_numpy):
        with pytest.raises(error, match=f"^standardize: {re.escape(message)}"):
            standardize(move(values), move(OFFSETS), length, **{name: move(array) for name, array in options.items()})


def test_scalars_are_refused_by_name():
    with pytest.raises(TypeError, match=r"^standardize: center must be a NumPy, .* got float"):
        standardize(VALUES, OFFSETS, 3, center=1.0)


ASSEMBLY = """
import numpy as np
from numba import typeof, types
from fasttag_kernels._numba import inputs
from fasttag_kernels.standardize.numba_cpu import _standardize
one, index = np.ones(1, np.float32), np.ones(1, np.int64)
arrays = inputs(one[None], index, index, one, one, one, one, one)
_standardize.compile((types.int64, types.int64, *map(typeof, arrays), types.boolean, typeof(one[None])))
print(*_standardize.inspect_asm().values())
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks at x86-64 instructions")
def test_is_packed(tmp_path):
    """For a CPU with AVX2: two vectors of eight."""
    assembly = python(ASSEMBLY, NUMBA_CPU_NAME="znver3", NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=tmp_path)
    packed = re.findall(r"^\s+(v\w+ps)\s.*%ymm", assembly, re.MULTILINE)
    assert packed.count("vsubps") >= 2 and packed.count("vmulps") >= 2
