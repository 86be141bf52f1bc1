"""Functions of other packages with their names, signatures, array orders and numbers, on fasttag's kernels.

One module per package, imported on first use: `disco`, `energyflow`, `torch_cluster`, `weaver`. All but `energyflow`
need torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["disco", "energyflow", "torch_cluster", "weaver"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fasttag.compat' has no attribute {name!r}")
    return importlib.import_module(f"fasttag.compat.{name}")
