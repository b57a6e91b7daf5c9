from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import camrt
from camrt.errors import InvalidModelError, UnsupportedModelError
from camrt.exporter.loading import load_model
from camrt.runtime import open_model, open_session
from tests.exporter.graphs import edit_model, node_named, small_classifier


@pytest.mark.parametrize(("opset", "loaded"), [(11, 17), (16, 17), (17, 17), (19, 19), (21, 21), (22, 21)])
def test_opsets_are_brought_into_range(opset: int, loaded: int, tmp_path: Path) -> None:
    model = load_model(small_classifier(tmp_path / "source.onnx", opset=opset))
    assert model.graph.opset_imports[""] == loaded


@pytest.mark.parametrize("opset", [1, 6])
def test_old_opsets_are_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=f"opset {opset}.") as caught:
        load_model(small_classifier(tmp_path / "source.onnx", opset=opset))
    assert "7 up" in caught.value.next_step


def test_an_operator_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    def upsample(proto: onnx.ModelProto) -> None:
        node_named(proto, "relu2").op_type = "NoSuchOperator"

    with pytest.raises(UnsupportedModelError, match=r"from opset 11 to 17.*NoSuchOperator"):
        load_model(edit_model(small_classifier(tmp_path / "source.onnx", opset=11), upsample))


def test_the_domain_may_be_written_out(tmp_path: Path) -> None:
    def spell(proto: onnx.ModelProto) -> None:
        proto.opset_import[0].domain = "ai.onnx"

    assert len(load_model(edit_model(small_classifier(tmp_path / "source.onnx"), spell)).graph) == 11


def nothing_makes_it(proto: onnx.ModelProto) -> None:
    node_named(proto, "conv2").input[0] = "nowhere"


def no_such_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "nowhere"


def attribute_without_type(proto: onnx.ModelProto) -> None:
    node_named(proto, "conv2").attribute[0].type = onnx.AttributeProto.UNDEFINED


def damaged_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = 5


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (nothing_makes_it, "'nowhere'"),
        (no_such_output, "'nowhere'"),
        (attribute_without_type, "'conv2' has no type"),
        (damaged_weight, "reshape"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_inconsistent_graphs(edit: Callable[[onnx.ModelProto], None], text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match=text):
        load_model(edit_model(small_classifier(tmp_path / "source.onnx"), edit))


def test_sparse_weights_and_values_left_out_are_known(tmp_path: Path) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        values = helper.make_tensor("sparse", onnx.TensorProto.FLOAT, [1], [2.0])
        indices = helper.make_tensor("indices", onnx.TensorProto.INT64, [1], [3])
        proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 1, 1]))
        node_named(proto, "relu2").CopyFrom(helper.make_node("Add", ["c2", "sparse"], ["r2"], "relu2"))
        proto.graph.node.append(helper.make_node("Clip", ["r2", ""], ["clipped"], "clip"))

    model = load_model(edit_model(small_classifier(tmp_path / "source.onnx"), edit))
    assert [node.op_type for node in model.graph][-1] == "Clip"


def with_function(path: Path, opset: int, function_opset: int) -> Path:
    """The small classifier with a local function Twice in place of its third Relu."""
    body = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Add", ["r", "r"], ["y"])]
    function = helper.make_function("mine", "Twice", ["x"], ["y"], body, [helper.make_opsetid("", function_opset)])

    def edit(proto: onnx.ModelProto) -> None:
        proto.functions.append(function)
        proto.opset_import.append(helper.make_opsetid("mine", 1))
        node_named(proto, "relu3").CopyFrom(helper.make_node("Twice", ["c3"], ["r3"], "relu3", domain="mine"))

    return edit_model(small_classifier(path, opset=opset), edit)


@pytest.mark.parametrize(("opset", "function_opset"), [(13, 13), (16, 16), (17, 17), (17, 15), (18, 21), (22, 22)])
def test_local_functions_survive_the_conversion(opset: int, function_opset: int, tmp_path: Path) -> None:
    source = with_function(tmp_path / "source.onnx", opset, function_opset)
    bundle = camrt.export(source, tmp_path / "bundle.onnx", ["r2"])
    inputs = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    expected = open_model(source, threads=1).run({"image": inputs})["logits"]
    np.testing.assert_allclose(open_session(bundle.path, threads=1).predict(inputs), expected, rtol=0, atol=1e-6)


def test_a_function_that_cannot_be_brought_to_the_models_opset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"functions .* opset 13"):
        load_model(with_function(tmp_path / "source.onnx", 13, 17))
