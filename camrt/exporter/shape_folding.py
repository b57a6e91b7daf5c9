"""Replaces what exporters compute from shapes by constants, and finds the shapes that plain inference gives up on.

Exporters write ``x.view(b, c, -1)`` as dozens of nodes that take the shape of x apart and put another together. Once
the image size is fixed, all of it is a number, or a number times the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from camrt.exporter.graph_walk import inner_graphs
from camrt.exporter.head import find_image_input
from camrt.exporter.infer_shapes import KEEPS_SHAPE
from camrt.exporter.op_builder import PREFIX, add_constant
from camrt.types import AnyArray

# Two batch sizes tell what depends on the batch: what is 2k in one and 3k in the other is k times the batch.
PROBES = (2, 3)
MAX_ELEMENTS = 1 << 20
_SMALL_CONSTANT = 64
_FAILURES = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
)

Shape: TypeAlias = tuple[int, ...]
_Contents: TypeAlias = dict[ir.Value, AnyArray]


class FoldShapesPass(InPlacePass):
    """Evaluates the graph's shapes, and the values computed from them, for two batch sizes.

    1. A value of shape arithmetic that is the same for both becomes an initialiser, if a node that stays reads it.
    2. The target of a Reshape whose result differs in one axis becomes a constant with -1 there.
    3. A shape that was not known, or not fully, is set. An axis that grows with the batch stays symbolic.
    4. What cannot be evaluated stays as it is.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass."""
        probes = [_Probe(model, batch) for batch in PROBES]
        for node in model.graph:
            probes[0].step(node)
            probes[1].step(node, probes[0])
        folder = _Folder(model.graph, *probes)
        for node in list(model.graph):
            folder.set_shapes(node)
            folder.fold_inputs(node)
        return PassResult(model, True)


def evaluated_shapes(model: ir.Model, batch: int) -> tuple[dict[ir.Value, Shape], dict[ir.Value, AnyArray]]:
    """For ``batch`` images: the shapes, and the contents of small values that depend on shapes only."""
    probe = _Probe(model, batch)
    for node in model.graph:
        probe.step(node)
    return probe.shapes, probe.contents


class _Probe:
    """Shapes, and the contents of small values that depend on shapes only, at one batch size.

    Args:
        model: with a fixed image size.
        batch: N.
    """

    def __init__(self, model: ir.Model, batch: int) -> None:
        graph = model.graph
        self.shapes: dict[ir.Value, Shape] = {}
        self.contents: _Contents = {}
        self.derived: set[ir.Value] = set()
        self._opset = graph.opset_imports.get("", 17)
        image = find_image_input(graph)
        assert image.shape is not None
        sizes = [dim for dim in image.shape[1:] if isinstance(dim, int)]
        if len(sizes) == len(image.shape) - 1:
            self.shapes[image] = (batch, *sizes)
        for value in graph.initializers.values():
            if value.const_value is not None:
                self.shapes[value] = tuple(value.const_value.shape.numpy())
                if _is_small(value.const_value):
                    self.contents[value] = value.const_value.numpy()

    def step(self, node: ir.Node, other: _Probe | None = None) -> None:
        """Follows one node; takes the result of ``other`` where the node's inputs are the same there."""
        if node.domain not in ("", "ai.onnx") or inner_graphs(node):
            return
        if other is not None and self._same_inputs(node, other):
            self.shapes.update({o: other.shapes[o] for o in node.outputs if o in other.shapes})
            self.contents.update({o: other.contents[o] for o in node.outputs if o in other.contents})
            self.derived.update(other.derived.intersection(node.outputs))
            return
        if node.op_type == "Shape":
            self._shape(node)
            return
        self.shapes.update(self._inferred(node))
        sizes = [int(np.prod(self.shapes[o])) if o in self.shapes else MAX_ELEMENTS + 1 for o in node.outputs]
        if max(sizes) <= MAX_ELEMENTS and all(i is None or i in self.contents for i in node.inputs):
            self._evaluate(node)

    def _same_inputs(self, node: ir.Node, other: _Probe) -> bool:
        for value in node.inputs:
            if value is None:
                continue
            if self.shapes.get(value) != other.shapes.get(value) or (value in self.contents) != (
                value in other.contents
            ):
                return False
            mine, its = self.contents.get(value), other.contents.get(value)
            if mine is not its and not np.array_equal(mine, its):  # type: ignore[arg-type]
                return False
        return True

    def _shape(self, node: ir.Node) -> None:
        source, output = node.inputs[0], node.outputs[0]
        if source is None or source not in self.shapes:
            return
        start, end = node.attributes.get("start"), node.attributes.get("end")
        part = self.shapes[source][None if start is None else start.as_int() : None if end is None else end.as_int()]
        self._know(output, np.asarray(part, np.int64))

    def _know(self, value: ir.Value, content: AnyArray) -> None:
        self.contents[value] = content
        self.shapes[value] = content.shape
        self.derived.add(value)

    def _inferred(self, node: ir.Node) -> dict[ir.Value, Shape]:
        """Shapes of the outputs, as far as ONNX's inference for the operator tells them."""
        present = [value for value in node.inputs if value is not None]
        if any(value not in self.shapes or value.dtype is None for value in present):
            return {}
        if node.op_type in KEEPS_SHAPE:
            return {node.outputs[0]: self.shapes[present[0]]}
        types = {
            value.name or "": onnx.helper.make_tensor_type_proto(int(value.dtype or 1), self.shapes[value])
            for value in present
        }
        data = {
            value.name or "": onnx.numpy_helper.from_array(np.asarray(self.contents[value]), value.name)
            for value in present
            if value in self.contents and self.contents[value].dtype.kind in "iu"
        }
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset, "")
            opsets = [onnx.helper.make_opsetid("", self._opset)]
            found = onnx.shape_inference.infer_node_outputs(
                schema, ir.to_proto(node), types, data, opset_imports=opsets
            )
        except (*_FAILURES, onnx.defs.SchemaError):
            return {}
        return {
            output: tuple(dim.dim_value for dim in found[output.name].tensor_type.shape.dim)
            for output in node.outputs
            if output.name in found and _is_concrete(found[output.name])
        }

    def _evaluate(self, node: ir.Node) -> None:
        """Contents of the outputs of a node that reads known contents only, at least one of them from a shape."""
        inputs = [value for value in node.inputs if value is not None]
        if not inputs or any(o.dtype is None for o in node.outputs):
            return
        graph = onnx.helper.make_graph(
            [ir.to_proto(node)],
            "node",
            [onnx.helper.make_tensor_value_info(v.name or "", int(v.dtype or 1), None) for v in dict.fromkeys(inputs)],
            [onnx.helper.make_tensor_value_info(o.name or "", int(o.dtype or 1), None) for o in node.outputs],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self._opset)])
        try:
            evaluator = onnx.reference.ReferenceEvaluator(model)
            results = evaluator.run(None, {v.name or "": self.contents[v] for v in inputs})
        except (*_FAILURES, AttributeError):
            return
        for output, result in zip(node.outputs, results, strict=True):
            self._know(output, np.asarray(result))


class _Folder:
    """Writes into the graph what two probes agree on."""

    def __init__(self, graph: ir.Graph, first: _Probe, second: _Probe) -> None:
        self._graph = graph
        self._first, self._second = first, second
        self._made: dict[tuple[str, Shape, bytes], ir.Value] = {}

    def set_shapes(self, node: ir.Node) -> None:
        """Case 3 of the pass."""
        for output in node.outputs:
            if output in self._first.shapes and output in self._second.shapes:
                dims = _dims(self._first.shapes[output], self._second.shapes[output])
                if dims is not None and (output.shape is None or not _agrees(output.shape, dims)):
                    output.shape = ir.Shape(dims)

    def fold_inputs(self, node: ir.Node) -> None:
        """Cases 1 and 2 for the inputs of one node."""
        if node.outputs[0] in self._first.derived and self._content(node.outputs[0]) is not None:
            return  # the node goes
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is not None:
                continue
            content = self._content(value)
            if content is None and node.op_type == "Reshape" and index == 1:
                content = self._reshape_target(node)
            if content is not None:
                node.replace_input_with(index, self._constant(content))

    def _content(self, value: ir.Value) -> AnyArray | None:
        first, second = self._first.contents.get(value), self._second.contents.get(value)
        if value not in self._first.derived or first is None or second is None or value.is_graph_output():
            return None
        if first.dtype.kind not in "biu" and first.size > _SMALL_CONSTANT:
            return None  # a weight that nodes make: as an initialiser it would only make the bundle larger
        return first if np.array_equal(first, second) else None

    def _reshape_target(self, node: ir.Node) -> AnyArray | None:
        output = node.outputs[0]
        if output not in self._first.shapes or output not in self._second.shapes or 0 in self._first.shapes[output]:
            return None
        dims = _dims(self._first.shapes[output], self._second.shapes[output])
        if dims is None:
            return None
        return np.asarray([dim if isinstance(dim, int) else -1 for dim in dims], np.int64)

    def _constant(self, content: AnyArray) -> ir.Value:
        key = (str(content.dtype), content.shape, content.tobytes())
        if key not in self._made:
            self._made[key] = add_constant(self._graph, content, f"{PREFIX}/folded_{len(self._made)}")
        return self._made[key]


def _is_small(tensor: ir.TensorProtocol) -> bool:
    """Whether an initialiser can be part of shape arithmetic."""
    if tensor.dtype.is_floating_point():
        return tensor.size <= _SMALL_CONSTANT
    return tensor.dtype != ir.DataType.STRING and tensor.size <= MAX_ELEMENTS


def _is_concrete(kind: onnx.TypeProto) -> bool:
    tensor = kind.tensor_type
    return tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)


def _dims(first: Sequence[int], second: Sequence[int]) -> list[int | str] | None:
    """One list of dims for both probes; at most one of them may differ, and must be a multiple of the batch."""
    if len(first) != len(second):
        return None
    dims: list[int | str] = []
    for a, b in zip(first, second, strict=True):
        if a == b:
            dims.append(a)
        elif a * PROBES[1] == b * PROBES[0]:
            factor = a // PROBES[0]
            dims.append("N" if factor == 1 else f"{factor}N")
        else:
            return None
    return dims if sum(isinstance(dim, str) for dim in dims) <= 1 else None


def _agrees(shape: ir.Shape, dims: Sequence[int | str]) -> bool:
    return len(shape) == len(dims) and all(
        dim == other if isinstance(dim, int) else isinstance(other, str) for dim, other in zip(shape, dims, strict=True)
    )
