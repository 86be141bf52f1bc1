"""What all readers share: one place where parsing errors become FasttagErrors, and the check of the values."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator

import numpy as np

from ..errors import CorruptFileError, FasttagError
from ..jets import Jets


@contextlib.contextmanager
def parsing(path: str | os.PathLike) -> Iterator[None]:
    """Whatever a library raises over damaged bytes becomes a CorruptFileError that names the file."""
    try:
        yield
    except (FasttagError, ImportError, FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except MemoryError as error:
        raise CorruptFileError(f"{path}: the sizes it declares do not fit into memory") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        raise CorruptFileError(f"{path}: {type(error).__name__}: {error}") from error


def checked(jets: Jets, where: str, row: int) -> Jets:
    """The jets, if all four-vectors are finite with E >= 0. `row` is the number of the first jet in the file."""
    try:
        return jets.validate(row=row)
    except ValueError as error:
        raise CorruptFileError(f"{where}: {error}") from None


def zero_or_one(values: np.ndarray, where: str, row: int) -> np.ndarray:
    """Class labels as int64."""
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if wrong.size:
        raise CorruptFileError(f"{where} must be 0 or 1, got {values[wrong[0]]} at row {row + wrong[0]}")
    return values.astype(np.int64)


def spans(start: int, stop: int | None, total: int, step: int) -> Iterator[tuple[int, int]]:
    """start:stop of `total` cut at multiples of step; one empty span where there is nothing."""
    stop = total if stop is None else min(stop, total)
    start = min(start, stop)
    edges = [start, *range((start // step + 1) * step, stop, step), stop]
    return itertools.pairwise(edges)
