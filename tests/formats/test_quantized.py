"""Quantised models: QDQ format is explained straight through, integer arithmetic is refused with the way out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from camrt.errors import UnsupportedModelError, UnsupportedOpError
from camrt.exporter.backward import append_backward
from camrt.exporter.op_builder import OpBuilder
from tests.exporter.graphs import GraphWriter, mobile_classifier, model_proto, residual_classifier
from tests.exporter.tensorrt_operators import forbidden_operators
from tests.formats.checks import check_batch, check_outputs, exported, images, run


class Samples(CalibrationDataReader):
    def __init__(self, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(3)
        self._rows: Iterator[dict[str, np.ndarray]] = iter(
            {"image": rng.standard_normal((1, *shape)).astype(np.float32)} for _ in range(8)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The quantiser advises pre-processing by warnings in the root logger."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def quantized(source: Path, kind: QuantFormat, per_channel: bool, activations: QuantType) -> Path:
    path = source.with_name(f"{source.stem}.quantized.onnx")
    quantize_static(
        source, path, Samples((3, 32, 32)), quant_format=kind, per_channel=per_channel,
        activation_type=activations, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("activations", [QuantType.QInt8, QuantType.QUInt8], ids=lambda kind: kind.name)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    ("build", "alike"), [(residual_classifier, 0.95), (mobile_classifier, 0.8)], ids=["residual", "mobile"]
)
def test_a_qdq_model_explains_like_its_float_model(
    build: object, alike: float, per_channel: bool, activations: QuantType, tmp_path: Path
) -> None:
    """Cosine of the gradients: rounding to eight bits turns some ReLUs on and off, more of them in the narrow ReLU6."""
    source = build(tmp_path / "float.onnx")  # type: ignore[operator]
    path = quantized(source, QuantFormat.QDQ, per_channel, activations)
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(path).graph.node}
    whole, bundle = exported(source), exported(path)
    assert (whole.manifest.precision, bundle.manifest.precision) == ("fp32", "int8")
    assert [layer.shape for layer in bundle.manifest.target_layers] == [
        layer.shape for layer in whole.manifest.target_layers
    ]
    assert forbidden_operators(bundle.path) == []
    check_outputs(path, bundle)
    check_batch(bundle)
    inputs = images(bundle, 4)
    mine, theirs = run(bundle, inputs, [0, 1, 2, 3]), run(whole, inputs, [0, 1, 2, 3])
    for layer, exact in zip(mine.layers, theirs.layers, strict=True):
        a, b = layer.gradients.ravel().astype(np.float64), exact.gradients.ravel().astype(np.float64)
        assert a @ b / np.sqrt((a @ a) * (b @ b)) > alike


def pair_gradient(x: np.ndarray, dy: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int = 1) -> np.ndarray:
    """dx of DequantizeLinear(QuantizeLinear(x)) on ONNX Runtime."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize", axis=axis),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "dequantize", axis=axis),
    ]
    proto = model_proto(nodes, {"x": ["N", *x.shape[1:]]}, {"y": ["N", *x.shape[1:]]}, {"s": scale, "z": zero})
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    graph = model.graph
    cotangent = ir.Value(name="dy", type=ir.TensorType(ir.DataType.FLOAT), shape=graph.inputs[0].shape)
    graph.inputs.append(cotangent)
    op = OpBuilder(graph, ir.DataType.FLOAT)
    gradient = append_backward(op, graph.outputs[0], cotangent, {"x": graph.inputs[0]})["x"]
    graph.outputs.append(op.identity(gradient))
    graph.outputs[-1].name, graph.outputs[-1].type = "dx", ir.TensorType(ir.DataType.FLOAT)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    dx: np.ndarray = session.run(["dx"], {"x": x, "dy": dy})[0]
    return dx


@pytest.mark.parametrize(("dtype", "low", "high"), [(np.int8, -128, 127), (np.uint8, 0, 255)], ids=["int8", "uint8"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_the_gradient_passes_inside_the_clipping_range_as_in_torch(
    dtype: type, low: int, high: int, per_channel: bool
) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-4, 4, (2, 3, 5, 4)).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    scale = np.array([0.011, 0.02, 0.004], np.float32)[: 3 if per_channel else 1]
    zero = np.array([3, 100, 17], dtype)[: len(scale)]
    value = torch.from_numpy(x).requires_grad_()
    if per_channel:
        fake = torch.fake_quantize_per_channel_affine(
            value, torch.from_numpy(scale), torch.from_numpy(zero.astype(np.int32)), 1, low, high
        )
        mine = pair_gradient(x, dy, scale, zero)
    else:
        fake = torch.fake_quantize_per_tensor_affine(value, float(scale[0]), int(zero[0]), low, high)
        mine = pair_gradient(x, dy, scale[0], zero[0])
    fake.backward(torch.from_numpy(dy))
    assert value.grad is not None
    np.testing.assert_array_equal(mine, value.grad.numpy())
    assert 0.05 < np.mean(mine == 0) < 0.95


def test_integer_arithmetic_is_refused_with_the_way_out(tmp_path: Path) -> None:
    source = residual_classifier(tmp_path / "float.onnx")
    path = quantized(source, QuantFormat.QOperator, False, QuantType.QUInt8)
    with pytest.raises(UnsupportedModelError, match=r"QLinearConv \(node .*No gradient") as caught:
        exported(path)
    assert "QDQ" in caught.value.next_step


def test_dynamic_quantisation_is_refused_with_the_way_out(tmp_path: Path) -> None:
    source, path = residual_classifier(tmp_path / "float.onnx"), tmp_path / "dynamic.onnx"
    quantize_dynamic(source, path)
    with pytest.raises(UnsupportedModelError, match=r"(DynamicQuantizeLinear|ConvInteger) \(node") as caught:
        exported(path)
    assert "QDQ" in caught.value.next_step


def test_what_an_optimiser_fused_is_refused(tmp_path: Path) -> None:
    source = residual_classifier(tmp_path / "float.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    with pytest.raises(UnsupportedModelError, match=r"com\.microsoft.* was made by an engine's optimiser"):
        exported(tmp_path / "optimised.onnx")


def test_scales_computed_from_the_image_are_refused(tmp_path: Path) -> None:
    w = GraphWriter()
    value = w.add("Relu", "r2", w.conv("c2", w.add("Relu", "r1", w.conv("c1", "image", (3, 6), 3, 2)), (6, 6)))
    peak = w.add("ReduceMax", "peak", value, keepdims=0)
    scale = w.add("Div", "scale", peak, w.constant("steps", np.float32(127)))
    zero = w.constant("zero", np.array(0, np.int8))
    value = w.add("DequantizeLinear", "dq", w.add("QuantizeLinear", "q", value, scale, zero), scale, zero)
    w.classify(value, 6)
    with pytest.raises(UnsupportedOpError, match=r"dynamic|depends on the image|batch"):
        exported(w.save(tmp_path / "source.onnx"), ["r2"])


def test_pooling_of_integers_is_refused(tmp_path: Path) -> None:
    w = GraphWriter()
    value = w.add("Relu", "r2", w.conv("c2", w.add("Relu", "r1", w.conv("c1", "image", (3, 6), 3, 2)), (6, 6)))
    scale, zero = w.constant("scale", np.float32(0.05)), w.constant("zero", np.array(0, np.int8))
    pooled = w.add(
        "MaxPool", "pool", w.add("QuantizeLinear", "q", value, scale, zero), kernel_shape=[2, 2], strides=[2, 2]
    )
    w.classify(w.add("DequantizeLinear", "dq", pooled, scale, zero), 6)
    with pytest.raises(UnsupportedOpError, match="integers"):
        exported(w.save(tmp_path / "source.onnx"), ["r2"])


def test_bfloat16_is_refused(tmp_path: Path) -> None:
    w = GraphWriter()
    half = w.add("Cast", "down", "image", to=TensorProto.BFLOAT16)
    value = w.add("Relu", "r1", w.add("Cast", "up", half, to=TensorProto.FLOAT))
    w.classify(w.conv("c1", value, (3, 6)), 6)
    with pytest.raises(UnsupportedModelError, match="bfloat16") as caught:
        exported(w.save(tmp_path / "source.onnx"))
    assert "float16" in caught.value.next_step
