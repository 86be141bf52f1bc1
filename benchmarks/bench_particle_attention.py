"""Attention among the constituents of each jet with a bias per pair: 8 heads of 16 channels."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fasttag_kernels.particle_attention import numba_cpu, particle_attention, reference
from problems import Problem
from timing import check, local, torch_threads

HEADS, CHANNELS, ALONE, BATCH = 8, 16, 48, 64  # ALONE: constituents of the one jet
TARGET = {"us": 25.0, "ceiling": "sgemm_1"}


def arguments(offsets):
    """qkv, offsets, bias and a gradient, as tensors."""
    rng = np.random.default_rng(12)
    n, pairs = int(offsets[-1]), int((np.diff(offsets) ** 2).sum())
    shapes = (n, 3, HEADS, CHANNELS), (HEADS, pairs), (n, HEADS, CHANNELS)
    qkv, bias, gradient = (torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for shape in shapes)
    return qkv, torch.from_numpy(offsets), bias, gradient


def dense(offsets, qkv, bias, gradient):
    """The same padded to the longest jet, as torch takes it: q, k, v, mask with -inf for keys not there, gradient."""
    counts = np.diff(offsets)
    jets, longest = len(counts), int(counts.max())
    valid = torch.arange(longest) < torch.from_numpy(counts)[:, None]
    rows, by_out = torch.zeros(jets, longest, 3, HEADS, CHANNELS), torch.zeros(jets, longest, HEADS, CHANNELS)
    rows[valid], by_out[valid] = qkv, gradient
    mask = torch.zeros(jets, HEADS, longest, longest).masked_fill(~valid[:, None, None], -torch.inf)
    for j, block in enumerate(bias.split((counts**2).tolist(), 1)):
        mask[j, :, : counts[j], : counts[j]] = block.reshape(HEADS, counts[j], counts[j])
    return rows.permute(2, 0, 3, 1, 4).contiguous(), mask, by_out.transpose(1, 2).contiguous(), valid


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("jets", [1, BATCH])
def test_attention(compare, problem, jets, backward):
    if jets == 1:
        p = Problem(np.zeros((4, ALONE), np.float32), np.array([0, ALONE]))
    else:
        p = problem("reference").first(jets)
    qkv, offsets, bias, gradient = arguments(p.offsets)
    (q, k, v), mask, by_out, valid = dense(p.offsets, qkv, bias, gradient)
    given, theirs = (qkv, bias), (q, k, v, mask)
    for x in (*given, *theirs):
        x.requires_grad_(backward)

    def ours():
        out = particle_attention(qkv, offsets, bias=bias)
        return torch.autograd.grad(out, given, gradient) if backward else out

    def torchs():
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return torch.autograd.grad(out, theirs, by_out) if backward else out

    numbers = [x.detach().numpy() for x in (qkv, offsets, bias)]
    out = particle_attention(*numbers[:2], bias=numbers[2])
    check("particle_attention", out, reference.particle_attention(*numbers), reference.rounding_scale(*numbers))
    if backward:
        expected = reference.particle_attention_backward(gradient.numpy(), *numbers)
        for found, exact in zip(ours(), expected):
            assert np.abs(found.numpy() - exact).max() < 2e-5 * np.abs(exact).max(), "wrong: not timed"
        assert (torchs()[0].transpose(1, 2)[valid] - ours()[0][:, 0]).abs().max() < 1e-4, "not the peer's: not timed"
    else:
        assert (torchs().transpose(1, 2)[valid] - ours()).abs().max() < 1e-5, "not the peer's: not timed"

    pairs = float((np.diff(p.offsets) ** 2).mean())
    with torch_threads(1):
        compare(
            "particle_attention",
            "one jet of 48" if jets == 1 else "reference",
            "value and gradients" if backward else "value",
            p,
            ours,
            {"torch SDPA, dense mask": local(torchs, p)},
            bytes=4 * HEADS * (1 + 2 * backward) * (4 * CHANNELS * p.constituents + pairs),
            flops=HEADS * pairs * (7 if backward else 2) * 2 * CHANNELS,
            target=TARGET if jets == 1 and not backward else {},
        )


def test_given_memory(compare):
    """The kernel without checks and the memory of the result."""
    p = Problem(np.zeros((4, ALONE), np.float32), np.array([0, ALONE]))
    qkv, offsets, bias, _ = (x.numpy() for x in arguments(p.offsets))
    out, lse = np.empty_like(qkv[:, 0]), np.empty((0, HEADS), np.float32)
    run = lambda: numba_cpu.run(qkv, offsets, bias, 0.0, 0, 0, [False] * 2, out, lse, threads=1)
    run()
    expected = reference.particle_attention(qkv, offsets, bias)
    check("particle_attention", out, expected, reference.rounding_scale(qkv, offsets, bias))
    compare(
        "particle_attention",
        "one jet of 48",
        "value, into memory at hand",
        p,
        run,
        {},
        bytes=4 * HEADS * (4 * CHANNELS * ALONE + ALONE**2),
        flops=HEADS * ALONE**2 * 2 * 2 * CHANNELS,
        target=TARGET,
    )


def test_of_arrays(compare):
    """One jet in NumPy's arrays, beside SDPA of tensors."""
    p = Problem(np.zeros((4, ALONE), np.float32), np.array([0, ALONE]))
    tensors = arguments(p.offsets)
    (q, k, v), mask, _, _ = dense(p.offsets, tensors[0], *tensors[2:])
    qkv, offsets, bias, _ = (x.numpy() for x in tensors)
    expected = reference.particle_attention(qkv, offsets, bias)
    run = lambda: particle_attention(qkv, offsets, bias=bias)
    check("particle_attention", run(), expected, reference.rounding_scale(qkv, offsets, bias))
    torchs = lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert (torchs()[0].transpose(0, 1) - torch.from_numpy(run())).abs().max() < 1e-5, "not the peer's: not timed"
    with torch_threads(1):
        compare(
            "particle_attention",
            "one jet of 48",
            "value, of NumPy arrays",
            p,
            run,
            {"torch SDPA, dense mask": local(torchs, p)},
            bytes=4 * HEADS * (4 * CHANNELS * ALONE + ALONE**2),
            flops=HEADS * ALONE**2 * 2 * 2 * CHANNELS,
            target=TARGET,
        )
