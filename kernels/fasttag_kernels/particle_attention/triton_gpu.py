"""Triton backend: a program per jet and head, 16 queries at a time against its keys. See README.md."""

import math

import torch
import triton
import triton.language as tl

from .. import _triton

LOG2E = tl.constexpr(1.4426950408889634)
ENDS = (16, 32, 64)  # classes of jets: up to so many constituents, all keys at once; longer ones in tiles
# kernel -> (keys at a time, warps, registers at most where D <= 16, 0: as many as the compiler likes) of each class
HALF = {
    "_forward": ((16, 1, 0), (32, 1, 0), (64, 1, 128), (16, 1, 0)),
    "_backward": ((16, 1, 128), (32, 1, 0), (64, 2, 0)),
    "_backward_rows": ((16, 1, 128),),
    "_backward_keys": ((64, 4, 0),),
}
SINGLE = {
    "_forward": ((16, 4, 0), (32, 8, 0), (64, 16, 0), (64, 8, 0)),
    "_backward": ((16, 4, 0), (32, 8, 0), (64, 16, 0)),
    "_backward_rows": ((64, 16, 0),),
    "_backward_keys": ((64, 8, 128),),
}
TILES = {torch.bfloat16: HALF, torch.float16: HALF, torch.float32: SINGLE, torch.float64: SINGLE}
LARGEST_HEAD = 64
NUMBERS = ["pairs", "seed", "layer"]  # no kernel is compiled for a value of these


def run(qkv, offsets, bias, dropout, seed, layer, needed, out, norm, *, offsets_host):
    tensors, numbers, options = _given(qkv, bias, dropout, seed, layer)
    _clear(out, offsets_host)
    for kind, jets in enumerate(_triton.by_length(offsets_host, ENDS, qkv.device)):
        _launch(_forward, kind, jets, qkv, (*tensors, jets, out, *numbers), options | {"LONG": kind == len(ENDS)})


def backward(gradient, qkv, offsets, bias, dropout, seed, layer, needed, norm, grad_qkv, grad_bias, *, offsets_host):
    (tensors, numbers, options), of_bias = _given(qkv, bias, dropout, seed, layer), needed[1] and bias is not None
    tensors, wanted = (gradient.contiguous(), *tensors), options | {"OF_QKV": needed[0], "OF_BIAS": of_bias}
    if needed[0]:
        _clear(grad_qkv, offsets_host)
    *short, long = _triton.by_length(offsets_host, ENDS, qkv.device)
    for kind, jets in enumerate(short):
        _launch(_backward, kind, jets, qkv, (*tensors, jets, grad_qkv, grad_bias, *numbers), wanted)
    if len(long):
        wide = torch.promote_types(qkv.dtype, torch.float32)
        sums = torch.empty((3, *gradient.shape[:2]), dtype=wide, device=qkv.device)
        numbers = (sums[0].numel(), *numbers)
        _launch(_backward_rows, 0, long, qkv, (*tensors, long, grad_qkv, grad_bias, sums, *numbers), wanted)
        if needed[0]:
            _launch(_backward_keys, 0, long, qkv, (*tensors, long, grad_qkv, sums, *numbers), options)


def _launch(kernel, kind, jets, qkv, arguments, options):
    if len(jets):
        keys, warps, registers = TILES[qkv.dtype][kernel.__name__][kind]
        registers = registers if registers and options["WIDTH"] == 16 else None
        grid = (len(jets) * qkv.shape[2],)
        kernel[grid](*arguments, **options, KEYS=keys, num_warps=warps, maxnreg=registers)


def _clear(rows, offsets):
    """Rows outside of all jets."""
    if offsets[0] > 0:
        rows[: offsets[0]] = 0
    if offsets[-1] < len(rows):
        rows[offsets[-1] :] = 0


def _given(qkv, bias, dropout, seed, layer):
    """Tensors, numbers and what a kernel is compiled for."""
    heads, head_dim = qkv.shape[2:]
    if head_dim > LARGEST_HEAD:
        raise NotImplementedError(
            f"particle_attention: D must be at most {LARGEST_HEAD} on a GPU, got {head_dim}; move the arrays to the CPU"
        )
    options = {"H": heads, "D": head_dim, "WIDTH": max(16, triton.next_power_of_2(head_dim)), "ROWS": 16}
    options |= {"SCALE": 1 / math.sqrt(head_dim), "BIASED": bias is not None, "DROPOUT": dropout}
    numbers = (0 if bias is None else bias.shape[1], seed, layer)
    qkv = qkv.contiguous()
    return (qkv, qkv if bias is None else bias.contiguous()), numbers, options


@triton.jit
def _rows(base, first, n, STEP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, COUNT: tl.constexpr):
    """Rows of one head from `first` on; 0 where there is none. 32 bits within a tile, 64 outside: fewer registers."""
    row, channel = tl.arange(0, COUNT), tl.arange(0, WIDTH)
    inside = (row < n - first)[:, None] & (channel < D)[None, :]
    at = base + first.to(tl.int64) * STEP
    return tl.load(at + row[:, None] * STEP + channel[None, :], mask=inside, other=0.0)


@triton.jit
def _store(base, first, n, x, STEP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, COUNT: tl.constexpr):
    row, channel = tl.arange(0, COUNT), tl.arange(0, WIDTH)
    inside = (row < n - first)[:, None] & (channel < D)[None, :]
    at = base + first.to(tl.int64) * STEP
    tl.store(at + row[:, None] * STEP + channel[None, :], x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _inside(i, j, n, ROWS: tl.constexpr, KEYS: tl.constexpr):
    return (tl.arange(0, ROWS) < n - i)[:, None] & (tl.arange(0, KEYS) < n - j)[None, :]


@triton.jit
def _pairs(base, i, j, n, ROWS: tl.constexpr, KEYS: tl.constexpr):
    """Places of the pairs of a tile."""
    at = base + i.to(tl.int64) * n + j
    return at + tl.arange(0, ROWS)[:, None] * n + tl.arange(0, KEYS)[None, :]


@triton.jit
def _scores(
    q, k, bias, i, j, n, inside, SCALE: tl.constexpr, BIASED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr
):
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * SCALE
    if BIASED:
        return s + tl.load(_pairs(bias, i, j, n, ROWS, KEYS), mask=inside, other=float("-inf")).to(s.dtype)
    return tl.where((tl.arange(0, KEYS) < n - j)[None, :], s, float("-inf"))


@triton.jit
def _exponentials(s, top):
    """exp(s - top); the difference is exact for equal scores, which that of products with log2(e) is not."""
    return tl.exp2((s - tl.where(top == float("-inf"), 0.0, top)[:, None]) * LOG2E)


@triton.jit
def _kept(seed, layer, jet, head, i, j, n, DROPOUT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr):
    """Which weights dropout keeps: four rows of a column share the four words of a counter."""
    group = i // 4 + tl.arange(0, ROWS // 4)
    counter = group[:, None] * n + (j + tl.arange(0, KEYS))[None, :]
    a, b, c, d = tl.philox(seed, layer.to(tl.uint32), jet.to(tl.uint32), head.to(tl.uint32), counter)
    least: tl.constexpr = int(DROPOUT * 4294967296)
    even = tl.join((a >= least).to(tl.int8), (c >= least).to(tl.int8))
    odd = tl.join((b >= least).to(tl.int8), (d >= least).to(tl.int8))
    words = tl.permute(tl.join(even, odd), (0, 2, 3, 1))  # [group, word // 2, word % 2, column]
    return tl.reshape(words, (ROWS, KEYS)) != 0


@triton.jit
def _place(jets, H: tl.constexpr):
    """Of a program: jet, head, first constituent, constituents, pairs before."""
    row = jets + tl.program_id(0) // H * 4
    n = tl.load(row + 2).to(tl.int32)
    return tl.load(row), tl.program_id(0) % H, tl.load(row + 1), n, tl.load(row + 3)


@triton.jit
def _online(
    top, total, acc, q, k, v, bias, i, j, n, seed, layer, jet, head,
    SCALE: tl.constexpr, BIASED: tl.constexpr, DROPOUT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Largest score, sum of exponentials and sum of weighted values, with KEYS more keys."""
    s = _scores(q, k, bias, i, j, n, _inside(i, j, n, ROWS, KEYS), SCALE, BIASED, ROWS, KEYS)
    higher = tl.maximum(top, tl.max(s, 1))
    p = _exponentials(s, higher)
    shrink = tl.exp2((top - tl.where(higher == float("-inf"), 0.0, higher)) * LOG2E)
    total = total * shrink + tl.sum(p, 1)
    if DROPOUT > 0:
        p = tl.where(_kept(seed, layer, jet, head, i, j, n, DROPOUT, ROWS, KEYS), p, 0.0)
    acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return higher, total, acc


@triton.jit(do_not_specialize=NUMBERS)
def _forward(
    qkv, bias, jets, out, pairs: tl.int64, seed: tl.int64, layer: tl.int64,
    H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SCALE: tl.constexpr, BIASED: tl.constexpr,
    DROPOUT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    jet, head, start, n, before = _place(jets, H)
    step: tl.constexpr = 3 * H * D
    wide: tl.constexpr = tl.float64 if qkv.dtype.element_ty == tl.float64 else tl.float32
    qkv += start * step + head * D
    out += start * (H * D) + head * D
    bias += head.to(tl.int64) * pairs + before
    i = n * 0
    j = n * 0
    if not LONG:
        k = _rows(qkv + H * D, j, n, step, D, WIDTH, KEYS)
        v = _rows(qkv + 2 * H * D, j, n, step, D, WIDTH, KEYS)
    while i < n:
        q = _rows(qkv, i, n, step, D, WIDTH, ROWS)
        top = tl.full([ROWS], float("-inf"), wide)
        total = tl.zeros([ROWS], wide)
        acc = tl.zeros([ROWS, WIDTH], wide)
        if LONG:
            j = n * 0
            while j < n:
                k = _rows(qkv + H * D, j, n, step, D, WIDTH, KEYS)
                v = _rows(qkv + 2 * H * D, j, n, step, D, WIDTH, KEYS)
                top, total, acc = _online(
                    top, total, acc, q, k, v, bias, i, j, n, seed, layer, jet, head, SCALE, BIASED, DROPOUT, ROWS, KEYS
                )
                j += KEYS
        else:
            top, total, acc = _online(
                top, total, acc, q, k, v, bias, i, j, n, seed, layer, jet, head, SCALE, BIASED, DROPOUT, ROWS, KEYS
            )
        share = tl.where(total == 0.0, 0.0, (1 / (1 - DROPOUT)) / total)  # 0 for a row without any pair
        _store(out, i, n, acc * share[:, None], H * D, D, WIDTH, ROWS)
        i += ROWS


@triton.jit
def _by_weights(g, v, kept, DROPOUT: tl.constexpr):
    """The gradient in the weights before dropout."""
    by_p = tl.dot(g, tl.trans(v), input_precision="ieee")
    return tl.where(kept, by_p * (1 / (1 - DROPOUT)), 0.0) if DROPOUT > 0 else by_p


@triton.jit(do_not_specialize=NUMBERS)
def _backward(
    gradient, qkv, bias, jets, by_qkv, by_bias, pairs: tl.int64, seed: tl.int64, layer: tl.int64,
    H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SCALE: tl.constexpr, BIASED: tl.constexpr,
    DROPOUT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, OF_QKV: tl.constexpr, OF_BIAS: tl.constexpr,
):  # fmt: skip
    """Jets whose keys are taken all at once."""
    jet, head, start, n, before = _place(jets, H)
    step: tl.constexpr = 3 * H * D
    wide: tl.constexpr = tl.float64 if qkv.dtype.element_ty == tl.float64 else tl.float32
    qkv += start * step + head * D
    by_qkv += start * step + head * D
    gradient += start * (H * D) + head * D
    place = head.to(tl.int64) * pairs + before
    i = n * 0
    j = n * 0
    k = _rows(qkv + H * D, j, n, step, D, WIDTH, KEYS)
    v = _rows(qkv + 2 * H * D, j, n, step, D, WIDTH, KEYS)
    by_k = tl.zeros([KEYS, WIDTH], wide)
    by_v = tl.zeros([KEYS, WIDTH], wide)
    while i < n:
        q = _rows(qkv, i, n, step, D, WIDTH, ROWS)
        g = _rows(gradient, i, n, H * D, D, WIDTH, ROWS)
        inside = _inside(i, j, n, ROWS, KEYS)
        there = (tl.arange(0, ROWS) < n - i)[:, None]
        s = _scores(q, k, bias + place, i, j, n, inside, SCALE, BIASED, ROWS, KEYS)
        p = _exponentials(s, tl.max(s, 1))
        total = tl.sum(p, 1)
        p = tl.where(there, p * tl.where(total == 0.0, 0.0, 1.0 / total)[:, None], 0.0)
        kept = inside
        if DROPOUT > 0:
            kept = _kept(seed, layer, jet, head, i, j, n, DROPOUT, ROWS, KEYS)
        by_p = _by_weights(g, v, kept, DROPOUT)
        by_s = tl.where(there, p * (by_p - tl.sum(p * by_p, 1)[:, None]), 0.0)
        if OF_BIAS:
            to = _pairs(by_bias + place, i, j, n, ROWS, KEYS)
            tl.store(to, by_s.to(by_bias.dtype.element_ty), mask=inside)
        if OF_QKV:
            if DROPOUT > 0:
                p = tl.where(kept, p * (1 / (1 - DROPOUT)), 0.0)
            short = by_s.to(q.dtype)
            by_q = tl.dot(short, k, input_precision="ieee") * SCALE
            _store(by_qkv, i, n, by_q, step, D, WIDTH, ROWS)
            by_k += tl.dot(tl.trans(short), q, input_precision="ieee")
            by_v += tl.dot(tl.trans(p.to(g.dtype)), g, input_precision="ieee")
        i += ROWS
    if OF_QKV:
        _store(by_qkv + H * D, j, n, by_k * SCALE, step, D, WIDTH, KEYS)
        _store(by_qkv + 2 * H * D, j, n, by_v, step, D, WIDTH, KEYS)


@triton.jit(do_not_specialize=["rows", *NUMBERS])
def _backward_rows(
    gradient, qkv, bias, jets, by_qkv, by_bias, sums, rows: tl.int64, pairs: tl.int64, seed: tl.int64, layer: tl.int64,
    H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SCALE: tl.constexpr, BIASED: tl.constexpr,
    DROPOUT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, OF_QKV: tl.constexpr, OF_BIAS: tl.constexpr,
):  # fmt: skip
    """Longer jets: per query the largest score, 1 / sum and sum of P dP, to `sums`; gradients in queries and bias."""
    jet, head, start, n, before = _place(jets, H)
    step: tl.constexpr = 3 * H * D
    wide: tl.constexpr = tl.float64 if qkv.dtype.element_ty == tl.float64 else tl.float32
    qkv += start * step + head * D
    by_qkv += start * step + head * D
    gradient += start * (H * D) + head * D
    sums += start * H + head
    place = head.to(tl.int64) * pairs + before
    i = n * 0
    while i < n:
        q = _rows(qkv, i, n, step, D, WIDTH, ROWS)
        g = _rows(gradient, i, n, H * D, D, WIDTH, ROWS)
        top = tl.full([ROWS], float("-inf"), wide)
        total = tl.zeros([ROWS], wide)
        mean = tl.zeros([ROWS], wide)
        j = n * 0
        while j < n:
            inside = _inside(i, j, n, ROWS, KEYS)
            k = _rows(qkv + H * D, j, n, step, D, WIDTH, KEYS)
            v = _rows(qkv + 2 * H * D, j, n, step, D, WIDTH, KEYS)
            s = _scores(q, k, bias + place, i, j, n, inside, SCALE, BIASED, ROWS, KEYS)
            kept = inside
            if DROPOUT > 0:
                kept = _kept(seed, layer, jet, head, i, j, n, DROPOUT, ROWS, KEYS)
            by_p = _by_weights(g, v, kept, DROPOUT)
            higher = tl.maximum(top, tl.max(s, 1))
            p = _exponentials(s, higher)
            shrink = tl.exp2((top - tl.where(higher == float("-inf"), 0.0, higher)) * LOG2E)
            total = total * shrink + tl.sum(p, 1)
            mean = mean * shrink + tl.sum(p * by_p, 1)
            top = higher
            j += KEYS
        share = tl.where(total == 0.0, 0.0, 1.0 / total)
        mean *= share
        row = tl.arange(0, ROWS)
        at = sums + i.to(tl.int64) * H + row * H
        tl.store(at, top, mask=row < n - i)
        tl.store(at + rows, share, mask=row < n - i)
        tl.store(at + 2 * rows, mean, mask=row < n - i)
        by_q = tl.zeros([ROWS, WIDTH], wide)
        j = n * 0
        while j < n:
            inside = _inside(i, j, n, ROWS, KEYS)
            there = (tl.arange(0, ROWS) < n - i)[:, None]
            k = _rows(qkv + H * D, j, n, step, D, WIDTH, KEYS)
            v = _rows(qkv + 2 * H * D, j, n, step, D, WIDTH, KEYS)
            s = _scores(q, k, bias + place, i, j, n, inside, SCALE, BIASED, ROWS, KEYS)
            kept = inside
            if DROPOUT > 0:
                kept = _kept(seed, layer, jet, head, i, j, n, DROPOUT, ROWS, KEYS)
            by_p = _by_weights(g, v, kept, DROPOUT)
            p = _exponentials(s, top) * share[:, None]
            by_s = tl.where(there, p * (by_p - mean[:, None]), 0.0)
            if OF_BIAS:
                to = _pairs(by_bias + place, i, j, n, ROWS, KEYS)
                tl.store(to, by_s.to(by_bias.dtype.element_ty), mask=inside)
            by_q += tl.dot(by_s.to(k.dtype), k, input_precision="ieee")
            j += KEYS
        if OF_QKV:
            _store(by_qkv, i, n, by_q * SCALE, step, D, WIDTH, ROWS)
        i += ROWS


@triton.jit(do_not_specialize=["rows", *NUMBERS])
def _backward_keys(
    gradient, qkv, bias, jets, by_qkv, sums, rows: tl.int64, pairs: tl.int64, seed: tl.int64, layer: tl.int64,
    H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SCALE: tl.constexpr, BIASED: tl.constexpr,
    DROPOUT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Longer jets: gradients in keys and values, from what `_backward_rows` left in `sums`."""
    jet, head, start, n, before = _place(jets, H)
    step: tl.constexpr = 3 * H * D
    wide: tl.constexpr = tl.float64 if qkv.dtype.element_ty == tl.float64 else tl.float32
    qkv += start * step + head * D
    by_qkv += start * step + head * D
    gradient += start * (H * D) + head * D
    sums += start * H + head
    bias += head.to(tl.int64) * pairs + before
    j = n * 0
    while j < n:
        k = _rows(qkv + H * D, j, n, step, D, WIDTH, KEYS)
        v = _rows(qkv + 2 * H * D, j, n, step, D, WIDTH, KEYS)
        by_k = tl.zeros([KEYS, WIDTH], wide)
        by_v = tl.zeros([KEYS, WIDTH], wide)
        i = n * 0
        while i < n:
            q = _rows(qkv, i, n, step, D, WIDTH, ROWS)
            g = _rows(gradient, i, n, H * D, D, WIDTH, ROWS)
            row = tl.arange(0, ROWS)
            at = sums + i.to(tl.int64) * H + row * H
            top = tl.load(at, mask=row < n - i, other=0.0)
            share = tl.load(at + rows, mask=row < n - i, other=0.0)
            mean = tl.load(at + 2 * rows, mask=row < n - i, other=0.0)
            inside = _inside(i, j, n, ROWS, KEYS)
            there = (tl.arange(0, ROWS) < n - i)[:, None]
            s = _scores(q, k, bias, i, j, n, inside, SCALE, BIASED, ROWS, KEYS)
            p = tl.where(there, _exponentials(s, top) * share[:, None], 0.0)
            kept = inside
            if DROPOUT > 0:
                kept = _kept(seed, layer, jet, head, i, j, n, DROPOUT, ROWS, KEYS)
            by_p = _by_weights(g, v, kept, DROPOUT)
            by_s = tl.where(there, p * (by_p - mean[:, None]), 0.0)
            by_k += tl.dot(tl.trans(by_s.to(q.dtype)), q, input_precision="ieee")
            if DROPOUT > 0:
                p = tl.where(kept, p * (1 / (1 - DROPOUT)), 0.0)
            by_v += tl.dot(tl.trans(p.to(g.dtype)), g, input_precision="ieee")
            i += ROWS
        _store(by_qkv + H * D, j, n, by_k * SCALE, step, D, WIDTH, KEYS)
        _store(by_qkv + 2 * H * D, j, n, by_v, step, D, WIDTH, KEYS)
        j += KEYS
