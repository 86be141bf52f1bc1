"""Functions of other packages with their names, signatures, array orders and numbers, on fasttag's kernels."""

from . import energyflow

__all__ = ["energyflow"]
