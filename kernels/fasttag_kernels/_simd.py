"""Vectors of 16 numbers in Numba kernels, for loops that LLVM does not pack by itself: it packs innermost loops only.

LLVM splits a `Vector` into whatever registers the CPU has: one of 512 bits for float32, two of 256, four of 128.
Operations are rounded one by one in kernels compiled with `_numba.exact`.
"""

import operator

import numba
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from ._numba import helper

LANES = 16


class Vector(types.Type):
    """Numba's type of a vector of LANES numbers of one dtype."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(f"Vector({dtype})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.VectorType(manager.lookup(kind.dtype).get_value_type(), LANES))


def pointer(context, builder, kind, array, row, column, lanes=LANES):
    """LLVM pointer to `lanes` numbers from array[row, column] on; no wraparound, no bounds.

    A flat array counts as rows of LANES: their constant length leaves no products to be found for each address.
    """
    array = context.make_array(kind)(context, builder, array)
    place = [row, column]
    if kind.ndim == 1:
        place = [builder.add(builder.mul(row, ir.Constant(row.type, LANES), flags=["nsw"]), column, flags=["nsw"])]
    at = cgutils.get_item_pointer(context, builder, kind, array, place, wraparound=False)
    item = context.get_data_type(kind.dtype)
    return builder.bitcast(at, ir.VectorType(item, lanes).as_pointer())


def splat(builder, value):
    """LLVM vector of LANES times `value`."""
    empty = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


@intrinsic
def load(typing, array, row, column):
    """array[row, column : column + LANES]"""

    def generate(context, builder, signature, arguments):
        at = pointer(context, builder, signature.args[0], *arguments)
        return builder.load(at, align=array.dtype.bitwidth // 8)

    return Vector(array.dtype)(array, row, column), generate


@intrinsic
def broadcast(typing, array, row, column):
    """LANES times array[row, column]"""

    def generate(context, builder, signature, arguments):
        data, at, lane = arguments
        place = pointer(context, builder, signature.args[0], data, at, lane, 1)
        one = builder.load(place, align=array.dtype.bitwidth // 8)
        return splat(builder, builder.extract_element(one, ir.Constant(ir.IntType(32), 0)))

    return Vector(array.dtype)(array, row, column), generate


@intrinsic
def store(typing, array, row, column, vector):
    """array[row, column : column + LANES] = vector"""

    def generate(context, builder, signature, arguments):
        *place, value = arguments
        builder.store(value, pointer(context, builder, signature.args[0], *place), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, row, column, vector), generate


def _masked(context, builder, array, values, count):
    """What `llvm.masked.load` and `.store` need: pointer to array[index] of a 1-d array, alignment, the first lanes."""
    kind, data, index = array
    item = cgutils.get_item_pointer(context, builder, kind, context.make_array(kind)(context, builder, data), [index])
    count = builder.trunc(count, ir.IntType(32))  # compared in half as many registers
    lanes = ir.Constant(ir.VectorType(count.type, LANES), list(range(LANES)))
    align = ir.Constant(ir.IntType(32), kind.dtype.bitwidth // 8)
    return builder.bitcast(item, values.as_pointer()), align, builder.icmp_signed("<", lanes, splat(builder, count))


@intrinsic
def load_first(typing, array, index, count):
    """array[index : index + count] of a 1-d array for count <= LANES, then zeros; no bounds, nothing is read beyond."""

    def generate(context, builder, signature, arguments):
        values = ir.VectorType(context.get_data_type(array.dtype), LANES)
        place = _masked(context, builder, (signature.args[0], *arguments[:2]), values, arguments[2])
        zeros = ir.Constant(values, [0.0] * LANES)
        kind = ir.FunctionType(values, [x.type for x in (*place, zeros)])
        name = f"llvm.masked.load.v{LANES}f{array.dtype.bitwidth}.p0"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [*place, zeros])

    return Vector(array.dtype)(array, types.int64, types.int64), generate


@intrinsic
def store_first(typing, array, index, vector, count):
    """array[index : index + count] of a 1-d array = the first of `vector`; no bounds, nothing is written beyond."""

    def generate(context, builder, signature, arguments):
        data, at, value, number = arguments
        place = _masked(context, builder, (signature.args[0], data, at), value.type, number)
        kind = ir.FunctionType(ir.VoidType(), [x.type for x in (value, *place)])
        name = f"llvm.masked.store.v{LANES}f{array.dtype.bitwidth}.p0"
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [value, *place])
        return context.get_dummy_value()

    return types.void(array, types.int64, vector, types.int64), generate


@intrinsic
def transpose(typing, source, row, column, target, to_row, to_column):
    """A block of LANES x LANES of `target` becomes one of `source`, with rows and columns exchanged."""

    def generate(context, builder, signature, arguments):
        places, align = [], source.dtype.bitwidth // 8
        for kind, (array, first, at) in ((source, arguments[:3]), (target, arguments[3:])):
            rows = [builder.add(first, ir.Constant(first.type, i)) for i in range(LANES)]
            places.append([pointer(context, builder, kind, array, i, at) for i in rows])
        rows = [builder.load(place, align=align) for place in places[0]]
        half = LANES // 2
        numbers = ir.VectorType(ir.IntType(32), LANES)
        taken = [[first + i + side for i in range(half) for side in (0, LANES)] for first in (0, half)]
        for _ in range(LANES.bit_length() - 1):  # each time rows i and i + 8 are shuffled into each other, like cards
            rows = [
                builder.shuffle_vector(a, b, ir.Constant(numbers, lanes))
                for a, b in zip(rows[:half], rows[half:])
                for lanes in taken
            ]
        for value, place in zip(rows, places[1]):
            builder.store(value, place, align=align)
        return context.get_dummy_value()

    return types.void(source, row, column, target, to_row, to_column), generate


@helper
def turn(matrix, begin, end, turned, column):
    """Columns begin..end of a matrix, transposed, to `turned` from a column on."""
    for r in range(0, len(matrix), LANES):
        whole = end - (end - begin) % LANES if r + LANES <= len(matrix) else begin
        for c in range(begin, whole, LANES):
            transpose(matrix, r, c, turned, c - begin, column + r)
        for i in range(r, min(r + LANES, len(matrix))):
            for c in range(whole, end):
                turned[c - begin, column + i] = matrix[i, c]


def _binary(function, emit):
    """`function` of two vectors, or of a vector and a number."""

    @intrinsic
    def apply(typing, a, b):
        kind = a if isinstance(a, Vector) else b

        def generate(context, builder, signature, arguments):
            vectors = (x if isinstance(t, Vector) else splat(builder, x) for t, x in zip(signature.args, arguments))
            return emit(builder, *vectors)

        return kind(*(t if isinstance(t, Vector) else kind.dtype for t in (a, b))), generate

    @overload(function)
    def _(a, b):
        if isinstance(a, Vector) or isinstance(b, Vector):
            return lambda a, b: apply(a, b)


_binary(operator.add, ir.IRBuilder.fadd)
_binary(operator.sub, ir.IRBuilder.fsub)
_binary(operator.mul, ir.IRBuilder.fmul)
_binary(min, lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))
_binary(max, lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


@intrinsic
def _abs(typing, a):
    def generate(context, builder, signature, arguments):
        bits = ir.VectorType(ir.IntType(a.dtype.bitwidth), LANES)
        no_sign = ir.Constant(bits, [2 ** (a.dtype.bitwidth - 1) - 1] * LANES)
        return builder.bitcast(builder.and_(builder.bitcast(arguments[0], bits), no_sign), arguments[0].type)

    return a(a), generate


@overload(abs)
def _(a):
    if isinstance(a, Vector):
        return lambda a: _abs(a)


# a block of a product, so many rows and vectors of 64 bytes: 16 of 32 registers, or 8 of 16 of half the size
_HAS_512 = numba.config.CPU_NAME is None and get_host_cpu_features().get("avx512f", False)
ROWS, WIDTH = (8, 2) if _HAS_512 else (4, 1)


def _of_width(width):
    """A product of ROWS rows and that many vectors."""

    @intrinsic
    def _block(typing, a, b, start, out, row, column, depth):
        """The part of `multiply` that begins at out[row, column]."""

        def generate(context, builder, signature, arguments):
            kinds, (a_, b_, start_, out_, first, at, count) = signature.args, arguments
            lanes, align = 512 // out.dtype.bitwidth, out.dtype.bitwidth // 8
            vector = ir.VectorType(context.get_data_type(out.dtype), lanes)
            lane = lambda i: ir.Constant(first.type, i)
            rows = [builder.add(first, lane(r)) for r in range(ROWS)]
            columns = [builder.add(at, lane(lanes * w)) for w in range(width)]
            factors = context.make_array(kinds[0])(context, builder, a_)

            def spread(value):
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
                return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))

            sums = []
            for r in rows:
                if isinstance(kinds[2], types.NoneType):
                    places = [pointer(context, builder, kinds[3], out_, r, c, lanes) for c in columns]
                    values = [builder.load(place, align=align) for place in places]
                else:
                    numbers = context.make_array(kinds[2])(context, builder, start_)
                    place = cgutils.get_item_pointer(context, builder, kinds[2], numbers, [r])
                    values = [spread(builder.load(place))] * len(columns)
                sums.append([cgutils.alloca_once_value(builder, value) for value in values])
            name = f"llvm.fma.v{lanes}f{out.dtype.bitwidth}"
            fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
            # the following rows, ROWS numbers for each of these columns, are fetched meanwhile: large matrices are far
            following = cgutils.get_item_pointer(
                context, builder, kinds[0], factors, [builder.add(first, lane(ROWS)), lane(0)]
            )
            kind = ir.FunctionType(ir.VoidType(), [following.type, *[ir.IntType(32)] * 3])
            prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            with cgutils.for_range(builder, count) as loop:
                k = loop.index
                if kinds[0].layout == "C":
                    place = builder.gep(following, [builder.mul(k, lane(ROWS))])
                    builder.call(prefetch, [place, *(ir.Constant(ir.IntType(32), i) for i in (0, 3, 1))])
                right = [
                    builder.load(pointer(context, builder, kinds[1], b_, k, c, lanes), align=align) for c in columns
                ]
                for r, line in zip(rows, sums):
                    place = cgutils.get_item_pointer(context, builder, kinds[0], factors, [r, k])
                    left = spread(builder.load(place))
                    for total, value in zip(line, right):
                        builder.store(builder.call(fma, [left, value, builder.load(total)]), total)
            for r, line in zip(rows, sums):
                for c, total in zip(columns, line):
                    builder.store(
                        builder.load(total), pointer(context, builder, kinds[3], out_, r, c, lanes), align=align
                    )
            return context.get_dummy_value()

        return types.void(a, b, start, out, types.int64, types.int64, types.int64), generate

    return _block


_block, _narrow_block = _of_width(WIDTH), _of_width(1)


@helper
def multiply(a, b, start, out, rows, columns, depth):
    """out[r, c] = start[r] + sum over k < depth of a[r, k] b[k, c], summed in the order of k; None starts with `out`.

    Rows and columns are rounded up to multiples of 8 and 128 bytes, and must be there.
    """
    narrow = 64 // out.itemsize
    for column in range(0, columns, WIDTH * narrow):
        if columns - column > narrow:
            for row in range(0, (rows + 7) // 8 * 8, ROWS):
                _block(a, b, start, out, row, column, depth)
        else:
            for row in range(0, (rows + 7) // 8 * 8, ROWS):
                _narrow_block(a, b, start, out, row, column, depth)


def _across(emit):
    """A number of all lanes of a vector: halves are combined until one lane is left."""

    @intrinsic
    def apply(typing, vector):
        def generate(context, builder, signature, arguments):
            (value,) = arguments
            for size in (8, 4, 2, 1):
                halves = [
                    builder.shuffle_vector(
                        value, value, ir.Constant(ir.VectorType(ir.IntType(32), size), list(range(at, at + size)))
                    )
                    for at in (0, size)
                ]
                value = emit(builder, *halves)
            return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

        return vector.dtype(vector), generate

    return apply


total = _across(ir.IRBuilder.fadd)
highest = _across(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
