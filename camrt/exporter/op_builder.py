"""Appends nodes to a graph, one line an operator; equal nodes and equal constants are made once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from camrt.exporter.batch_axis import BatchAxis
from camrt.exporter.shapes import BATCH, nominal_shape
from camrt.types import AnyArray

PREFIX = "camrt"


class OpBuilder:
    """Builds the class selection and the backward part of a graph.

    Calling the builder appends a node and returns its (first) output: ``op("Mul", a, b)``. A second call with the same
    operator, inputs and attributes returns the first node's output (common sub-expressions exist once).

    Args:
        graph: the graph that nodes and initialisers are appended to.
        dtype: element type of the model's activations; scalars that rules ask for are made in it.
        wanted: values whose gradient is needed; a rule may ask ``op.wants(value)`` before it builds one.
        lowering: whether rules choose the forms that are fast in ONNX Runtime, see camrt.exporter.lowering.

    Attributes:
        batch_axes: where the forward values keep the batch.
        cotangent: (M, K), of the logits, once the backward part has begun.
        one_hot: (M, K), ones at the explained classes, and (M), those classes; None before it is made.
    """

    def __init__(
        self,
        graph: ir.Graph,
        dtype: ir.DataType,
        wanted: frozenset[ir.Value] = frozenset(),
        *,
        lowering: bool = True,
    ) -> None:
        self.graph = graph
        self.lowering = lowering
        self.dtype = dtype
        self.wanted = wanted
        self.batch_axes: dict[ir.Value, BatchAxis] = {}
        self.cotangent: ir.Value | None = None
        self.one_hot: tuple[ir.Value, ir.Value] | None = None
        self._repeated: dict[ir.Value, ir.Value] = {}
        self._nodes: dict[Hashable, ir.Value] = {}
        self._constants: dict[Hashable, ir.Value] = {}
        self._count = 0

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Appends ``op_type(*inputs)``, or returns the output of an equal node made earlier."""
        inputs = tuple(
            self.repeated(value) if value in self.batch_axes and self.batch_axes[value].is_folded else value
            for value in inputs
        )
        key = (op_type, tuple(id(value) for value in inputs), repr(sorted(attributes.items())))
        if key not in self._nodes:
            self._nodes[key] = self._append(op_type, inputs, attributes)
        return self._nodes[key]

    def repeated(self, value: ir.Value) -> ir.Value:
        """A forward value of one image, or of M, as one of M images: see camrt.exporter.batch_axis.

        Done unasked to every input that is folded; a rule asks for it where its operator does not broadcast.
        """
        batch = self.batch_axes.get(value)
        if batch is None or self.cotangent is None:
            return value
        if value not in self._repeated:
            shape, axis = nominal_shape(value), batch.axis
            alone = [*shape[:axis], batch.outer, BATCH, batch.inner, *shape[axis + 1 :]]
            ones = [1] * len(alone)
            classes = self("Shape", self.cotangent, start=0, end=1)
            target = [self.ints(ones[: axis + 1]), classes, self.ints(ones[axis + 2 :])]
            apart = self._append("Reshape", [value, self.ints(alone)], {})
            expanded = self("Expand", apart, self("Concat", *target, axis=0))
            self._repeated[value] = self("Reshape", expanded, self.ints(shape))
        return self._repeated[value]

    def identity(self, value: ir.Value) -> ir.Value:
        """A new value equal to ``value``, made anew at every call."""
        return self._append("Identity", [value], {})

    def wants(self, value: ir.Value | None) -> bool:
        """Whether the gradient of ``value`` is needed."""
        return value is not None and value in self.wanted

    def scalar(self, number: float) -> ir.Value:
        """A rank-0 constant of the model's element type."""
        return self.constant(np.asarray(number, self.dtype.numpy()))

    def ints(self, numbers: Sequence[int]) -> ir.Value:
        """An int64 vector constant."""
        return self.constant(np.asarray(numbers, np.int64))

    def constant_int(self, number: int) -> ir.Value:
        """A rank-0 int64 constant."""
        return self.constant(np.asarray(number, np.int64))

    def constant(self, array: AnyArray) -> ir.Value:
        """An initialiser with the content of ``array``; equal contents share one."""
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{PREFIX}/constant_{len(self._constants)}"
            self._constants[key] = add_constant(self.graph, array, name)
        return self._constants[key]

    def cast(self, value: ir.Value) -> ir.Value:
        """``value``, a condition say, as the model's element type."""
        return self("Cast", value, to=int(self.dtype))

    def reshape_like(self, cotangent: ir.Value, value: ir.Value) -> ir.Value:
        """Gives ``cotangent`` the shape of ``value`` except the batch axis, which is inferred (it may be M, not N)."""
        shape = nominal_shape(value)
        return self("Reshape", cotangent, self.ints(shape if BATCH in shape else [-1, *shape[1:]]))

    def expand_like(self, cotangent: ir.Value, value: ir.Value) -> ir.Value:
        """Broadcasts ``cotangent`` (M, 1 or d, ...) to (M, d, ...), the shape of ``value`` but the batch axis."""
        shape = nominal_shape(value)
        batch = shape.index(BATCH) if BATCH in shape else 0
        return self("Expand", cotangent, self.ints([1 if axis == batch else dim for axis, dim in enumerate(shape)]))

    def reduce_sum(self, value: ir.Value, axes: Sequence[int], keepdims: int = 1) -> ir.Value:
        """ReduceSum over constant axes."""
        return self("ReduceSum", value, self.ints(axes), keepdims=keepdims)

    def reduce_mean(self, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """ReduceMean over constant axes, keeping them; the axes are an attribute up to opset 17, an input after it."""
        if self.graph.opset_imports[""] < 18:
            return self("ReduceMean", value, axes=list(axes), keepdims=1)
        return self("ReduceMean", value, self.ints(axes), keepdims=1)

    def _append(self, op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any]) -> ir.Value:
        self._count += 1
        node = ir.node(op_type, inputs, attributes, name=f"{PREFIX}/{op_type}_{self._count}")
        node.outputs[0].name = f"{PREFIX}/{op_type}_{self._count}_output"
        self.graph.append(node)
        return node.outputs[0]


def add_constant(graph: ir.Graph, array: AnyArray, name: str) -> ir.Value:
    """A new initialiser of ``graph``."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(list(array.shape)), const_value=tensor)
    graph.register_initializer(value)
    return value
