"""How much arithmetic a set of outputs takes, from the shapes of a graph."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import onnx

from camrt.bundle import Bundle
from camrt.errors import InvalidModelError
from camrt.runtime.pruning import PrunableModel

_BATCH = 1


def multiply_adds(path: str | os.PathLike[str], layers: Sequence[str], derivatives: int = 1) -> int:
    """Multiply-adds of one image in convolutions and matrix products; every other operator counts as none.

    Args:
        path: a bundle.
        layers: target layers whose gradients are computed too; none for a plain prediction.
        derivatives: 0, 1 or 2, as in Session.run.

    Raises:
        InvalidModelError, BundleError: the file cannot be used, or its shapes cannot be inferred.
        LayerNotFoundError: a name that the bundle does not have.
        MethodUnavailableError: second derivatives that the bundle does not have.
    """
    manifest = Bundle.open(path).manifest
    targets = [manifest.layer(name) for name in layers]
    outputs = [manifest.logits, *(name for target in targets for name in target.arrays(derivatives))]
    proto = onnx.load_from_string(PrunableModel(path).pruned(list(dict.fromkeys(outputs)))[0])
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = _BATCH
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise InvalidModelError(
            f"The shapes of {path} cannot be inferred: {error}.", "Export the model again."
        ) from error
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    shapes.update({tensor.name: list(tensor.dims) for tensor in graph.initializer})
    return sum(_node_multiply_adds(node, shapes) for node in graph.node)


def _node_multiply_adds(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    """Elements of the output (of the input for ConvTranspose) times the terms of the sum behind each."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    left, right, out = (shapes.get(name, []) for name in (node.input[0], node.input[1], node.output[0]))
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(right[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(out) * left[0 if transposed else -1]
