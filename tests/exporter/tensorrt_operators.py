"""What TensorRT's ONNX parser takes (10.x and 11.x), as a check of graphs: no TensorRT needed.

The lists follow the parser's public operator tables. They hold what a classifier or its backward part may need, not
everything that TensorRT knows; where TensorRT is installed, ``OnnxParser.supports_operator()`` has the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ADDED = "camrt/"
MAX_TOP_K = 3839

_LISTED = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast CastLike Ceil Celu Clip Concat Constant
    ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp
    Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater
    GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization LRN LayerNormalization
    LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Mean Min Mish Mul Neg Not OneHot Or PRelu Pad Pow
    QuantizeLinear Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu Shape Sigmoid Sign
    Sin Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh ThresholdedRelu Tile TopK
    Transpose Unsqueeze Where Xor
"""
_TAKEN = frozenset(_LISTED.split())
_RESIZE_COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
_TYPES = frozenset(
    {
        TensorProto.BOOL,
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
    }
)


@dataclass(frozen=True)
class _Context:
    """What a rule may ask about the values of a graph."""

    constants: Mapping[str, np.ndarray]
    types: Mapping[str, int]

    def constant(self, node: onnx.NodeProto, *indices: int) -> str:
        """A reason where one of these inputs is given and no constant."""
        given = [node.input[index] for index in indices if index < len(node.input) and node.input[index]]
        return next((f"input {name!r} is no constant" for name in given if name not in self.constants), "")


_Rule = Callable[[onnx.NodeProto, _Context], str]


def forbidden_operators(path: Path) -> list[str]:
    """What the nodes that the export added to the bundle at ``path`` use and TensorRT does not take; empty if none."""
    return _findings(path, added=True)


def source_operators(path: Path) -> list[str]:
    """The same of the nodes that the source model brought along: its own matter, and not the export's."""
    return _findings(path, added=False)


def _findings(path: Path, added: bool) -> list[str]:
    model = onnx.load(path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    constants.update(
        (node.output[0], numpy_helper.to_array(helper.get_node_attr_value(node, "value")))
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    )
    context = _Context(constants, _element_types(model))
    nodes = [node for node in model.graph.node if node.name.startswith(ADDED) == added]
    found = [(node, _reason(node, context)) for node in nodes]
    return [f"{node.op_type} ({node.name or node.output[0]}): {reason}" for node, reason in found if reason]


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _reason(node: onnx.NodeProto, context: _Context) -> str:
    if node.domain not in ("", "ai.onnx"):
        return f"the domain {node.domain}"
    if node.op_type not in _TAKEN:
        return "not taken"
    strange = [name for name in (*node.input, *node.output) if context.types.get(name, TensorProto.FLOAT) not in _TYPES]
    if strange:
        return f"{strange[0]!r} has the type {TensorProto.DataType.Name(context.types[strange[0]])}"
    rule = _RULES.get(node.op_type)
    return "" if rule is None else rule(node, context)


def _attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    found = next((item for item in node.attribute if item.name == name), None)
    value = default if found is None else helper.get_attribute_value(found)
    return value.decode() if isinstance(value, bytes) else value


def _constant(*indices: int) -> _Rule:
    return lambda node, context: context.constant(node, *indices)


def _one_output(node: onnx.NodeProto, _context: _Context) -> str:
    return "more than one output" if sum(map(bool, node.output)) > 1 else ""


def _window(node: onnx.NodeProto, context: _Context) -> str:
    dilated = any(rate != 1 for rate in _attribute(node, "dilations", ()))  # type: ignore[attr-defined]
    return "dilated" if dilated else _one_output(node, context)


def _convolution(node: onnx.NodeProto, context: _Context) -> str:
    if any(pad < 0 for pad in _attribute(node, "pads", ())):  # type: ignore[attr-defined]
        return "negative padding"
    weight = context.constants.get(node.input[1])
    return "" if weight is None or 3 <= weight.ndim <= 5 else f"a kernel of rank {weight.ndim - 2}"


def _float_only(node: onnx.NodeProto, context: _Context) -> str:
    kind = context.types.get(node.input[0], TensorProto.FLOAT)
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return "" if kind in floats else f"takes floats only, not {TensorProto.DataType.Name(kind)}"


def _resize(node: onnx.NodeProto, _context: _Context) -> str:
    mode, antialias = _attribute(node, "mode", "nearest"), _attribute(node, "antialias", 0)
    if mode not in ("nearest", "linear") or antialias:
        return f"mode {mode}, antialias {antialias}"
    coordinates = _attribute(node, "coordinate_transformation_mode", "half_pixel")
    return "" if coordinates in _RESIZE_COORDINATES else f"coordinates {coordinates}"


def _top_k(node: onnx.NodeProto, context: _Context) -> str:
    k = context.constants.get(node.input[1])
    if k is None or not _attribute(node, "sorted", 1):
        return "k is no constant, or the result is not sorted"
    return "" if int(k.max()) <= MAX_TOP_K else f"k = {int(k.max())}"


def _no_reduction(node: onnx.NodeProto, _context: _Context) -> str:
    reduction = _attribute(node, "reduction", "none")
    return "" if reduction == "none" else f"reduction {reduction}"


def _zero_point(node: onnx.NodeProto, context: _Context) -> str:
    point = context.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    return "" if point is not None and not point.any() else "a zero point other than 0"


def _not_training(node: onnx.NodeProto, context: _Context) -> str:
    mode = context.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.array(False)
    return "" if mode is not None and not mode.any() else "training mode"


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("MaxPool", "AveragePool"), _window),
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    **dict.fromkeys(("Clip", "Sqrt"), _float_only),
    **dict.fromkeys(("BatchNormalization", "LayerNormalization", "InstanceNormalization"), _one_output),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "CumSum", "OneHot"), _constant(1)),
    **dict.fromkeys((name for name in _TAKEN if name.startswith("Reduce")), _constant(1)),
    **dict.fromkeys(("ScatterElements", "ScatterND"), _no_reduction),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _zero_point),
    "Slice": _constant(3),
    "Pad": _constant(3),
    "Resize": _resize,
    "TopK": _top_k,
    "Dropout": _not_training,
}
