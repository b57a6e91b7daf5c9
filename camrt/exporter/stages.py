"""Which values end a stage of the network: what ``target_layers="auto"`` picks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from camrt.exporter.layouts import Placement
from camrt.exporter.shapes import nominal_shape
from camrt.exporter.vjp.registry import int_attribute

MAX_AUTO_LAYERS = 4
# What only re-arranges or re-scales an activation belongs to the layer after it.
_NOT_A_LAYER = frozenset(
    {"Transpose", "LayerNormalization", "Reshape", "Flatten", "Identity", "Cast", "Dropout", "Pad"}
)


class Stages:
    """The stages of the network between the image and the logits.

    Args:
        nodes: on the way, in topological order.
        cuts: values that every path passes through, in order.
        places: the values with positions.
        image_size: (H, W).

    Attributes:
        values: the cuts that are layers, in order.
        picked: for each resolution kept for a block its last value; the four coarsest, without the stem, fine
            to coarse.
        reasons: why a value is picked, or why the last one of its resolution is not.
    """

    def __init__(
        self,
        nodes: Sequence[ir.Node],
        cuts: Sequence[ir.Value],
        places: Mapping[ir.Value, Placement],
        image_size: tuple[int, ...],
    ) -> None:
        self._nodes, self._cuts, self._places, self._image_size = nodes, cuts, places, image_size
        self._order = {output: index for index, node in enumerate(nodes) for output in node.outputs}
        self.values = self._stage_values()
        self.reasons: dict[ir.Value, str] = {}
        self.picked = self._pick()

    def _pick(self) -> list[ir.Value]:
        stages: dict[tuple[int, ...], ir.Value] = {}
        values, reasons = self.values, self.reasons
        for size in dict.fromkeys(self._size(value) for value in values):
            end = self._stage_end([value for value in values if self._size(value) == size])
            if end is None:
                continue
            if size == self._image_size:
                reasons[end] = "the stem: still at the image's resolution"
            elif not self._keeps_a_block(size, end):
                reasons[end] = "the stem: no block works at this resolution"
            else:
                stages[size] = self._before_last_attention(end)
                kind = "last value" if stages[size] is end else "input of the last attention"
                reasons[stages[size]] = f"{kind} at {size[0]}x{size[1]}"
        ends = list(stages.values())
        for value in ends[:-MAX_AUTO_LAYERS]:
            reasons[value] = f"finer than the {MAX_AUTO_LAYERS} coarsest stages"
        return ends[-MAX_AUTO_LAYERS:]

    def _stage_values(self) -> list[ir.Value]:
        """Cuts with positions and a known layout, produced by something that makes a layer."""
        return [
            value
            for value in self._cuts
            if value in self._places and max(self._size(value)) > 1 and self._is_computed(value)
        ]

    def _is_computed(self, value: ir.Value) -> bool:
        """Whether ``value`` is made by something that computes, or is the first form of it that has positions."""
        node = _producer(value)
        while node.op_type in _NOT_A_LAYER:
            source = node.inputs[0]
            producer = None if source is None or source in self._places else source.producer()
            if producer is None:
                return False
            node = producer
        return True

    def _size(self, value: ir.Value) -> tuple[int, ...]:
        return self._places[value].shape[1:]

    def _stage_end(self, values: Sequence[ir.Value]) -> ir.Value | None:
        """The last value of a stage; the expansion in front of a strided depthwise Conv counts to the next stage."""
        last = values[-1]
        drop = next((node for node in self._nodes[self._order[last] + 1 :] if last in node.inputs), None)
        if drop is None or drop.op_type != "Conv" or not _is_depthwise(drop):
            return last
        expansion = self._producing_conv(last)
        if expansion is None:
            return last
        before = [value for value in values if self._order[value] < self._order[expansion.outputs[0]]]
        return before[-1] if before else None

    def _producing_conv(self, value: ir.Value) -> ir.Node | None:
        """The Conv whose activation ``value`` is, found through elementwise nodes."""
        node: ir.Node | None = _producer(value)
        while node is not None and node.op_type != "Conv":
            source = next((item for item in node.inputs if item in self._order), None)
            node = None if source is None else source.producer()
        return node

    def _keeps_a_block(self, size: tuple[int, ...], end: ir.Value) -> bool:
        """Whether a Conv up to ``end`` reads and writes values of this size, or a skip connection adds two of them."""
        return any(
            all(self._has_size(value, size) for value in (*_main_inputs(node), node.outputs[0]))
            for node in self._nodes[: self._order[end] + 1]
            if node.op_type in ("Conv", "Add")
        )

    def _has_size(self, value: ir.Value | None, size: tuple[int, ...]) -> bool:
        return value is not None and value in self._places and self._size(value) == size

    def _before_last_attention(self, end: ir.Value) -> ir.Value:
        """Where the positions still reach the logits.

        A network that classifies by a class token uses nothing else of its last values: their gradient is zero at all
        positions. What its last attention reads is the last value with a gradient there. If the residual stream goes
        through a LayerNormalization first, its output is taken: the gradient of a value that feeds nothing but a
        normalisation is orthogonal to it, so that sum_c G_c A_c would be zero.
        """
        if not self._places[end].prefix or not self._only_prefix_is_read(end):
            return end
        mixing = [
            index
            for index, node in enumerate(self._nodes)
            if node.op_type == "MatMul" and all(value in self._order for value in node.inputs)
        ]
        stream = [value for value in self._cuts if value in self._places and mixing and self._order[value] < mixing[-1]]
        before = [value for value in stream if self._scores_after(value, mixing)]
        if not before:
            return end
        readers = [node for node in self._nodes if before[-1] in node.inputs and node.op_type == "LayerNormalization"]
        return readers[0].outputs[0] if readers else before[-1]

    def _scores_after(self, value: ir.Value, mixing: Sequence[int]) -> bool:
        """Whether a whole attention, both of its products, comes after ``value``."""
        return sum(index > self._order[value] for index in mixing) >= 2

    def _only_prefix_is_read(self, end: ir.Value) -> bool:
        """Whether what follows ``end`` takes tokens without a position out of it, and no others."""
        prefix = self._places[end].prefix
        for node in self._nodes[self._order[end] + 1 :]:
            source = node.inputs[0]
            if source is None or source not in self._places or not self._places[source].prefix:
                continue
            indices = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
            if node.op_type == "Gather" and indices is not None and int_attribute(node, "axis", 0) == 1:
                return int(indices.numpy().max()) < prefix
            if node.op_type == "Slice" and node.outputs[0] not in self._places:
                return nominal_shape(node.outputs[0])[1] <= prefix
        return False


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _main_inputs(node: ir.Node) -> Sequence[ir.Value | None]:
    """What a node works on: not a Conv's weights."""
    return node.inputs[:1] if node.op_type == "Conv" else node.inputs


def _is_depthwise(node: ir.Node) -> bool:
    group = int_attribute(node, "group", 1)
    value = node.inputs[0]
    return group > 1 and value is not None and nominal_shape(value)[1] == group
