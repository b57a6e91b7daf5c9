"""fp16: rewrites a finished graph so that most of it computes in half precision, by casts that stand in the graph.

Engines that take the precision from the graph (TensorRT's strongly typed networks) then need no flag. What stays
float32 (the islands): the logits and the class selection behind them, the saliency map of the graph, softmax,
normalisations, reductions, divisions and exponentials, and every node whose numbers were measured to come near the
largest half, or to be so small that halves of them have few digits. Inputs and outputs of the graph stay float32.

Gradients are small: at a fine layer they fall below the smallest half. They are linear in the cotangent of the logits,
so that is multiplied by a power of two, and the gradients are divided by it in float32 (arXiv 1710.03740).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from camrt.bundle import HALF_OUTPUT_SUFFIX, Manifest
from camrt.errors import UnsupportedModelError
from camrt.exporter.graph_walk import inner_graphs
from camrt.exporter.op_builder import add_constant
from camrt.types import AnyArray

# fmt: off
HALF_OPERATORS = frozenset(
    [
        "Abs", "Add", "And", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose",
        "DepthToSpace", "Equal", "Expand", "Flatten", "Gather", "Gemm", "Greater", "GreaterOrEqual",
        "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "LessOrEqual", "MatMul", "Max", "MaxPool",
        "Min", "Mul", "Neg", "PRelu", "Pad", "Relu", "Reshape", "Resize", "Sigmoid", "Sign", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
    ]
)
# fmt: on
"""Operators that compute in half precision; the others are islands."""

LARGEST = float(np.finfo(np.float16).max)
_ROOM = 4.0  # numbers of other images may be larger than the measured ones
_SCALED_TO = 1024.0  # what the largest gradient is scaled to: 64 times below the largest half
_MOST_DOUBLINGS = 24
_LEAST_PEAK = 2.0**-10  # where the largest number is smaller, the others have few digits left
_LEAST_SCALE = 2.0**-14  # the smallest half with all its digits: a divisor below it loses some
_SEEDS = frozenset({"OneHot", "Gather"})
_TYPELESS = frozenset({"Shape", "Size"})
_FIRST_INPUT_ONLY = frozenset({"Resize"})  # its scales are float32 always
_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
_SCALE_NAME = "camrt/gradient_scale"


def to_half(model: ir.Model, manifest: Manifest, largest: Mapping[str, float]) -> None:
    """Rewrites the graph of a bundle in place.

    Args:
        model: the graph with the element types of its values.
        manifest: names of its outputs.
        largest: value name -> largest absolute value measured, see camrt.exporter.calibration.

    The graph passes ``check_can_be_halved``.
    """
    graph = model.graph
    layers = manifest.target_layers
    outputs = {value.name or "": value for value in graph.outputs}
    gradients = [outputs[layer.gradients] for layer in layers]
    activations = [outputs[layer.activations] for layer in layers]
    behind_gradients = _ancestors(gradients)
    logits, class_out = outputs[manifest.logits], outputs[manifest.class_index_output]
    seeds = _seeds(class_out, behind_gradients)
    backward = _descendants(seeds) & behind_gradients
    scale = _gradient_scale(backward, largest)
    wanted = behind_gradients | _ancestors([*activations, *(outputs[name] for name in manifest.outputs)])
    islands = (_descendants([logits]) - backward) | ({logits.producer()} - {None})
    half = {
        node
        for node in wanted - islands
        if _computes_floats(node) and _fits(node, largest, scale if node in backward else 1.0)
    }
    _scale_gradients(graph, seeds, gradients, behind_gradients, scale)
    _Caster(graph, half).rewrite()
    RemoveUnusedNodesPass()(model)


def check_can_be_halved(graph: ir.Graph, manifest: Manifest) -> None:
    """UnsupportedModelError where the graph is not float32, has graphs inside nodes, or second derivatives."""
    other = next((value for value in graph.inputs if value.dtype in (_HALF, ir.DataType.DOUBLE)), None)
    if other is not None:
        raise UnsupportedModelError(
            f"The model takes {other.dtype} at {other.name!r}; fp16 is made from float32.", "Leave precision out."
        )
    for node in graph:
        if inner_graphs(node):
            raise UnsupportedModelError(
                f"Node {node.name!r} ({node.op_type}) holds a graph, which fp16 cannot pass.", "Export in fp32."
            )
    if any(layer.hessian_vectors is not None for layer in manifest.target_layers):
        raise UnsupportedModelError(
            "Second derivatives are not linear in what fp16 scales.", "Export without second_order, or in fp32."
        )


def _seeds(class_out: ir.Value, behind_gradients: set[ir.Node]) -> list[ir.Value]:
    """Where the backward part begins: the one-hot rows of the explained classes, or the weights that they choose."""
    nodes = dict.fromkeys(node for node, _ in class_out.uses() if node in behind_gradients)
    seeds = [node.outputs[0] for node in nodes if node.op_type in _SEEDS and _is_float(node.outputs[0])]
    if not seeds:
        raise UnsupportedModelError("The graph has no cotangent of the logits.", "Export the source model again.")
    return seeds


def _ancestors(values: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes that ``values`` are computed by."""
    found: set[ir.Node] = set()
    stack = [value.producer() for value in values]
    while stack:
        node = stack.pop()
        if node is not None and node not in found:
            found.add(node)
            stack.extend(value.producer() for value in node.inputs if value is not None)
    return found


def _descendants(values: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes that depend on ``values``."""
    found: set[ir.Node] = set()
    stack = [node for value in values for node, _ in value.uses()]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(user for output in node.outputs for user, _ in output.uses())
    return found


def _gradient_scale(backward: set[ir.Node], largest: Mapping[str, float]) -> float:
    """The power of two that brings the largest gradient to about 1024."""
    names = [output.name or "" for node in backward for output in node.outputs if output.dtype == _FLOAT]
    peak = max((largest.get(name, 0.0) for name in names), default=0.0)
    if not 0.0 < peak < math.inf:
        return 1.0
    return 2.0 ** min(math.floor(math.log2(_SCALED_TO / peak)), _MOST_DOUBLINGS)


def _computes_floats(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    values = [*node.inputs, *node.outputs]
    if node.op_type == "Cast":  # of conditions and integers; a cast between floats keeps what the model asked for
        source = node.inputs[0]
        return (
            source is not None and source.dtype in (ir.DataType.BOOL, ir.DataType.INT64) and _is_float(node.outputs[0])
        )
    return node.op_type in HALF_OPERATORS and any(_is_float(value) for value in values)


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == _FLOAT


def _fits(node: ir.Node, largest: Mapping[str, float], scale: float) -> bool:
    """Whether the numbers that the node reads and makes lie well within half precision, neither too large nor small."""
    if node.op_type == "BatchNormalization" and _loses_digits(node):
        return False
    for value in (*node.inputs, *node.outputs):
        if value is None or value.dtype != _FLOAT:
            continue
        peak = largest.get(value.name or "", 0.0) * scale
        if value.const_value is not None:
            numbers = np.abs(value.const_value.numpy())
            peak = float(numbers[np.isfinite(numbers)].max(initial=0.0))
        if peak > LARGEST / _ROOM or 0.0 < peak < _LEAST_PEAK:
            return False
    return True


def _loses_digits(node: ir.Node) -> bool:
    """Whether a variance is too small for a half to hold all its digits."""
    variance = node.inputs[4]
    return variance is None or variance.const_value is None or variance.const_value.numpy().min() < _LEAST_SCALE


def _scale_gradients(
    graph: ir.Graph, seeds: list[ir.Value], gradients: list[ir.Value], behind_gradients: set[ir.Node], scale: float
) -> None:
    """Multiplies what the backward part begins with by ``scale``, and divides by it what leaves that part."""
    if scale == 1.0:
        return
    factors = [
        add_constant(graph, np.asarray(number, np.float32), f"{_SCALE_NAME}{suffix}")
        for number, suffix in ((scale, ""), (1 / scale, "_inverse"))
    ]
    for number, seed in enumerate(seeds):
        product = _insert_after(graph, seed, "Mul", [seed, factors[0]], f"{_SCALE_NAME}/scaled_{number}")
        _redirect(seed, product, lambda node: node in behind_gradients and node.op_type not in _TYPELESS)
    for value in dict.fromkeys(gradients):
        plain = _insert_after(graph, value, "Mul", [value, factors[1]], f"{value.name}/plain")
        _redirect(value, plain, lambda node: node not in behind_gradients)
        _take_output_name(graph, value, plain)


def _insert_after(graph: ir.Graph, value: ir.Value, op_type: str, inputs: list[ir.Value], name: str) -> ir.Value:
    """A new node behind the producer of ``value``, or in front of all where ``value`` is an input."""
    node = ir.node(op_type, inputs, name=name)
    _place(graph, value, node)
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, value.type, value.shape
    return node.outputs[0]


def _place(graph: ir.Graph, value: ir.Value, node: ir.Node) -> None:
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, node)
    else:
        graph.insert_before(graph[0], node)


def _redirect(value: ir.Value, other: ir.Value, chosen: Callable[[ir.Node], bool]) -> None:
    """Makes the chosen readers of ``value`` read ``other``."""
    for node, index in tuple(value.uses()):
        if node is not other.producer() and chosen(node):
            node.replace_input_with(index, other)


def _take_output_name(graph: ir.Graph, value: ir.Value, other: ir.Value) -> None:
    """Makes ``other`` the graph output that ``value`` was, under its name."""
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = other
    value.name, other.name = f"{value.name}/inner", value.name


class _Caster:
    """Inserts the casts at the borders between half nodes and the others."""

    def __init__(self, graph: ir.Graph, half: set[ir.Node]) -> None:
        self._graph, self._half = graph, half
        self._halves: dict[ir.Value, ir.Value] = {}
        self._floats: dict[ir.Value, ir.Value] = {}

    def rewrite(self) -> None:
        """Rewrites every node of the graph."""
        nodes = list(self._graph)
        made = {output for node in nodes if node in self._half for output in node.outputs if _is_float(output)}
        for node in nodes:
            for index, value in enumerate(node.inputs):
                if value is None or not _is_float(value):
                    continue
                if node in self._half:
                    if value not in made and (index == 0 or node.op_type not in _FIRST_INPUT_ONLY):
                        node.replace_input_with(index, self._as_half(value))
                elif value in made and node.op_type not in _TYPELESS:
                    node.replace_input_with(index, self._as_float(value))
            if node in self._half and node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", int(_HALF))
        for output in [value for value in self._graph.outputs if value in made]:
            _take_output_name(self._graph, output, self._as_float(output))
        for value in made:
            value.type = ir.TensorType(_HALF)

    def _as_half(self, value: ir.Value) -> ir.Value:
        if value not in self._halves:
            name = f"{value.name}/half"
            if value.const_value is not None and value.is_initializer():
                self._halves[value] = add_constant(self._graph, _rounded(value.const_value.numpy()), name)
            else:
                self._halves[value] = self._cast(value, _HALF, name)
        return self._halves[value]

    def _as_float(self, value: ir.Value) -> ir.Value:
        if value not in self._floats:
            self._floats[value] = self._cast(value, _FLOAT, f"{value.name}{HALF_OUTPUT_SUFFIX}")
        return self._floats[value]

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        node = ir.node("Cast", [value], {"to": int(dtype)}, name=name)
        _place(self._graph, value, node)
        made = node.outputs[0]
        made.name, made.type, made.shape = name, ir.TensorType(dtype), value.shape
        return made


def _rounded(array: AnyArray) -> AnyArray:
    """As halves; infinities (the padding of max-pooling) stay what they are."""
    return np.asarray(array, np.float16)
