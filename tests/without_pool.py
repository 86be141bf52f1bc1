"""pytest with memory from CUDA instead of CuPy's and torch's pools, so that a sanitizer sees where arrays end."""

import os
import sys

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

import cupy
import pytest

cupy.cuda.set_allocator(None)
sys.exit(pytest.main(sys.argv[1:]))
