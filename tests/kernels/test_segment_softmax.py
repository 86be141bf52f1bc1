"""Softmax over jets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fasttag_kernels.segment_softmax import segment_softmax
from tolerances import EPS32

every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
INF, NAN = np.inf, np.nan


def test_by_hand():
    """Rows 0 and 6 belong to no jet; jet 1 has nobody."""
    values = np.log([7.0, 1, 3, 2, 2, 4, 7])
    offsets = np.array([1, 3, 3, 6])
    expected = [0, 0.25, 0.75, 0.25, 0.25, 0.5, 0]
    assert segment_softmax(values, offsets).tolist() == pytest.approx(expected, rel=1e-15)
    both = segment_softmax(np.stack([values, 0 * values], 1), offsets)
    assert both.tolist() == [
        [x, y] for x, y in zip(segment_softmax(values, offsets), [0, *[1 / 2] * 2, *[1 / 3] * 3, 0])
    ]


@every_dtype
@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([-INF, 0, -INF, 0], [0, 0.5, 0, 0.5]),
        ([-INF, -INF], [0, 0]),
        ([-INF], [0]),
        ([0, INF, -INF], [NAN] * 3),
        ([NAN, 0, 1], [NAN] * 3),
        ([0, 1, NAN], [NAN] * 3),
        ([-INF, NAN], [NAN] * 2),
        ([0, -1000, -1e30], [1, 0, 0]),
        ([3e38, 3e38], [0.5, 0.5]),
        ([-3e38, 3e38], [0, 1]),
    ],
)
def test_values_that_are_not_finite_or_far_apart(column, expected, dtype):
    """As torch has it, but for a column of nothing but -inf; the columns and jets beside it do not see it."""
    values = np.zeros((len(column) + 4, 2), dtype)
    values[2:-2, 1] = column
    found = segment_softmax(values, np.array([0, 2, 2 + len(column), len(values)]))
    np.testing.assert_array_equal(found[2:-2, 1], np.array(expected, dtype))
    assert found[[0, 1, -1, -2]].tolist() == [[0.5, 0.5]] * 4
    assert found[2:-2, 0].tolist() == [np.dtype(dtype).type(1 / len(column))] * len(column)
    if max(column) > -INF:
        of_torch = torch.softmax(torch.from_numpy(values[2:-2, 1]), 0).numpy()
        np.testing.assert_array_equal(found[2:-2, 1], of_torch)


@pytest.mark.parametrize(("dtype", "lowest"), [("float32", -87.3), ("float64", -708.0)])
def test_weights_end_where_the_exponential_does(dtype, lowest):
    values = np.array([0, lowest - 0.03, 0, lowest + 0.03], dtype)
    assert segment_softmax(values, np.array([0, 2])).tolist()[1] == 0
    found = segment_softmax(values, np.array([2, 4]))[3]
    assert found == pytest.approx(np.exp(np.float64(values[3])), rel=1e-5)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(0, 2**32), st.floats(-50, 50))
def test_adds_up_to_one_and_does_not_see_a_shift(counts, seed, shift):
    rng = np.random.default_rng(seed)
    values, offsets = rng.normal(size=(sum(counts), 3)), np.concatenate([[0], np.cumsum(counts)])
    found = segment_softmax(values, offsets)
    filled = [a for a, n in zip(offsets, counts) if n]
    np.testing.assert_allclose(np.add.reduceat(found, filled) if filled else 1, 1, rtol=1e-14)
    np.testing.assert_allclose(segment_softmax(values + shift, offsets), found, rtol=1e-12)


def test_sums_are_in_float64():
    n = 3_000_000
    found = segment_softmax(np.zeros(n, np.float32), np.array([0, n]))
    assert np.abs(found * np.float64(n) - 1).max() <= EPS32 / 2


@pytest.mark.parametrize("shape", [(6, 0), (0, 3), (0, 0), (0,)])
def test_empty(shape):
    found = segment_softmax(np.ones(shape, np.float32), np.array([0, 0, shape[0]]))
    assert found.shape == shape and found.dtype == np.float32


@pytest.mark.parametrize("shape", [(), (2, 2, 2)])
def test_refuses(shape):
    with pytest.raises(ValueError, match=r"^segment_softmax: values must have shape \(N, C\) or \(N,\), got"):
        segment_softmax(np.ones(shape), np.array([0, 1]))
