"""Functions of other packages with their names, signatures, array orders and numbers, on fasttag's kernels.

One module per package, imported on first use: `disco`, `energyflow`. The first needs torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["disco", "energyflow"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fasttag.compat' has no attribute {name!r}")
    return importlib.import_module(f"fasttag.compat.{name}")
