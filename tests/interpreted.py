"""Run by tests/test_triton.py in a process of its own: Triton's interpreter on tiny ragged jets, against float64."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is decorated

import itertools
import sys
import warnings

import numpy as np
import torch
from triton.runtime import interpreter

from fasttag_kernels import _triton
from fasttag_kernels.particle_attention import numba_cpu, reference, triton_gpu

patch_tensor = interpreter._patch_lang_tensor


def patched(tensor, scope):
    """NumPy 2.4 refuses int() of an array of one element (triton-lang/triton#9171)."""
    patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = patched
_triton.sent = lambda array, device: torch.from_numpy(array)
warnings.filterwarnings("ignore", category=RuntimeWarning)  # 1 / 0 of rows without pairs, on the way to a where


def problem(counts, dtype, heads=1, head_dim=16, biased=True, before=2, after=3):
    """qkv, offsets, bias and a gradient."""
    rng = np.random.default_rng(1)
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]) + before
    qkv = rng.normal(size=(offsets[-1] + after, 3, heads, head_dim)).astype(dtype)
    bias = rng.normal(0, 2, (heads, int(np.square(counts).sum()))).astype(dtype)
    return qkv, offsets, bias if biased else None, rng.normal(size=qkv[:, 0].shape).astype(dtype)


def interpreted(qkv, offsets, bias, gradient, settings=(0.0, 0, 0), needed=(True, True)):
    """Value and gradients; memory is NaN before."""
    tensors = [None if x is None else torch.from_numpy(x) for x in (qkv, bias, gradient)]
    out, by_qkv = (torch.full(x.shape, torch.nan, dtype=x.dtype) for x in (tensors[2], tensors[0]))
    by_bias = torch.full((0,) if bias is None or not needed[1] else bias.shape, torch.nan, dtype=out.dtype)
    by_qkv = by_qkv if needed[0] else by_qkv[:0, 0, 0, 0]
    given = (tensors[0], None, tensors[1], *settings, list(needed))
    triton_gpu.run(*given, out, out[:0], offsets_host=offsets)
    triton_gpu.backward(tensors[2], *given, out[:0], by_qkv, by_bias, offsets_host=offsets)
    return out.numpy(), by_qkv.numpy(), by_bias.numpy()


def expected(qkv, offsets, bias, gradient, settings=(0.0, 0, 0)):
    out = reference.particle_attention(qkv, offsets, bias, *settings)
    return out, *reference.particle_attention_backward(gradient, qkv, offsets, bias, *settings)


def agrees(dtype, *given, settings=(0.0, 0, 0)):
    found, wanted = interpreted(*given, settings=settings), expected(*given, settings=settings)
    tolerance = 1e-12 if dtype == "float64" else 2e-5  # of sums of up to 70 terms of order one
    for a, b in zip(found, wanted if given[2] is not None else wanted[:2]):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def values():
    for dtype in ("float32", "float64"):
        agrees(dtype, *problem([0, 1, 2, 15, 16, 17, 33, 0], dtype, heads=2))
        agrees(dtype, *problem([64, 65], dtype))
        agrees(dtype, *problem([70, 16], dtype, biased=False))
        agrees(dtype, *problem([3, 70], dtype, head_dim=5), settings=(0.3, (7 << 40) + 5, 3))
        agrees(dtype, *problem([17, 40], dtype, heads=2, head_dim=40), settings=(0.5, 1, (1 << 32) - 1))
        agrees(dtype, *problem([0], dtype))
        agrees(dtype, *problem([], dtype))


def dropout():
    """The same weights as on the CPU: values are unit vectors, scores equal, so the output is Z / n."""
    counts, head_dim = [5, 0, 33, 64], 64
    offsets = np.concatenate([[0], np.cumsum(counts)])
    qkv = np.zeros((offsets[-1], 3, 2, head_dim))
    for a, b in itertools.pairwise(offsets):
        qkv[a:b, 2] = np.eye(head_dim)[: b - a, None]
    for settings in ((0.3, (3 << 32) + 11, 6), (0.9, (1 << 63) - 1, (1 << 32) - 1)):
        found = interpreted(qkv, offsets, None, qkv[:, 0], settings)[0]
        cpu, norm = np.empty_like(found), np.empty((0, 2))
        numba_cpu.run(qkv, offsets, None, *settings, [False, False], cpu, norm, threads=1)
        assert np.array_equal(found > 0, cpu > 0) and (found > 0).sum() > 0


def masked():
    """Rows and columns of -inf, scores of 1e9 and of the lowest number, in jets of one tile and of several."""
    for n in (21, 70):
        qkv, offsets, bias, gradient = problem([n], "float64", before=0, after=0)
        rows = bias.reshape(n, n)
        rows[3], rows[5], rows[6] = -1e9, np.finfo("float64").min, 1e30
        rows[4], rows[:, 20] = -np.inf, -np.inf
        found, wanted = (f(qkv, offsets, bias, gradient) for f in (interpreted, expected))
        assert not found[0][4].any() and not found[1][4, 0].any() and not found[2].reshape(n, n)[:, 20].any()
        for a, b in zip(found, wanted):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)  # 1e9 + q . k is rounded by 1e-7


def not_finite():
    """NaN and inf reach what they reach in the reference."""
    for n in (20, 70):
        for value in (np.nan, np.inf):
            for place in ((7, 0, 0, 3), (7, 1, 0, 3), (7, 2, 0, 3)):
                qkv, offsets, bias, gradient = problem([n, 3], "float64", before=0, after=0)
                qkv[place] = value
                with np.errstate(invalid="ignore"):
                    wanted = reference.particle_attention(qkv, offsets, bias)
                found = interpreted(qkv, offsets, bias, gradient)[0]
                assert np.array_equal(np.isfinite(found), np.isfinite(wanted)), (n, value, place)


def repeated():
    """The same bits twice; a jet alone as among others; one gradient alone as both."""
    given = problem([5, 70, 33], "float32")
    first, second = interpreted(*given), interpreted(*given)
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    qkv, offsets, bias, gradient = given
    alone = interpreted(qkv, offsets[1:3], bias[:, 25 : 25 + 4900].copy(), gradient)
    rows = slice(*offsets[1:3])
    assert np.array_equal(alone[0][rows], first[0][rows]) and np.array_equal(alone[1][rows], first[1][rows])
    assert np.array_equal(interpreted(*given, needed=(True, False))[1], first[1])
    assert np.array_equal(interpreted(*given, needed=(False, True))[2], first[2])


globals()[sys.argv[1]]()
