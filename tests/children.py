"""Python in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any


def environment(**extra: Any) -> dict[str, str]:
    """This process's environment without the compiler's variables, and with `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    return kept | {name: str(value) for name, value in extra.items()}


def python(code: str, **extra: Any) -> str:
    """What `code` prints, run with `extra` environment variables; fails with its stderr where it fails."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(**extra), check=False)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
    return done.stdout.strip()
