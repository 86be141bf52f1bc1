"""Sums, means and maxima over jets."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fasttag_kernels.segment import REDUCTIONS, segment

VALUES = np.arange(12.0).reshape(6, 2)


def test_by_hand():
    """Empty jets give zero; rows 0, 4 and 5 belong to no jet."""
    offsets = np.array([1, 1, 3, 4, 4])
    assert segment(VALUES, offsets).tolist() == [[0, 0], [6, 8], [6, 7], [0, 0]]
    assert segment(VALUES[:, 1].copy(), offsets).tolist() == [0, 8, 7, 0]
    assert segment(VALUES, offsets, reduce="mean").tolist() == [[0, 0], [3, 4], [6, 7], [0, 0]]
    assert segment(VALUES - 9, offsets, reduce="max").tolist() == [[0, 0], [-5, -4], [-3, -2], [0, 0]]


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize(("rows", "channels", "jets"), [(6, 0, 2), (0, 3, 2), (6, 2, 0), (0, 0, 0)])
def test_empty(rows, channels, jets, reduce):
    offsets = np.linspace(0, rows, jets + 1).astype(np.int64)
    found = segment(np.ones((rows, channels), np.float32), offsets, reduce=reduce)
    assert found.shape == (jets, channels) and found.dtype == np.float32
    assert not (found != (rows / max(jets, 1) if reduce == "sum" else min(rows, 1))).any()


def test_float32_is_summed_in_float64():
    values = np.array([1e8, 1.0, -1e8, 0.5], np.float32)
    assert segment(values, np.array([0, 4])).tolist() == [1.5]
    tenth = np.full(100_000, 0.1, np.float32)
    assert segment(tenth, np.array([0, 100_000]))[0] == np.float32(100_000 * float(np.float32(0.1)))
    assert segment(tenth, np.array([0, 100_000]), reduce="mean")[0] == np.float32(0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_propagates_in_its_own_jet_and_channel(value):
    values = VALUES.copy()
    values[2, 1] = value
    found = segment(values, np.array([0, 2, 4, 6]))
    assert repr(float(found[1, 1])) == repr(value)
    assert np.delete(found, 3).tolist() == [2, 4, 10, 18, 20]
    assert np.isnan(segment(np.array([np.inf, -np.inf]), np.array([0, 2])))
    found = segment(values, np.array([0, 2, 4, 6]), reduce="max")
    assert repr(float(found[1, 1])) == repr(7.0 if value == -np.inf else value)
    assert np.delete(found, 3).tolist() == [2, 3, 6, 10, 11]


@pytest.mark.parametrize("at", range(3))
def test_maximum_of_nan_wherever_it_stands(at):
    values = np.array([-np.inf, 5.0, -np.inf])
    values[at] = np.nan
    assert np.isnan(segment(values, np.array([0, 3]), reduce="max"))
    assert segment(np.full(2, -np.inf), np.array([0, 2]), reduce="max") == -np.inf


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(0, 2**32))
def test_is_the_same_in_any_order_and_adds_up(counts, seed):
    rng = np.random.default_rng(seed)
    values, offsets = rng.normal(size=(sum(counts), 3)), np.concatenate([[0], np.cumsum(counts)])
    shuffled = np.concatenate([rng.permutation(values[a:b]) for a, b in pairwise(offsets)])
    found = segment(values, offsets)
    np.testing.assert_allclose(segment(shuffled, offsets), found, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(segment(values, offsets[[0, -1]])[0], found.sum(0), rtol=1e-12, atol=1e-13)
    largest = segment(values, offsets, reduce="max")
    assert np.array_equal(segment(shuffled, offsets, reduce="max"), largest)


@pytest.mark.parametrize("shape", [(), (2, 2, 2)])
def test_refuses(shape):
    with pytest.raises(ValueError, match=r"^segment: values must have shape \(N, C\) or \(N,\), got"):
        segment(np.ones(shape), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"^segment: reduce must be one of sum, mean, max, got 'median'; choose one"):
        segment(VALUES, np.array([0, 1]), reduce="median")
