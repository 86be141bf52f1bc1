"""Building ONNX graphs by writing formulas: arithmetic on a `Value` adds nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

SPELT = {"+": "Add", "-": "Sub", "*": "Mul", "/": "Div", ">": "Greater", "<": "Less", "&": "And", "@": "MatMul"}


def _binary(symbol: str, swapped: bool = False) -> Any:
    def method(self: Value, other: Any) -> Value:
        value = self.graph.value(other, self.dtype)
        return self.graph(SPELT[symbol], *((value, self) if swapped else (self, value)))

    return method


class Value:
    """An array of the graph, known by its name and dtype."""

    def __init__(self, graph: Graph, name: str, dtype: Any) -> None:
        self.graph, self.name, self.dtype = graph, name, np.dtype(dtype)

    __add__, __sub__, __mul__, __truediv__ = map(_binary, "+-*/")
    __radd__, __rsub__, __rmul__, __rtruediv__ = (_binary(symbol, swapped=True) for symbol in "+-*/")
    __lt__, __gt__, __and__, __matmul__ = map(_binary, "<>&@")

    def __neg__(self) -> Value:
        return self.graph("Neg", self)

    def cast(self, dtype: Any) -> Value:
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self if self.dtype == dtype else self.graph("Cast", self, dtype=dtype, to=to)

    def take(self, index: Any, axis: int = 0) -> Value:
        """Entries `index` of an axis; an integer drops the axis."""
        return self.graph("Gather", self, self.graph.value(index, np.int64), axis=axis)

    def between(self, first: int, last: int, axis: int) -> Value:
        return self.graph("Slice", self, [first], [last], [axis])

    def sum(self, *axes: int, keep: bool = False) -> Value:
        return self.graph("ReduceSum", self, list(axes), keepdims=int(keep))

    def transpose(self, *axes: int) -> Value:
        return self.graph("Transpose", self, perm=axes)

    def unsqueeze(self, *axes: int) -> Value:
        return self.graph("Unsqueeze", self, list(axes))

    def reshape(self, *sizes: int | Value) -> Value:
        """To sizes that are numbers or (1,) int64 values."""
        return self.graph("Reshape", self, self.graph.shape(*sizes))

    def size(self, axis: int) -> Value:
        """(1,) int64."""
        return self.graph("Shape", self, dtype=np.int64, start=axis, end=axis + 1)

    def maximum(self, other: Any) -> Value:
        return self.graph("Max", self, self.graph.value(other, self.dtype))

    def minimum(self, other: Any) -> Value:
        return self.graph("Min", self, self.graph.value(other, self.dtype))


class Graph:
    """Nodes and constants under construction. Calling it adds a node: g("Add", a, b)."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[tuple, tuple[str, np.ndarray]] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def __call__(self, op: str, *inputs: Any, dtype: Any = None, **attributes: Any) -> Any:
        """The result of an operator; numbers and lists become constants.

        dtype : of the result, of the first input if None; several for several results.
        """
        first = next(x for x in inputs if isinstance(x, Value))
        names = [self.value(x, np.int64 if isinstance(x, list) else first.dtype).name for x in inputs]
        if dtype is None:
            dtype = np.bool_ if op in ("Greater", "Less", "And", "Not") else first.dtype
        dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
        found = [Value(self, f"{op}_{len(self.nodes)}_{i}", kind) for i, kind in enumerate(dtypes)]
        self.nodes.append(helper.make_node(op, names, [x.name for x in found], **attributes))
        return found if isinstance(dtype, tuple) else found[0]

    def value(self, x: Any, dtype: Any) -> Value:
        """`x` itself, or a constant; equal ones are stored once."""
        if isinstance(x, Value):
            return x
        array = np.asarray(x, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        name, _ = self.constants.setdefault(key, (f"constant_{len(self.constants)}", array))
        return Value(self, name, dtype)

    def input(self, name: str, dtype: Any, sizes: Sequence[str | int]) -> Value:
        self.inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), sizes))
        return Value(self, name, dtype)

    def output(self, name: str, value: Value, sizes: Sequence[str | int]) -> None:
        self.nodes.append(helper.make_node("Identity", [value.name], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), sizes))

    def shape(self, *sizes: int | Value) -> Value:
        if not any(isinstance(size, Value) for size in sizes):
            return self.value(sizes, np.int64)
        parts = [size if isinstance(size, Value) else self.value([size], np.int64) for size in sizes]
        return self.concat(*parts, axis=0)

    def concat(self, *values: Value, axis: int) -> Value:
        return self("Concat", *values, axis=axis)

    def columns(self, *values: Value) -> Value:
        """(N, C) of C values (N,)."""
        return self.concat(*(value.unsqueeze(1) for value in values), axis=1)

    def zeros(self, dtype: Any, *sizes: int | Value) -> Value:
        shape = self.shape(*sizes)
        value = helper.make_tensor("value", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [1], [0])
        return self("ConstantOfShape", shape, dtype=dtype, value=value)

    def where(self, condition: Value, a: Any, b: Any) -> Value:
        dtype = a.dtype if isinstance(a, Value) else b.dtype
        return self("Where", condition, self.value(a, dtype), self.value(b, dtype), dtype=dtype)

    def positions(self, size: Value) -> Value:
        """0, 1, ..., size - 1 of a (1,) int64."""
        return self("Range", self.value(0, np.int64), size.reshape(), self.value(1, np.int64))

    def nonzero(self, condition: Value) -> Value:
        """(dimensions, found) int64 in row-major order."""
        return self("NonZero", condition, dtype=np.int64)

    def linear(self, x: Value, weight: np.ndarray, bias: np.ndarray) -> Value:
        """x (N, in), weight (out, in) -> (N, out)."""
        return self("Gemm", x, self.value(weight.T, x.dtype), self.value(bias, x.dtype))

    def gelu(self, x: Value) -> Value:
        return 0.5 * x * (1.0 + self("Erf", x / np.sqrt(2)))

    def build(self, opset: int, **facts: str) -> onnx.ModelProto:
        """The model, checked; `facts` go into its metadata."""
        constants = [onnx.numpy_helper.from_array(array, name) for name, array in self.constants.values()]
        graph = helper.make_graph(self.nodes, "fasttag", self.inputs, self.outputs, constants)
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
        helper.set_model_props(model, facts)
        onnx.checker.check_model(model, full_check=True)
        return model
