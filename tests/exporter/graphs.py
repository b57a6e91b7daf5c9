"""Small ONNX graphs for the exporter's tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18


def initializers(arrays: Mapping[str, np.ndarray]) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]


def model_proto(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Mapping[str, Sequence[Any]],
    constants: Mapping[str, np.ndarray],
    opset: int = OPSET,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, dtype, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, list(shape)) for name, shape in outputs.items()],
        initializers(constants),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def small_classifier(
    path: Path,
    head: str = "logits",
    batch: int | str = "N",
    size: tuple[int | str, int | str] = (16, 16),
    extra_op: str | None = None,
    seed: int = 0,
    opset: int = OPSET,
) -> Path:
    """conv 3-4 stride 2, relu, conv 4-4, relu [stage 8x8]; conv 4-6 stride 2, relu, conv 6-6, relu [4x4]; pool, linear.

    ``extra_op`` puts a one-input operator between the two stages.
    """
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {
        "w1": weight(4, 3, 3, 3),
        "w2": weight(4, 4, 3, 3),
        "w3": weight(6, 4, 3, 3),
        "w4": weight(6, 6, 3, 3),
        "w5": weight(5, 6),
        "b5": weight(5),
    }
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    middle = "r2" if extra_op is None else "extra"
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], "conv1", strides=[2, 2], **same),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", **same),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        *([] if extra_op is None else [helper.make_node(extra_op, ["r2"], ["extra"], "extra_node")]),
        helper.make_node("Conv", [middle, "w3"], ["c3"], "conv3", strides=[2, 2], **same),
        helper.make_node("Relu", ["c3"], ["r3"], "relu3"),
        helper.make_node("Conv", ["r3", "w4"], ["c4"], "conv4", **same),
        helper.make_node("Relu", ["c4"], ["r4"], "relu4"),
        helper.make_node("GlobalAveragePool", ["r4"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "w5", "b5"], ["logits"], "linear", transB=1),
    ]
    output = "logits"
    if head != "logits":
        output = "probabilities"
        nodes.append(helper.make_node(head, ["logits"], [output], "head"))
    proto = model_proto(nodes, {"image": [batch, 3, *size]}, {output: [batch, 5]}, constants, opset)
    onnx.save(proto, path)
    return path


class GraphWriter:
    """Writes a model node by node; ``add`` returns the node's output, which is called like the node."""

    def __init__(self, seed: int = 0, opset: int = OPSET) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def weight(self, name: str, *shape: int) -> str:
        scale = 1.4 / np.sqrt(np.prod(shape[1:]))
        return self.constant(name, (self.rng.standard_normal(shape) * scale).astype(np.float32))

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants[name] = array
        return name

    def add(self, op: str, name: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output or name], name=name, **attributes))
        return output or name

    def conv(
        self,
        name: str,
        value: str,
        channels: tuple[int, int],
        size: int = 3,
        stride: int = 1,
        group: int = 1,
        **more: Any,
    ) -> str:
        """A Conv of ``channels`` (in, out) with the padding that keeps the size at stride 1."""
        weight = self.weight(f"{name}_weight", channels[1], channels[0] // group, size, size)
        attributes = {"kernel_shape": [size] * 2, "pads": [size // 2] * 4, "strides": [stride] * 2, "group": group}
        return self.add("Conv", name, value, weight, **attributes, **more)

    def classify(self, value: str, channels: int, classes: int = 5) -> str:
        """Average over positions and a linear layer; the output is "logits"."""
        flat = self.add("Flatten", "flat", self.add("GlobalAveragePool", "average", value))
        weight, bias = self.weight("fc", classes, channels), self.weight("fc_bias", classes)
        return self.add("Gemm", "logits", flat, weight, bias, transB=1)

    def save(
        self,
        path: Path,
        shape: Sequence[int | str] = ("N", 3, 32, 32),
        outputs: Mapping[str, Sequence[Any]] | None = None,
    ) -> Path:
        outputs = {"logits": [shape[0], 5]} if outputs is None else outputs
        onnx.save(model_proto(self.nodes, {"image": shape}, outputs, self.constants, self.opset), path)
        return path


def residual_classifier(path: Path) -> Path:
    """Stem 32 to 8 (Conv and MaxPool), three stages of two residual blocks at 8, 4 and 2: stage1, stage2, stage3."""
    w = GraphWriter()
    value = w.add("Relu", "stem_relu", w.conv("stem", "image", (3, 8), 7, 2))
    value = w.add("MaxPool", "stem_pool", value, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 8
    for stage, width in enumerate((8, 12, 16), 1):
        for block in (1, 2):
            stride = 2 if stage > 1 and block == 1 else 1
            name = f"s{stage}b{block}"
            inner = w.add("Relu", f"{name}_relu", w.conv(f"{name}_conv1", value, (channels, width), stride=stride))
            inner = w.conv(f"{name}_conv2", inner, (width, width))
            skip = value if stride == 1 else w.conv(f"{name}_skip", value, (channels, width), 1, stride)
            output = f"stage{stage}" if block == 2 else f"{name}_out"
            value = w.add("Relu", f"{name}_end", w.add("Add", f"{name}_add", inner, skip), output=output)
            channels = width
    w.classify(value, channels)
    return w.save(path)


def mobile_classifier(path: Path) -> Path:
    """Inverted residuals: stem 32 to 16, blocks at 16, 8 and 4; the strided depthwise Conv is inside a block."""
    w = GraphWriter()
    value = w.add("Clip", "stem_act", w.conv("stem", "image", (3, 8), 3, 2), w.constant("zero", np.float32(0)))
    w.constant("six", np.float32(6))
    channels = 8
    for number, (width, stride) in enumerate([(8, 1), (8, 1), (12, 2), (12, 1), (16, 2), (16, 1)], 1):
        name, hidden = f"block{number}", 3 * channels
        inner = w.add("Clip", f"{name}_act1", w.conv(f"{name}_expand", value, (channels, hidden), 1), "zero", "six")
        inner = w.conv(f"{name}_depthwise", inner, (hidden, hidden), 3, stride, hidden)
        inner = w.add("Clip", f"{name}_act2", inner, "zero", "six")
        inner = w.conv(f"{name}_project", inner, (hidden, width), 1)
        keeps = stride == 1 and width == channels
        value = w.add("Add", f"{name}_out", inner, value) if keeps else w.add("Identity", f"{name}_out", inner)
        channels = width
    w.classify(value, channels)
    return w.save(path)


def plain_classifier(path: Path, stages: int = 5, size: int = 64) -> Path:
    """VGG-like: two Convs and a MaxPool a stage, the first stage at the image's resolution; stage ends are relu<s>b."""
    w = GraphWriter()
    value, channels = "image", 3
    for stage in range(1, stages + 1):
        for part in "ab":
            value = w.add("Relu", f"relu{stage}{part}", w.conv(f"conv{stage}{part}", value, (channels, 6)))
            channels = 6
        value = w.add("MaxPool", f"pool{stage}", value, kernel_shape=[2, 2], strides=[2, 2])
    w.classify(value, channels)
    return w.save(path, ("N", 3, size, size))


def channels_last_classifier(path: Path, height: int = 16, width: int = 24) -> Path:
    """ConvNeXt-like: patches of 4, blocks that work on (N, h, w, C) between two Transposes, and one that ends there.

    Values: "block" is NCHW after the residual Add; "tail" (N, h, w, C) comes from elementwise nodes and a
    LayerNormalization after a Transpose, and everything passes through it.
    """
    w = GraphWriter()
    patches = w.add("Conv", "patches", "image", w.weight("patch", 6, 3, 4, 4), kernel_shape=[4, 4], strides=[4, 4])
    last = w.add("Transpose", "to_last", w.conv("mix", patches, (6, 6), 3, group=6), perm=[0, 2, 3, 1])
    last = w.add("LayerNormalization", "norm", last, w.weight("norm_scale", 6), axis=-1)
    last = w.add("MatMul", "wide", last, w.weight("wide_weight", 6, 12))
    last = w.add("MatMul", "narrow", w.add("Relu", "act", last), w.weight("narrow_weight", 12, 6))
    first = w.add("Add", "block", w.add("Transpose", "to_first", last, perm=[0, 3, 1, 2]), patches)
    again = w.add("Transpose", "to_last_again", first, perm=[0, 2, 3, 1])
    again = w.add("LayerNormalization", "norm2", again, w.weight("norm2_scale", 6), axis=-1)
    tail = w.add("Mul", "tail", again, w.weight("tail_scale", 6))
    pooled = w.add("ReduceMean", "pooled", tail, w.constant("axes", np.array([1, 2])), keepdims=0)
    w.add("Gemm", "logits", pooled, w.weight("fc", 5, 6), transB=1)
    return w.save(path, ("N", 3, height, width))


def edit_model(path: Path, edit: Any, destination: Path | None = None) -> Path:
    """Applies ``edit`` to the proto of a saved model."""
    proto = onnx.load(path)
    edit(proto)
    destination = destination or path
    onnx.save(proto, destination)
    return destination


def node_named(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in proto.graph.node if node.name == name)
