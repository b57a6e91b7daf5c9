"""A network that exports in a moment: three convolutions, two poolings, global average pooling, softmax over 4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEIGHT, WIDTH, CLASSES = 32, 40, 4


def write_small_network(path: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    weights, nodes, value = [], [], "image"

    def weight(name: str, *shape: int) -> str:
        scale = 1.5 / np.sqrt(np.prod(shape[1:]))
        weights.append(numpy_helper.from_array((rng.standard_normal(shape) * scale).astype(np.float32), name))
        return name

    def add(op: str, name: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    for stage, (before, after) in enumerate([(3, 8), (8, 16), (16, 16)], 1):
        kernel = weight(f"w{stage}", after, before, 3, 3)
        bias = weight(f"b{stage}", after)
        value = add("Conv", f"conv{stage}", value, kernel, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        value = add("Relu", f"stage{stage}", value)
        if stage < 3:
            value = add("MaxPool", f"pool{stage}", value, kernel_shape=[2, 2], strides=[2, 2])
    value = add("Flatten", "features", add("GlobalAveragePool", "average", value))
    logits = add("Gemm", "logits", value, weight("fc", CLASSES, 16), weight("fc_bias", CLASSES), transB=1)
    add("Softmax", "probabilities", logits, axis=-1)
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", CLASSES])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
