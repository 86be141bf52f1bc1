"""The nearest candidates of 16 queries, one query per SIMD lane, by sorting networks: no branch depends on the data.

A key is a row of one or two float64 parts, compared part by part; both encodings are exact.

- float32, one part: the bits of d^2, shifted left by 29, plus 2^52 and the candidate's index. Read as a float64 it is
  positive, normal and finite whatever d^2 is, so that one vminpd and one vmaxpd move distance and index together.
- float64, two parts: d^2, then the index plus 2^52 read as a float64.

NONE is the largest key; its low 29 bits read as the index -1.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .._simd import LANES, pointer, splat

NONE = np.finfo(np.float64).max
INDEX_BITS, NORMAL = 29, 1 << 52
GROUP = 8  # lanes that go through a network together
I64 = ir.IntType(64)


def batcher(n):
    """Compare-exchange pairs of Batcher's odd-even merge sort; n is a power of two."""
    if n == 1:
        return []
    half = batcher(n // 2)
    return [*half, *((i + n // 2, j + n // 2) for i, j in half), *_odd_even_merge(0, n, 1)]


def _odd_even_merge(first, n, step):
    if 2 * step >= n:
        return [(first, first + step)]
    inner = [_odd_even_merge(first + shift, n, 2 * step) for shift in (0, step)]
    return [*inner[0], *inner[1], *((i, i + step) for i in range(first + step, first + n - step, 2 * step))]


def bitonic(n):
    """Compare-exchange pairs that sort what falls and then rises, or rises and then falls."""
    steps = [n >> s for s in range(1, n.bit_length())]
    return [(i, i + step) for step in steps for i in range(n) if not i & step]


def _smaller_first(builder, a, b):
    after = builder.fcmp_ordered(">", a[-1], b[-1])
    for x, y in zip(a[-2::-1], b[-2::-1]):
        equal = builder.fcmp_ordered("==", x, y)
        after = builder.or_(builder.fcmp_ordered(">", x, y), builder.and_(equal, after))
    exchanged = [(builder.select(after, y, x), builder.select(after, x, y)) for x, y in zip(a, b)]
    return [list(side) for side in zip(*exchanged)]


def _sorted(builder, rows, pairs):
    for i, j in pairs:
        rows[i], rows[j] = _smaller_first(builder, rows[i], rows[j])
    return rows


def _stage(merging):
    @intrinsic(prefer_literal=True)
    def stage(typing, keys, row, lane, width, parts):
        literals = width, parts  # in the signature: Numba keeps one `generate` for each
        width, parts = width.literal_value, parts.literal_value

        def generate(context, builder, signature, arguments):
            array, row, lane, *_ = arguments
            # of 256-bit registers there may be 16 only: two of them per row would not fit
            lanes = GROUP if "+avx512f" in context.codegen().magic_tuple()[-1] else GROUP // 2

            def places(row, first):
                rows = [builder.add(row, ir.Constant(I64, i)) for i in range(width)]
                columns = [builder.add(lane, ir.Constant(I64, part * LANES + first)) for part in range(parts)]
                return [[pointer(context, builder, keys, array, i, c, lanes) for c in columns] for i in rows]

            def read(rows):
                return [[builder.load(place, align=8) for place in row] for row in rows]

            for first in range(0, GROUP, lanes):
                best = places(ir.Constant(I64, 0), first)
                rows = _sorted(builder, read(places(row, first)), batcher(width))
                if merging:
                    nearer = [_smaller_first(builder, a, b)[0] for a, b in zip(read(best), rows[::-1])]
                    rows = _sorted(builder, nearer, bitonic(width))
                for values, targets in zip(rows, best):
                    for value, target in zip(values, targets):
                        builder.store(value, target, align=8)
            return context.get_dummy_value()

        return types.void(keys, types.uint64, types.uint64, *literals), generate

    return stage


sort, merge = _stage(False), _stage(True)


@intrinsic
def put(typing, keys, j, d2):
    """Write the keys of candidate j at squared distances d2; a distance that is not finite counts as infinite."""
    single = d2.dtype == types.float32

    def generate(context, builder, signature, arguments):
        array, j, d2 = arguments
        infinity = ir.Constant(d2.type, [float("inf")] * LANES)
        d2 = builder.select(builder.fcmp_ordered("<", d2, infinity), d2, infinity)
        whole, doubles = (ir.VectorType(item, LANES) for item in (I64, ir.DoubleType()))
        key = splat(builder, builder.add(j, ir.Constant(I64, NORMAL)))
        if single:
            bits = builder.zext(builder.bitcast(d2, ir.VectorType(ir.IntType(32), LANES)), whole)
            key = builder.add(builder.shl(bits, ir.Constant(whole, [INDEX_BITS] * LANES)), key)
        for part, value in enumerate([key] if single else [d2, key]):
            at = pointer(context, builder, keys, array, j, ir.Constant(I64, part * LANES))
            builder.store(builder.bitcast(value, doubles), at, align=8)
        return context.get_dummy_value()

    return types.void(keys, types.uint64, d2), generate


@intrinsic
def index(typing, key):
    """The candidate's index in the last part of a key, -1 for NONE."""

    def generate(context, builder, signature, arguments):
        low = builder.trunc(builder.bitcast(arguments[0], I64), ir.IntType(32))
        above = ir.Constant(ir.IntType(32), 32 - INDEX_BITS)
        return builder.ashr(builder.shl(low, above), above)

    return types.int32(types.float64), generate
