"""The progress bar of the commands that stream a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar() -> Iterator[Callable[[int], object]]:
    """Give a function that counts jets on: in a bar on a terminal, silently elsewhere and without tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda jets: None
        return
    with tqdm(unit="jet", unit_scale=True, leave=False, disable=None) as shown:
        yield shown.update
