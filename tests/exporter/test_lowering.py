"""Which operators the input gradient of a Conv is written with; its numbers are in test_vjp."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from onnx import TensorProto

from tests.exporter.test_vjp import conv, gradient_model

THREE = (4, 3, 3, 3)
PADS = {"pads": [1, 1, 1, 1]}


def backward(shape: tuple[int, ...], weight: tuple[int, ...], **attributes: Any) -> Counter[str]:
    _, model = gradient_model(conv("case", shape, weight, **attributes), TensorProto.FLOAT)
    return Counter(node.op_type for node in model.graph.node if node.name.startswith("camrt/"))


@pytest.mark.parametrize(
    ("shape", "weight", "attributes"),
    [
        ((3, 8, 8), THREE, PADS),
        ((3, 8, 8), THREE, {}),
        ((3, 9, 8), THREE, {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
        ((4, 8, 8), (4, 1, 3, 3), {**PADS, "group": 4}),
        ((6, 8, 8), (4, 3, 3, 3), {**PADS, "group": 2}),
    ],
    ids=["padded", "bare", "dilated", "depthwise", "groups"],
)
def test_a_gradient_at_stride_one_is_one_conv(shape: tuple, weight: tuple, attributes: dict) -> None:
    ops = backward(shape, weight, **attributes)
    assert ops["Conv"] == 1
    assert not ops["ConvTranspose"]


def test_a_pointwise_gradient_needs_no_flipped_kernel() -> None:
    assert backward((3, 8, 8), (4, 3, 1, 1)).keys() <= {"Conv", "Transpose", "Identity"}


@pytest.mark.parametrize(
    ("shape", "weight", "attributes", "convolutions"),
    [
        ((3, 8, 8), THREE, {**PADS, "strides": [2, 2]}, 4),
        ((3, 7, 9), THREE, {**PADS, "strides": [2, 2]}, 4),
        ((3, 8, 8), (4, 3, 1, 1), {"strides": [2, 2]}, 1),
        ((3, 8, 8), (4, 3, 2, 2), {"strides": [2, 2]}, 1),
        ((3, 8, 8), (4, 3, 4, 4), {"strides": [4, 4]}, 1),
        ((3, 8, 8), THREE, {**PADS, "strides": [2, 1]}, 2),
    ],
    ids=["even", "odd", "pointwise", "patches2", "patches4", "one-axis"],
)
def test_a_strided_gradient_is_a_conv_a_phase(shape: tuple, weight: tuple, attributes: dict, convolutions: int) -> None:
    ops = backward(shape, weight, **attributes)
    assert ops["Conv"] == convolutions
    assert not ops["ConvTranspose"]


@pytest.mark.parametrize(
    ("weight", "attributes"),
    [
        (THREE, {"pads": [2, 2, 2, 2], "dilations": [2, 2], "strides": [2, 2]}),
        ((4, 3, 1, 1), {"strides": [128, 128]}),
        ((4, 3, 2, 2), {"pads": [2, 3, 2, 3]}),
    ],
    ids=["dilated-strided", "absurd-stride", "wider-than-the-kernel"],
)
def test_anything_else_is_a_conv_transpose_without_pads(weight: tuple, attributes: dict) -> None:
    _, model = gradient_model(conv("case", (3, 9, 9), weight, **attributes), TensorProto.FLOAT)
    (node,) = (node for node in model.graph.node if node.op_type == "ConvTranspose")
    assert not [item for item in node.attribute if item.name in ("pads", "output_padding", "auto_pad")]
