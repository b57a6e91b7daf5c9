"""Which operators gradients are written with; that their numbers are right is in test_vjp."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import camrt
from camrt.runtime import open_session
from tests.exporter.graphs import small_classifier
from tests.exporter.test_vjp import CASES, Case, conv, gradient_model

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
        ((32, 8, 8), (32, 16, 3, 3), {**PADS, "group": 2}),
    ],
    ids=["padded", "bare", "dilated", "depthwise", "wide-groups"],
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
        ((3, 8, 8), (260, 3, 1, 1), {"strides": [2, 2]}, 1),
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
        ((260, 3, 1, 1), {"strides": [128, 128]}),
        ((4, 3, 2, 2), {"pads": [2, 3, 2, 3]}),
        ((4, 3, 1, 1), {"strides": [2, 2]}),
        ((6, 3, 3, 3), {**PADS, "group": 2}),
        ((6, 3, 3, 3), {**PADS, "group": 2, "strides": [2, 2]}),
    ],
    ids=[
        "dilated-strided",
        "absurd-stride",
        "wider-than-the-kernel",
        "few-pointwise",
        "few-grouped",
        "grouped-strided",
    ],
)
def test_anything_else_is_a_conv_transpose(weight: tuple, attributes: dict) -> None:
    """Its paddings are neither negative nor as wide as the kernel, and add less than a stride."""
    channels = weight[1] * attributes.get("group", 1)
    _, model = gradient_model(conv("case", (channels, 9, 9), weight, **attributes), TensorProto.FLOAT)
    (node,) = (node for node in model.graph.node if node.op_type == "ConvTranspose")
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    assert "auto_pad" not in given
    assert all(0 <= pad < 3 for pad in given.get("pads", [0]))
    assert all(extra < max(attributes.get("strides", [1])) for extra in given.get("output_padding", [0]))


LOWERED = ("Conv", "MaxPool", "Relu", "LeakyRelu", "Clip", "HardSigmoid")


@pytest.mark.parametrize("case", [case for case in CASES if case.op in LOWERED], ids=Case.id)
def test_the_plain_form_gives_the_same_gradient(case: Case) -> None:
    """Also among equal values: x holds few different ones."""
    rng = np.random.default_rng(0)
    x = (rng.integers(-4, 5, (1, *case.shape)) / 2).astype(np.float32)
    results = []
    for lowering in (True, False):
        plain, model = gradient_model(case, TensorProto.FLOAT, lowering)
        session = onnxruntime.InferenceSession(plain.SerializeToString(), quiet())
        shape = session.run(None, {"x": x})[0].shape
        dy = np.random.default_rng(1).standard_normal((3, *shape[1:])).astype(np.float32)
        results.append(run(model, {"x": x, "dy": dy}))
    lowered, plain_form = results
    assert np.abs(plain_form).max() > 0.1
    np.testing.assert_allclose(lowered, plain_form, rtol=0, atol=1e-5 * np.abs(plain_form).max())


def quiet() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), quiet())
    names = {value.name for value in session.get_inputs()}
    return session.run(None, {name: array for name, array in feeds.items() if name in names})[0]


def max_pool(size: tuple[int, int], kernel: list[int], strides: list[int]) -> Counter[str]:
    case = Case("MaxPool", (2, *size), attributes={"kernel_shape": kernel, "strides": strides})
    _, model = gradient_model(case, TensorProto.FLOAT)
    return Counter(node.op_type for node in model.graph.node if node.name.startswith("camrt/"))


def test_windows_that_tile_the_input_need_no_slices() -> None:
    tiled = max_pool((6, 9), [2, 3], [2, 3])
    assert not {"Slice", "Concat", "ConvTranspose"} & tiled.keys()
    for size, kernel, strides in (((7, 8), [2, 2], [2, 2]), ((8, 8), [3, 3], [2, 2])):
        assert max_pool(size, kernel, strides)["Slice"]


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_a_window_over_the_whole_map_tiles_it_whatever_its_stride(op: str) -> None:
    for strides in ([1, 1], [7, 7], [2, 3]):
        case = Case(op, (2, 7, 7), attributes={"kernel_shape": [7, 7], "strides": strides})
        _, model = gradient_model(case, TensorProto.FLOAT)
        assert len([node for node in model.graph.node if node.name.startswith("camrt/")]) < 12


def added_operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node if node.name.startswith("camrt/"))


def test_the_gradient_of_the_last_layer_is_a_row_of_its_weight(tmp_path: Path) -> None:
    source = small_classifier(tmp_path / "model.onnx")
    lowered, plain = (camrt.export(source, tmp_path / f"{on}.onnx", lowering=on) for on in (True, False))
    assert not added_operators(lowered.path)["Gemm"]
    assert added_operators(plain.path)["Gemm"] == 1
    assert not added_operators(plain.path)["Resize"]
    assert added_operators(plain.path)["ConvTranspose"]
    assert not added_operators(lowered.path)["ConvTranspose"]
    images = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    names = lowered.manifest.layer_names
    runs = [open_session(bundle.path).run(images, np.array([-1, 3, -2, 0]), names) for bundle in (lowered, plain)]
    for left, right in zip(*(outputs.layers for outputs in runs), strict=True):
        assert np.abs(right.gradients).max() > 0
        np.testing.assert_allclose(left.gradients, right.gradients, rtol=0, atol=1e-6 * np.abs(right.gradients).max())


def test_without_lowering_a_gradient_has_the_operators_of_its_formula() -> None:
    cases = {
        "Conv": conv("case", (3, 8, 8), THREE, **PADS, strides=[2, 2]),
        "Relu": Case("Relu"),
    }
    wanted = {"Conv": {"ConvTranspose"}, "Relu": {"Greater", "Where"}}
    for name, case in cases.items():
        _, model = gradient_model(case, TensorProto.FLOAT, lowering=False)
        added = {node.op_type for node in model.graph.node if node.name.startswith("camrt/")}
        assert added - {"Identity", "Shape"} == wanted[name]
