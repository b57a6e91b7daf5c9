"""The two ends of a classifier: its image input and its logits; and the nodes that choose the explained class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from camrt.bundle import MAX_RANK, Head
from camrt.errors import UnsupportedModelError
from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import carries_gradient, is_float, is_known, nominal_shape
from camrt.exporter.vjp.registry import int_attribute, ints_attribute

CLASS_INDEX = "class_index"
CLASS_INDEX_OUT = "class_index_out"
_HEADS: dict[str, Head] = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
_COLOURS = (1, 3, 4)
_PASS_THROUGH = frozenset(
    {"Identity", "Flatten", "Reshape", "Squeeze", "Cast", "Dropout", "QuantizeLinear", "DequantizeLinear"}
)


_CHANNELS_FIRST = frozenset(
    {
        *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LRN"),
        *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "DepthToSpace", "SpaceToDepth"),
    }
)
_KEEPS_AXES = frozenset(
    {
        *("Identity", "Cast", "Dropout", "QuantizeLinear", "DequantizeLinear", "Clip", "Pad", "Relu", "Tanh"),
        *("Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Sigmoid"),
    }
)


@dataclass(frozen=True, slots=True)
class ClassifierHead:
    """Where the logits are.

    Attributes:
        logits: (N, K), before softmax; (N, K, 1, 1) where the source flattens after its softmax.
        output: the graph output that holds the logits or what the head made of them.
        kind: what the graph ends in.
    """

    logits: ir.Value
    output: ir.Value
    kind: Head

    @property
    def num_classes(self) -> int:
        """K."""
        return nominal_shape(self.logits)[1]


def find_image_input(graph: ir.Graph) -> ir.Value:
    """The only floating-point input with four axes.

    Raises:
        UnsupportedModelError: there is none, or more than one.
    """
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    images = [value for value in inputs if is_float(value) and value.shape is not None and len(value.shape) == 4]
    if len(images) == 1 and len(inputs) == 1:
        return images[0]
    described = ", ".join(f"{value.name} {value.dtype}{value.shape}" for value in inputs) or "none"
    raise UnsupportedModelError(
        f"The model needs exactly one input, a float image (N, C, H, W) or (N, H, W, C); it has: {described}.",
        "Export the classifier alone, without other inputs and without preprocessing of encoded images.",
    )


def image_layout(image: ir.Value) -> Literal["NCHW", "NHWC"]:
    """How the model takes its image.

    1. One of the second and the last axis can hold colours (1, 3 or 4 of them): it does.
    2. Both can: NHWC where everything that reads the image moves the last axis to the second place, else NCHW.
    3. Neither can: what the nodes that read the image take it for.

    Raises:
        UnsupportedModelError: those of case 3 do not say, or contradict each other.
    """
    assert image.shape is not None
    first, last = image.shape[1] in _COLOURS, image.shape[3] in _COLOURS
    if first != last:
        return "NCHW" if first else "NHWC"
    readings = set(_readings(image))
    if len(readings) == 1 and "?" not in readings:
        return "NCHW" if "NCHW" in readings else "NHWC"
    if first:
        return "NCHW"
    raise UnsupportedModelError(
        f"Which axis of the input {image.name!r} {image.shape} holds the channels cannot be told.",
        "Begin the model with a Conv, for channels first, or with Transpose(0, 3, 1, 2), for channels last.",
    )


def _readings(value: ir.Value) -> Iterator[Literal["NCHW", "NHWC", "?"]]:
    """What each node that reads an image takes it for; through nodes that keep its axes."""
    for node, _ in value.uses():
        permutation = tuple(ints_attribute(node, "perm", ()))
        if node.op_type in _CHANNELS_FIRST or (node.op_type == "Transpose" and permutation == (0, 2, 3, 1)):
            yield "NCHW"
        elif node.op_type == "Transpose" and permutation == (0, 3, 1, 2):
            yield "NHWC"
        elif node.op_type in _KEEPS_AXES:
            yield from _readings(node.outputs[0])
        elif node.op_type != "Shape":
            yield "?"


def convolved_channels(image: ir.Value) -> int:
    """The channels that the first Conv behind ``image`` reads, for an input that leaves them open.

    Raises:
        UnsupportedModelError: there is no Conv with a constant kernel.
    """
    waiting, seen = [image], {image}
    while waiting:
        for node, index in waiting.pop(0).uses():
            kernel = node.inputs[1] if len(node.inputs) > 1 else None
            if node.op_type == "Conv" and index == 0 and kernel is not None and kernel.const_value is not None:
                return int(kernel.const_value.shape.numpy()[1]) * int_attribute(node, "group", 1)
            if node.op_type in _KEEPS_AXES or node.op_type == "Transpose":
                waiting += [output for output in node.outputs if output not in seen]
                seen.update(node.outputs)
    raise UnsupportedModelError(
        f"The input {image.name!r} {image.shape} leaves the number of channels open.",
        "Export the source model with a fixed number of channels.",
    )


def find_head(graph: ir.Graph, output_name: str | None = None) -> ClassifierHead:
    """The class output, and the logits behind its softmax or sigmoid.

    Args:
        graph: a graph with inferred shapes.
        output_name: the class output; None takes the first float output of shape (N, K), or else (N, K, 1, 1).

    Raises:
        UnsupportedModelError: no output qualifies.
    """
    outputs = [value for value in graph.outputs if output_name in (None, value.name)]
    flat = [output for output in outputs if is_float(output) and is_known(output) and _has_no_positions(output)]
    for output in sorted(flat, key=lambda value: len(nominal_shape(value))):
        logits, kind = _strip_head(output)
        return ClassifierHead(logits, output, kind)
    described = ", ".join(f"{value.name} {value.shape}" for value in graph.outputs)
    if not outputs:
        raise UnsupportedModelError(
            f"The model has no output called {output_name!r}; its outputs are: {described}.",
            "Name one of them with logits=..., or leave it out.",
        )
    raise UnsupportedModelError(
        f"The model has no class output of shape (N, K); its outputs are: {described}.{_untyped(graph)}",
        "Name the class output with logits=..., or export a model that ends in one number a class.",
    )


def _untyped(graph: ir.Graph) -> str:
    """A sentence about the first node that inference gave up on; nothing where there is none."""
    unknown = (node for node in graph if any(value.shape is None or value.dtype is None for value in node.outputs))
    node = next(unknown, None)
    if node is None:
        return ""
    return f" Inference finds no type or shape for {node.outputs[0].name!r}, what the operator {node.op_type} makes."


def _has_no_positions(value: ir.Value) -> bool:
    """Whether the shape is (N, K), or (N, K, 1, ...)."""
    shape = nominal_shape(value)
    return len(shape) >= 2 and set(shape[2:]) <= {1}


def _strip_head(output: ir.Value) -> tuple[ir.Value, Head]:
    """Steps back over a final Softmax, LogSoftmax or Sigmoid, and over nodes that change no number."""
    value = output
    while (node := value.producer()) is not None and node.op_type in _PASS_THROUGH | _HEADS.keys():
        source = node.inputs[0]
        if source is None or not carries_gradient(source) or not is_known(source):
            break
        if node.op_type in _HEADS:
            return (source, _HEADS[node.op_type]) if _is_class_axis(node, source, output) else (output, "logits")
        value = source
    return output, "logits"


def _is_class_axis(node: ir.Node, source: ir.Value, output: ir.Value) -> bool:
    """Whether a head works on (N, K) or (N, K, 1, ...), and normalises over K."""
    shape = nominal_shape(source)
    over_classes = node.op_type == "Sigmoid" or int_attribute(node, "axis", -1) % len(shape) == 1
    return len(shape) >= 2 and over_classes and shape[:2] == nominal_shape(output)[:2] and set(shape[2:]) <= {1}


def flat_logits(op: OpBuilder, head: ClassifierHead) -> ir.Value:
    """The logits as (N, K)."""
    if len(nominal_shape(head.logits)) == 2:
        return head.logits
    assert head.logits.shape is not None
    flat = op("Flatten", head.logits, axis=1)
    flat.type, flat.shape = head.logits.type, ir.Shape([head.logits.shape[0], head.num_classes])
    return flat


def append_class_selection(op: OpBuilder, logits: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Appends the choice of the explained classes, given the logits (N, K).

    Returns:
        class_index (M) int64, a new graph input: a class, or -r for the class of that image's r-th highest logit;
        class_index_out (M), with ranks resolved;
        logits_cotangent (M, K), one at the explained class and zero elsewhere.
    """
    classes = nominal_shape(logits)[1]
    ranks = min(classes, MAX_RANK)
    class_index = ir.Value(name=CLASS_INDEX, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["M"]))
    op.graph.inputs.append(class_index)
    ranked = _top_classes(op, logits, ranks)
    column = op("Unsqueeze", class_index, op.ints([1]))
    rank = op("Max", op("Sub", op("Neg", column), op.ints([1])), op.constant_int(0))
    rank = op("Min", rank, op.constant_int(ranks - 1))  # no Clip: TensorRT takes floats only there
    repeated = op("Expand", ranked, op("Concat", op("Shape", class_index), op.ints([1]), axis=0))
    by_rank = op("Squeeze", op("GatherElements", repeated, rank, axis=1), op.ints([1]))
    resolved = op("Where", op("Less", class_index, op.constant_int(0)), by_rank, class_index)
    resolved.name, resolved.type, resolved.shape = CLASS_INDEX_OUT, class_index.type, ir.Shape(["M"])
    ends = op.constant(np.asarray([0.0, 1.0], np.float32))
    one_hot = op("OneHot", resolved, op.constant_int(classes), ends, axis=-1)
    if op.dtype != ir.DataType.FLOAT:
        one_hot = op("Cast", one_hot, to=int(op.dtype))
    op.one_hot = (one_hot, resolved)
    return class_index, resolved, one_hot


def _top_classes(op: OpBuilder, logits: ir.Value, k: int) -> ir.Value:
    """Classes by falling logit, (N, k) int64."""
    node = ir.node("TopK", [logits, op.ints([k])], {"axis": -1, "largest": 1, "sorted": 1}, num_outputs=2)
    node.name = "camrt/TopK"
    node.outputs[0].name, node.outputs[1].name = "camrt/TopK_values", "camrt/TopK_indices"
    op.graph.append(node)
    return node.outputs[1]
