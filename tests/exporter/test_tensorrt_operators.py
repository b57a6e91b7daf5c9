"""Bundles hold, in the part that the export adds, only what TensorRT's parser takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import camrt
from tests.exporter.graphs import (
    channels_last_classifier,
    mobile_classifier,
    model_proto,
    plain_classifier,
    residual_classifier,
    small_classifier,
)
from tests.exporter.tensorrt_operators import forbidden_operators, source_operators
from tests.models import ARCHITECTURES, EXPORTERS, Exporter, export_onnx, make_model

SMALL = (small_classifier, residual_classifier, mobile_classifier, plain_classifier, channels_last_classifier)


@pytest.mark.parametrize("build", SMALL, ids=lambda build: build.__name__)
def test_small_networks(build: object, tmp_path: Path) -> None:
    path = camrt.export(build(tmp_path / "source.onnx"), tmp_path / "bundle.onnx").path  # type: ignore[operator]
    assert forbidden_operators(path) == []
    assert source_operators(path) == []


@pytest.mark.parametrize("exporter", ["torchscript", pytest.param("dynamo", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", ["mobilenet_v2", *(pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES if n != "mobilenet_v2")]
)
def test_architectures(name: str, exporter: Exporter, tmp_path: Path) -> None:
    assert exporter in EXPORTERS
    model = make_model(name, size=224 if name.startswith("vgg") else 96, num_classes=10)
    path = camrt.export(export_onnx(model, tmp_path / "source.onnx", exporter), tmp_path / "bundle.onnx").path
    assert forbidden_operators(path) == []


def saved(path: Path, node: onnx.NodeProto, dtype: int = TensorProto.FLOAT, **constants: np.ndarray) -> Path:
    graph = model_proto([node], {"x": ["N", 3, 8, 8]}, {"y": ["N", 3, 8, 8]}, constants, dtype=dtype)
    graph.graph.output[0].type.tensor_type.ClearField("shape")
    graph.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(graph, path)
    return path


@pytest.mark.parametrize(
    ("node", "constants", "reason"),
    [
        (helper.make_node("MaxPool", ["x"], ["y", "i"], "camrt/n", kernel_shape=[2, 2]), {}, "more than one output"),
        (helper.make_node("MaxPool", ["x"], ["y"], "camrt/n", kernel_shape=[2, 2], dilations=[2, 2]), {}, "dilated"),
        (helper.make_node("NonZero", ["x"], ["y"], "camrt/n"), {}, "not taken"),
        (helper.make_node("ScatterElements", ["x", "i", "x"], ["y"], "camrt/n", reduction="add"),
         {"i": np.zeros((1, 3, 8, 8), np.int64)}, "reduction"),
        (helper.make_node("ReduceSum", ["x", "x"], ["y"], "camrt/n"), {}, "constant"),
        (helper.make_node("Resize", ["x", "", "s"], ["y"], "camrt/n", mode="cubic"), {"s": np.ones(4, np.float32)}, "cubic"),
        (helper.make_node("Conv", ["x", "w"], ["y"], "camrt/n", pads=[-1, 0, 0, 0]),
         {"w": np.zeros((3, 3, 1, 1), np.float32)}, "negative"),
        (helper.make_node("Gelu", ["x"], ["y"], "camrt/n", domain="com.microsoft"), {}, "domain"),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)  # fmt: skip
def test_what_the_check_finds(node: onnx.NodeProto, constants: dict, reason: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "model.onnx", node, **constants)
    (finding,) = forbidden_operators(path)
    assert reason in finding
    assert source_operators(path) == []
    node.name = "of_the_source"
    saved(path, node, **constants)
    assert forbidden_operators(path) == []
    assert len(source_operators(path)) == 1


def test_integers_and_doubles_are_found(tmp_path: Path) -> None:
    clip = helper.make_node("Clip", ["x"], ["y"], "camrt/n")
    assert "floats only" in forbidden_operators(saved(tmp_path / "int.onnx", clip, TensorProto.INT64))[0]
    relu = helper.make_node("Relu", ["x"], ["y"], "camrt/n")
    assert "DOUBLE" in forbidden_operators(saved(tmp_path / "double.onnx", relu, TensorProto.DOUBLE))[0]
