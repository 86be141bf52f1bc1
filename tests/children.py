"""Python in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

PEERS = Path(__file__).resolve().parent.parent / ".venv-peers" / "bin" / "python"


def environment(**extra: Any) -> dict[str, str]:
    """This process's environment without the compiler's variables, and with `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    return kept | {name: str(value) for name, value in extra.items()}


def python(code: str, timeout: float = 120, **extra: Any) -> str:
    """What `code` prints, run with `extra` environment variables; fails with its stderr where it fails."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment(**extra), check=False
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
    return done.stdout.strip()


def peer(code: str, folder: Path, **arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays that `code` leaves in a list `result`, run where other people's packages are, on `arrays` by name."""
    np.savez(folder / "given.npz", **arrays)
    lines = [
        "import numpy as np",
        f"globals().update(np.load({str(folder / 'given.npz')!r}))",
        code,
        f"np.savez({str(folder / 'result.npz')!r}, *result)",
    ]
    done = subprocess.run(
        [PEERS, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=500, env=environment(), check=False
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
    with np.load(folder / "result.npz") as found:
        return list(found.values())


def both(script: str, original: str, ours: str, folder: Path, **arrays: np.ndarray) -> tuple[list, list]:
    """What one script leaves in `result` with its import line as written, and with `ours` in place of `original`."""
    assert f"from {original} import" in script
    namespace: dict[str, Any] = {"np": np, **arrays}
    exec(script.replace(f"from {original} import", f"from {ours} import"), namespace)
    return peer(script, folder, **arrays), namespace["result"]
