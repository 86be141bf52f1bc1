"""Compiled kernels for LHC jets: arrays in, arrays out. Knows nothing of Jets, modules or files.

Every operation is a folder whose public function has its name: `from fasttag_kernels.segment import segment`.
Importing this package loads NumPy only.
"""

from ._table import TABLE
from ._threads import get_threads, set_threads

__all__ = ["TABLE", "get_threads", "set_threads"]
