"""Helpers for the readers' tests: `io_files` writes files of every format without fasttag."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def data():
    """The folder of committed files."""
    return Path(__file__).parent.parent / "data"
