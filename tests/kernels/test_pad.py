"""Ragged to padded."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fasttag_kernels.pad import pad

VALUES = np.arange(12.0).reshape(2, 6)
OFFSETS = np.array([1, 3, 3, 6])


def test_by_hand():
    padded, valid = pad(VALUES, OFFSETS, 4)
    assert padded[:, :, 0].tolist() == [[1, 2, 0, 0], [0, 0, 0, 0], [3, 4, 5, 0]]
    assert padded[:, :, 1].tolist() == [[7, 8, 0, 0], [0, 0, 0, 0], [9, 10, 11, 0]]
    assert valid.tolist() == [[True, True, False, False], [False] * 4, [True, True, True, False]]


@pytest.mark.parametrize("length", [0, 1, 2, 3, np.int64(2)])
def test_truncation_keeps_the_first(length):
    padded, valid = pad(VALUES, OFFSETS, length, truncate=True)
    whole, all_valid = pad(VALUES, OFFSETS, 3)
    assert (padded == whole[:, :length]).all() and (valid == all_valid[:, :length]).all()
    assert padded.shape == (3, length, 2)


def test_no_features():
    padded, valid = pad(VALUES[:0], OFFSETS, 3)
    assert padded.shape == (3, 3, 0) and valid.sum() == 5


@pytest.mark.parametrize(
    ("values", "length", "error", "message"),
    [
        (
            VALUES,
            2,
            ValueError,
            "length must be at least 3, the longest jet (jet 2), got 2; raise it or pass truncate=",
        ),
        (VALUES, -1, ValueError, "length must be 0 or more, got -1"),
        (VALUES, 3.5, TypeError, "length must be an integer, got 3.5"),
        (VALUES, True, TypeError, "length must be an integer, got True"),
        (VALUES, None, TypeError, "length must be an integer, got None"),
        (VALUES[0], 3, ValueError, "values must have shape (F, N), got (6,); use values[None] for one row"),
        (VALUES[None], 3, ValueError, "values must have shape (F, N), got (1, 2, 6)"),
    ],
)
def test_refuses(values, length, error, message):
    for move in (np.asarray, torch.from_numpy):
        with pytest.raises(error, match=f"^pad: {re.escape(message)}"):
            pad(move(values), move(OFFSETS), length)
