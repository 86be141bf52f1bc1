"""The Triton backends in Triton's interpreter: their arithmetic. What a GPU would take is in test_triton_compiles."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from children import environment, python
from fasttag_kernels import _dispatch
from fasttag_kernels.particle_attention import particle_attention

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="no Triton: the extra test has it on Linux"
)


@needs_triton
@pytest.mark.interpreter
@pytest.mark.parametrize("name", ["values", "dropout", "masked", "not_finite", "repeated"])
def test_interpreted(name):
    command = [sys.executable, str(HERE / "interpreted.py"), name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


def test_triton_is_for_tensors():
    assert _dispatch.backend_for("particle_attention", "torch", "cuda:0") == "triton"
    assert _dispatch.backend_for("particle_attention", "torch", "cpu") == "numba"
    with pytest.raises(
        NotImplementedError,
        match=r"particle_attention: no kernel for cupy on cuda:0; there is numba on cpu, triton on cuda \(torch\)",
    ):
        _dispatch.backend_for("particle_attention", "cupy", "cuda:0")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_for_tensors_on_a_gpu(dtype):
    x = torch.zeros(1, 3, 1, 16, dtype=dtype)
    with pytest.raises(
        TypeError, match=r"float32 or float64, got b?float16 \(float16 or bfloat16 for tensors on a GPU"
    ):
        particle_attention(x, torch.tensor([0, 1]))


def test_cpu_does_not_load_triton():
    code = """
import sys, torch
from fasttag_kernels.particle_attention import particle_attention
particle_attention(torch.zeros(1, 3, 1, 16), torch.tensor([0, 1]))
print('triton' in sys.modules, 'fasttag_kernels._triton' in sys.modules)
"""
    assert python(code).endswith("False")


def test_missing_triton_is_named():
    code = """
import sys
sys.modules['triton'] = None
try:
    import fasttag_kernels._triton
except ImportError as error:
    print(error)
"""
    assert "install fasttag-hep with the extra cuda13 or cuda12" in python(code)


@needs_triton
def test_what_a_gpu_cannot_do_is_refused(monkeypatch):
    from fasttag_kernels import _triton
    from fasttag_kernels.particle_attention import triton_gpu

    qkv = torch.zeros(1, 3, 1, 65)
    with pytest.raises(NotImplementedError, match="particle_attention: D must be at most 64 on a GPU, got 65"):
        triton_gpu.run(qkv, None, None, 0.0, 0, 0, [], qkv[:, 0], None, offsets_host=np.array([0, 1]))
    _triton._check.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(NotImplementedError, match=r"the kernels need compute capability 8.0 or more, got 7.5"):
        _triton._check(torch.device("cuda", 0))
    _triton._check.cache_clear()


@needs_triton
def test_jets_by_length(monkeypatch):
    from fasttag_kernels import _triton

    monkeypatch.setattr(_triton, "sent", lambda array, device: torch.from_numpy(array))
    found = _triton.by_length(np.array([2, 5, 5, 22, 24]), (2, 16), torch.device("cpu"))
    assert [jets.tolist() for jets in found] == [[[3, 22, 2, 298]], [[0, 2, 3, 0]], [[2, 5, 17, 9]]]
