from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from camrt.errors import UnsupportedModelError
from camrt.exporter.head import find_head, find_image_input, image_layout
from tests.exporter.graphs import model_proto


def graph(
    *nodes: onnx.NodeProto, shape: tuple[int | str, ...] = ("N", 6), outputs: tuple[str, ...] = ("out",)
) -> ir.Graph:
    """Nodes on an input x; shapes inferred."""
    constants = {"axes": np.array([2, 3]), "to": np.array([-1, 6]), "w": np.ones((6, 4), np.float32)}
    proto = model_proto(list(nodes), {"x": shape}, dict.fromkeys(outputs, ()), constants)
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True)).graph


def node(op: str, *values: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, list(values[:-1]), [values[-1]], op, **attributes)


FLAT, MAP = ("N", 6), ("N", 6, 1, 1)
MATMUL = node("MatMul", "x", "w", "logits")


@pytest.mark.parametrize(
    ("nodes", "shape", "logits", "kind"),
    [
        ([node("MatMul", "x", "w", "out")], FLAT, "out", "logits"),
        ([MATMUL, node("Softmax", "logits", "out", axis=1)], FLAT, "logits", "softmax"),
        ([MATMUL, node("Softmax", "logits", "out")], FLAT, "logits", "softmax"),
        ([MATMUL, node("LogSoftmax", "logits", "out", axis=-1)], FLAT, "logits", "log_softmax"),
        ([MATMUL, node("Sigmoid", "logits", "out")], FLAT, "logits", "sigmoid"),
        ([MATMUL, node("Softmax", "logits", "p"), node("Identity", "p", "out")], FLAT, "logits", "softmax"),
        ([MATMUL, node("Softmax", "logits", "p"), node("Cast", "p", "out", to=TensorProto.FLOAT)], FLAT, "logits", "softmax"),
        ([MATMUL, node("Softmax", "logits", "out", axis=0)], FLAT, "out", "logits"),
        ([MATMUL, node("Relu", "logits", "out")], FLAT, "out", "logits"),
        ([MATMUL, node("Softmax", "logits", "p"), node("Neg", "p", "out")], FLAT, "out", "logits"),
        ([node("Relu", "x", "r"), node("Softmax", "r", "p", axis=1), node("Flatten", "p", "out")], MAP, "r", "softmax"),
        ([node("Relu", "x", "r"), node("Sigmoid", "r", "p"), node("Reshape", "p", "to", "out")], MAP, "r", "sigmoid"),
        ([node("Relu", "x", "r"), node("Softmax", "r", "p", axis=3), node("Flatten", "p", "out")], MAP, "out", "logits"),
        ([node("Relu", "x", "r"), node("Squeeze", "r", "axes", "out")], MAP, "out", "logits"),
        ([node("Softmax", "x", "p", axis=1), node("Flatten", "p", "out")], ("N", 3, 1, 2), "out", "logits"),
    ],
)  # fmt: skip
def test_logits_behind_heads(nodes: list[onnx.NodeProto], shape: tuple, logits: str, kind: str) -> None:
    head = find_head(graph(*nodes, shape=shape))
    assert (head.logits.name, head.output.name, head.kind) == (logits, "out", kind)


def test_the_first_output_of_two_axes_or_the_one_named() -> None:
    nodes = [MATMUL, node("Relu", "logits", "other"), node("Unsqueeze", "x", "axes", "map")]
    both = graph(*nodes, outputs=("map", "logits", "other"))
    assert find_head(both).output.name == "logits"
    assert find_head(both, "other").output.name == "other"
    assert find_head(both).num_classes == 4
    assert find_head(both, "map").num_classes == 6
    with pytest.raises(UnsupportedModelError, match=r"no output called 'nowhere'.*map.*logits.*other"):
        find_head(both, "nowhere")


def test_an_integer_output_is_no_class_output() -> None:
    with pytest.raises(UnsupportedModelError, match="no class output"):
        find_head(graph(node("ArgMax", "x", "out", axis=1)))


@pytest.mark.parametrize(("dtype", "shape"), [(TensorProto.FLOAT, ["N", 3, 8, 8]), (TensorProto.FLOAT16, [1, 1, 8, 8])])
def test_the_image_input(dtype: int, shape: list) -> None:
    proto = model_proto([node("Relu", "x", "out")], {"x": shape}, {"out": shape}, {}, dtype=dtype)
    assert find_image_input(ir.from_proto(proto).graph).name == "x"


@pytest.mark.parametrize(
    ("inputs", "dtype", "match"),
    [
        ({"x": ["N", 3, 8]}, TensorProto.FLOAT, "exactly one"),
        ({"x": ["N", 3, 8, 8]}, TensorProto.UINT8, "UINT8"),
        ({"x": ["N", 3, 8, 8], "size": [2]}, TensorProto.FLOAT, "size"),
    ],
)
def test_other_inputs_are_refused(inputs: dict, dtype: int, match: str) -> None:
    proto = model_proto([node("Identity", "x", "out")], inputs, {"out": inputs["x"]}, {}, dtype=dtype)
    with pytest.raises(UnsupportedModelError, match=match):
        find_image_input(ir.from_proto(proto).graph)


@pytest.mark.parametrize(
    ("shape", "op", "layout"),
    [
        (["N", 3, 8, 8], node("Relu", "x", "out"), "NCHW"),
        (["N", 3, "H", "W"], node("Relu", "x", "out"), "NCHW"),
        (["N", 8, 8, 3], node("Relu", "x", "out"), "NHWC"),
        (["N", "H", "W", 3], node("Relu", "x", "out"), "NHWC"),
        ([1, 28, 28, 1], node("Relu", "x", "out"), "NHWC"),
        (["N", 3, 8, 4], node("Relu", "x", "out"), "NCHW"),
        (["N", 3, 8, 4], node("Transpose", "x", "out", perm=[0, 3, 1, 2]), "NHWC"),
        (["N", 3, 8, 4], node("Transpose", "x", "out", perm=[0, 2, 3, 1]), "NCHW"),
        (["N", 3, 8, 4], node("Transpose", "x", "out"), "NCHW"),
        (["N", 64, 48, 13], node("Transpose", "x", "out", perm=[0, 3, 1, 2]), "NHWC"),
        (["N", 13, 64, 48], node("MaxPool", "x", "out", kernel_shape=[2, 2]), "NCHW"),
        (["N", "C", "H", "W"], node("MaxPool", "x", "out", kernel_shape=[2, 2]), "NCHW"),
        (["N", 13, 64, 48], node("Transpose", "x", "out", perm=[0, 2, 3, 1]), "NCHW"),
    ],
)
def test_the_layout_of_the_image(shape: list, op: onnx.NodeProto, layout: str) -> None:
    proto = model_proto([op], {"x": shape}, {"out": ["N", "a", "b", "c"]}, {})
    assert image_layout(ir.from_proto(proto).graph.inputs[0]) == layout


def test_the_layout_is_seen_behind_a_normalisation_of_the_image() -> None:
    nodes = [node("Sub", "x", "mean", "s"), node("Transpose", "s", "out", perm=[0, 3, 1, 2])]
    proto = model_proto(nodes, {"x": ["N", 64, 48, 13]}, {"out": []}, {"mean": np.zeros(13, np.float32)})
    assert image_layout(ir.from_proto(proto).graph.inputs[0]) == "NHWC"


@pytest.mark.parametrize(
    "ops",
    [
        [node("Flatten", "x", "out")],
        [node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("MaxPool", "x", "out", kernel_shape=[2, 2])],
    ],
    ids=["nothing says", "both are said"],
)
def test_a_layout_that_cannot_be_told_is_refused(ops: list[onnx.NodeProto]) -> None:
    proto = model_proto(ops, {"x": ["N", 64, 48, 13]}, {"out": []}, {})
    with pytest.raises(UnsupportedModelError, match="channels cannot be told") as caught:
        image_layout(ir.from_proto(proto).graph.inputs[0])
    assert "Transpose(0, 3, 1, 2)" in caught.value.next_step
