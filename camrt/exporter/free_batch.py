"""Makes the batch axis of a model dynamic where its file fixed it.

Exporters that see one batch size write it into the constants of Reshape, Expand, Concat and Resize. With the batch
fixed every shape is a number: where the images are can be followed through the graph, and their number taken out of
those constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from camrt.errors import UnsupportedModelError
from camrt.exporter.head import find_image_input
from camrt.exporter.infer_shapes import InferShapesPass
from camrt.exporter.op_builder import PREFIX, add_constant
from camrt.exporter.regrouping import constant_numbers, cuts_axis, regrouped_axis
from camrt.exporter.shape_folding import evaluated_shapes
from camrt.exporter.shapes import BATCH_NAME
from camrt.exporter.vjp.registry import int_attribute, ints_attribute
from camrt.types import AnyArray

_REDUCTIONS = frozenset({"ArgMax", "ArgMin"})
_INDEXING = frozenset({"Gather", "GatherElements", "GatherND", "Slice", "Split"})
_NEXT_STEP = "Export the source model with a dynamic batch axis."


class FreeBatchPass(InPlacePass):
    """Makes the batch axis dynamic where the source fixed it.

    1. A dynamic batch stays.
    2. A fixed one becomes symbolic. A constant that holds it loses it: -1 in the target of a Reshape, 1 in that of an
       Expand. A constant that is concatenated with images (a class token) is repeated for every image, and the sizes
       of a Resize take the batch from the input.
    3. Where a node works along the batch, or the batch still comes out fixed, the model is refused.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass."""
        image = find_image_input(model.graph)
        assert image.shape is not None
        batch = image.shape[0]
        if not isinstance(batch, int):
            return PassResult(model, False)
        walk = _Walk(model, image, batch)
        for node in list(model.graph):
            walk.step(node)
        walk.check_outputs()
        image.shape = ir.Shape([BATCH_NAME, *list(image.shape)[1:]])
        InferShapesPass()(model)
        return PassResult(model, True)

    def ensures(self, model: ir.Model) -> None:
        """No output has a fixed batch."""
        for output in model.graph.outputs:
            dims = () if output.shape is None else tuple(output.shape)
            if len(dims) >= 2 and isinstance(dims[0], int) and set(dims[2:]) <= {1}:
                raise UnsupportedModelError(
                    f"The batch size of the model is fixed: output {output.name!r} has the shape {output.shape}.",
                    _NEXT_STEP,
                )


class _Walk:
    """Follows the axis that holds the images, and edits what fixes its length.

    ``outer`` of an axis is what was merged into it in front of the images: it has outer * N * (the rest) elements.
    """

    def __init__(self, model: ir.Model, image: ir.Value, batch: int) -> None:
        self._graph = model.graph
        self._shapes, self._contents = evaluated_shapes(model, batch)
        self._batch = batch
        self._axes: dict[ir.Value, int] = {image: 0}
        self._outer: dict[ir.Value, int] = {image: 1}
        self._count = 0

    def step(self, node: ir.Node) -> None:
        """Edits one node if it has to be, and notes where its outputs keep the images."""
        sources = [value for value in node.inputs if value is not None and value in self._axes]
        if not sources:
            return
        source = sources[0]
        for output in node.outputs:
            axis = self._output_axis(node, source, output)
            if axis is not None:
                self._axes[output] = axis
                self._outer.setdefault(output, self._outer[source])
        if node.outputs[0] not in self._axes:
            return
        match node.op_type:
            case "Reshape":
                self._reshape(node)
            case "Expand":
                self._expand(node)
            case "Resize":
                self._resize(node)
            case "Concat":
                self._concat(node)
            case _:
                self._broadcast(node)

    def check_outputs(self) -> None:
        """Refuses a graph whose outputs have another number of rows than there are images."""
        for output in self._graph.outputs:
            shape, producer = self._shape(output), output.producer()
            if output not in self._axes or producer is None or shape is None:
                continue
            if shape[self._axes[output]] != self._batch:
                self._refuse(producer)

    def _output_axis(self, node: ir.Node, source: ir.Value, output: ir.Value) -> int | None:
        """The axis of ``output`` that holds the images, or None where it has none that can be followed."""
        axis, before, after = self._axes[source], self._shape(source), self._shape(output)
        if after is None or before is None or not after:
            return None
        match node.op_type:
            case "Shape" | "Size" | "NonZero":
                return None
            case "Transpose":
                return ints_attribute(node, "perm", range(len(before) - 1, -1, -1)).index(axis)
            case "Reshape" | "Flatten":
                regrouped = regrouped_axis(before, axis, self._outer[source], after, self._batch)
                found = None if regrouped is None else regrouped[0]
                if regrouped is not None:
                    self._outer[output] = regrouped[1]
            case "Unsqueeze":
                added = {number % len(after) for number in constant_numbers(node, 1)}
                found = [position for position in range(len(after)) if position not in added][axis]
            case "Squeeze":
                removed = {number % len(before) for number in constant_numbers(node, 1)}
                found = None if axis in removed else axis - sum(number < axis for number in removed)
            case "Gather":
                found = self._gathered(node, source, axis, len(before))
            case "Slice":
                found = None if cuts_axis(node, axis, len(before)) else axis
            case _ if node.op_type.startswith("Reduce") or node.op_type in _REDUCTIONS:
                found = self._reduced(node, axis, len(before))
            case _:
                found = axis + len(after) - len(before)
        divides = found is not None and 0 <= found < len(after) and after[found] % self._batch == 0
        if not divides and node.op_type in _INDEXING | {"Reshape"} | _REDUCTIONS:
            self._refuse(node)
        return found if divides else None

    def _gathered(self, node: ir.Node, source: ir.Value, axis: int, rank: int) -> int | None:
        if node.inputs[0] is not source:
            return None
        along, indices = int_attribute(node, "axis", 0) % rank, node.inputs[1]
        added = 0 if indices is None or indices.shape is None else len(indices.shape) - 1
        return None if along == axis else axis + (added if along < axis else 0)

    def _reduced(self, node: ir.Node, axis: int, rank: int) -> int | None:
        default = [int_attribute(node, "axis", 0)] if node.op_type in _REDUCTIONS else ints_attribute(node, "axes", ())
        given = node.inputs[1] if len(node.inputs) > 1 else None
        reduced = {number % rank for number in (constant_numbers(node, 1) if given is not None else default)}
        if axis in reduced or not reduced:
            self._refuse(node)
        return axis if int_attribute(node, "keepdims", 1) else axis - sum(number < axis for number in reduced)

    def _reshape(self, node: ir.Node) -> None:
        output, target = node.outputs[0], node.inputs[1]
        if target is None or target not in self._contents:
            return
        shape, axis = self._shape(output), self._axes[output]
        assert shape is not None
        dims = [-1 if position == axis else length for position, length in enumerate(shape)]
        node.replace_input_with(1, self._constant(np.asarray(dims, np.int64)))

    def _expand(self, node: ir.Node) -> None:
        target, axis = node.inputs[1], self._axes[node.outputs[0]]
        if target is None or target not in self._contents or node.inputs[0] not in self._axes:
            return
        shape = self._shape(node.outputs[0])
        assert shape is not None
        dims = np.asarray([1 if position == axis else length for position, length in enumerate(shape)], np.int64)
        node.replace_input_with(1, self._constant(dims))

    def _resize(self, node: ir.Node) -> None:
        """Sizes of every axis become (batch of the input, the rest)."""
        sizes, source = node.inputs[3] if len(node.inputs) > 3 else None, node.inputs[0]
        if sizes is None or sizes.const_value is None or "axes" in node.attributes or source is None:
            return
        numbers = [int(number) for number in sizes.const_value.numpy()]
        if self._axes[node.outputs[0]] != 0:
            self._refuse(node)
        batch = self._before(node, "Shape", [source], {"start": 0, "end": 1})
        rest = self._constant(np.asarray(numbers[1:], np.int64))
        node.replace_input_with(3, self._before(node, "Concat", [batch, rest], {"axis": 0}))

    def _concat(self, node: ir.Node) -> None:
        """Constants beside images are repeated once an image."""
        axis, along = self._axes[node.outputs[0]], int_attribute(node, "axis", 0)
        shape = self._shape(node.outputs[0])
        assert shape is not None
        if along % len(shape) == axis:
            self._refuse(node)
        image = next(value for value in node.inputs if value is not None and value in self._axes)
        for index, value in enumerate(node.inputs):
            if value is not None and value not in self._axes:
                one = self._first_row(node, value, axis)
                batch = self._before(node, "Shape", [image], {"start": axis, "end": axis + 1})
                ones = np.ones(len(shape) - axis - 1, np.int64)
                parts = [self._constant(np.ones(axis, np.int64)), batch, self._constant(ones)]
                target = self._before(node, "Concat", [part for part in parts if _is_filled(part)], {"axis": 0})
                node.replace_input_with(index, self._before(node, "Expand", [one, target], {}))

    def _broadcast(self, node: ir.Node) -> None:
        """A constant with one row an image keeps its first, if they are all alike."""
        shape, axis = self._shape(node.outputs[0]), self._axes[node.outputs[0]]
        assert shape is not None
        if self._batch == 1 or node.op_type not in ("Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Sum", "PRelu"):
            return
        for index, value in enumerate(node.inputs):
            mine = None if value is None else self._shape(value)
            if value is None or value in self._axes or mine is None or len(mine) < len(shape) - axis:
                continue
            if mine[axis - len(shape)] == shape[axis]:
                node.replace_input_with(index, self._first_row(node, value, axis + len(mine) - len(shape)))

    def _first_row(self, node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
        """Of a constant with equal rows along ``axis``, the first; refuses others."""
        shape, producer = self._shape(value), value.producer()
        if shape is not None and shape[axis] == 1:
            return value
        if shape is not None and producer is not None and self._repeats(producer, axis - len(shape)):
            dims = np.asarray([1 if position == axis else length for position, length in enumerate(shape)], np.int64)
            return self._before(node, "Expand", [producer.inputs[0], self._constant(dims)], {})
        if value.const_value is None:
            self._refuse(node)
        array = value.const_value.numpy()
        first = np.take(array, [0], axis)
        if not np.array_equal(array, np.broadcast_to(first, array.shape)):
            self._refuse(node)
        return self._constant(first)

    def _repeats(self, node: ir.Node, axis: int) -> bool:
        """Whether a node makes all rows along ``axis``, counted from the last one back, out of one."""
        source = None if node.op_type != "Expand" or node.inputs[0] is None else self._shape(node.inputs[0])
        return source is not None and (len(source) < -axis or source[axis] == 1)

    def _shape(self, value: ir.Value) -> tuple[int, ...] | None:
        """The shape at the batch of the file, if it is known in full."""
        if value in self._shapes:
            return self._shapes[value]
        dims = () if value.shape is None else tuple(dim for dim in value.shape if isinstance(dim, int))
        return dims if value.shape is not None and len(dims) == len(value.shape) else None

    def _constant(self, array: AnyArray) -> ir.Value:
        self._count += 1
        return add_constant(self._graph, array, f"{PREFIX}/batch_constant_{self._count}")

    def _before(
        self, node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, int]
    ) -> ir.Value:
        """A new node in front of ``node``."""
        self._count += 1
        added = ir.node(op_type, inputs, attributes, name=f"{PREFIX}/batch_{op_type}_{self._count}")
        added.outputs[0].name = f"{added.name}_output"
        self._graph.insert_before(node, added)
        return added.outputs[0]

    def _refuse(self, node: ir.Node) -> NoReturn:
        name = node.name or node.outputs[0].name
        raise UnsupportedModelError(
            f"The batch size of the model is fixed, and {node.op_type} (node {name!r}) depends on it.", _NEXT_STEP
        )


def _is_filled(value: ir.Value) -> bool:
    return value.const_value is None or value.const_value.size > 0
