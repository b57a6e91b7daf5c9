"""Every vjp rule differentiated once more, against central differences in float64; and bundles with second_order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx_ir.passes.common import ShapeInferencePass

import camrt
from camrt.errors import MethodUnavailableError
from camrt.exporter.backward import append_backward
from camrt.exporter.op_builder import OpBuilder
from camrt.runtime import open_session
from tests.exporter.graphs import (
    channels_last_classifier,
    mobile_classifier,
    model_proto,
    plain_classifier,
    residual_classifier,
    small_classifier,
)
from tests.exporter.tensorrt_operators import forbidden_operators
from tests.exporter.test_vjp import BATCH, CASES, Case, evaluator, sample


def second_order_model(case: Case, dtype: int) -> onnx.ModelProto:
    """x, cotangent and vector to dx, the gradient of op(x)^3, and hv, that of sum(dx vector)."""
    real = helper.tensor_dtype_to_np_dtype(dtype)
    constants = {
        name: np.asarray(value).astype(real) if np.asarray(value).dtype == np.float64 else np.asarray(value)
        for name, value in case.constants.items()
    }
    attributes = {**case.attributes, **({"to": dtype} if case.op == "Cast" else {})}
    nodes = [
        helper.make_node(case.op, list(case.inputs), list(case.outputs), "node", **attributes),
        helper.make_node("Mul", ["y", "y"], ["square"], "squaring"),
        helper.make_node("Mul", ["square", "y"], ["cube"], "cubing"),
    ]
    plain = model_proto(nodes, {"x": ["N", *case.shape]}, {}, constants, case.opset, dtype)
    plain.graph.output.extend(helper.make_tensor_value_info(name, dtype, None) for name in (*case.outputs, "cube"))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(plain, data_prop=True))
    graph = model.graph
    x, produced = graph.inputs[0], {value.name: value for node in graph for value in node.outputs}
    if case.op == "GroupNormalization":  # ONNX does not infer its shape
        for name in ("y", "square", "cube"):
            produced[name].shape, produced[name].type = x.shape, x.type
    real_type, classes = ir.TensorType(ir.DataType(dtype)), "M"
    cube = produced["cube"]
    cotangent = ir.Value(name="cotangent", type=real_type, shape=ir.Shape([classes, *list(cube.shape)[1:]]))
    vector = ir.Value(name="vector", type=real_type, shape=ir.Shape([classes, *case.shape]))
    graph.inputs.extend([cotangent, vector])
    op = OpBuilder(graph, ir.DataType(dtype))
    dx = append_backward(op, cube, cotangent, {"x": x})["x"]
    graph.outputs.clear()
    graph.outputs.append(dx)
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    hv = append_backward(op, dx, vector, {"x": x})["x"]
    graph.outputs.append(op.identity(hv))
    for value, name in zip(graph.outputs, ("dx", "hv"), strict=True):
        value.name, value.type, value.shape = name, real_type, ir.Shape([classes, *case.shape])
    return ir.to_proto(model)


def arrays(case: Case, model: onnx.ModelProto, batch: int, classes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    shape = [dim.dim_value for dim in model.graph.input[1].type.tensor_type.shape.dim][1:]
    return {
        "x": sample(case, batch),
        "cotangent": rng.standard_normal((classes, *shape)),
        "vector": rng.standard_normal((classes, *case.shape)),
    }


@pytest.mark.parametrize("case", CASES, ids=Case.id)
def test_hessian_vector_product_equals_central_differences(case: Case) -> None:
    model = second_order_model(case, TensorProto.DOUBLE)
    run, feeds = evaluator(model), arrays(case, model, BATCH, BATCH)
    _, product = run.run(None, feeds)
    assert product.shape == feeds["x"].shape
    for _ in range(2):
        direction, eps = np.random.default_rng(6).standard_normal(product.shape), 1e-6
        high, low = (run.run(["dx"], {**feeds, "x": feeds["x"] + s * eps * direction})[0] for s in (1, -1))
        numeric = float((feeds["vector"] * (high - low)).sum() / (2 * eps))
        scale = float((np.abs(product) * np.abs(direction)).sum()) + 1e-9
        assert abs(float((product * direction).sum()) - numeric) <= 1e-6 * scale


# One of each family; the others take the same path.
FAMILIES = (
    "Sigmoid",
    "Gelu",
    "Softmax",
    "Div",
    "MatMul",
    "Conv",
    "LayerNormalization",
    "MaxPool",
    "AveragePool",
    "Resize",
)


@pytest.mark.parametrize("case", [next(case for case in CASES if case.op == op) for op in FAMILIES], ids=Case.id)
def test_several_classes_of_one_image_on_onnx_runtime(case: Case) -> None:
    """N = 1, M = 3 in float32 on ONNX Runtime equals three float64 runs of M = 1."""
    exact, single = second_order_model(case, TensorProto.DOUBLE), second_order_model(case, TensorProto.FLOAT)
    feeds, run = arrays(case, exact, 1, 3), evaluator(exact)
    alone = [
        run.run(["hv"], {"x": feeds["x"], **{name: feeds[name][m : m + 1] for name in ("cotangent", "vector")}})[0]
        for m in range(3)
    ]
    session = onnxruntime.InferenceSession(single.SerializeToString(), providers=["CPUExecutionProvider"])
    (product,) = session.run(["hv"], {name: array.astype(np.float32) for name, array in feeds.items()})
    expected = np.concatenate(alone)
    np.testing.assert_allclose(product, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("head", ["logits", "Softmax", "Sigmoid"])
def test_a_bundle_with_second_derivatives(tmp_path: Path, head: str) -> None:
    """Its Hessian-vector products are the change of its target gradients along the activations."""
    source = small_classifier(tmp_path / "source.onnx", head)
    bundle = camrt.export(source, tmp_path / "bundle.onnx", second_order=True)
    plain = camrt.export(source, tmp_path / "plain.onnx")
    onnx.checker.check_model(str(bundle.path))
    assert bundle.path.stat().st_size > plain.path.stat().st_size
    session = open_session(bundle.path, threads=1)
    rng = np.random.default_rng(0)
    inputs, classes = rng.standard_normal((2, 3, 16, 16)).astype(np.float32), np.array([1, -1])
    first, second = (session.run(inputs, classes, bundle.manifest.layer_names, derivatives=d) for d in (1, 2))
    np.testing.assert_array_equal(first.class_indices, second.class_indices)
    chances = _probabilities(second.logits.astype(np.float64), head)
    onehot = np.eye(chances.shape[1])[second.class_indices]
    for layer, description in zip(second.layers, bundle.manifest.target_layers, strict=True):
        # dt/dA by the gradients of every logit: G is linear in the cotangent.
        every = np.stack([
            session.run(inputs, np.full(2, k), [layer.name]).layers[0].gradients for k in range(chances.shape[1])
        ], axis=1)  # fmt: skip
        slope = onehot * (2 - chances) if head == "Sigmoid" else 2 * onehot - chances
        expected = np.einsum("nk,nkchw->nchw", slope, every)
        np.testing.assert_allclose(layer.gradients, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        # A network of ReLUs is linear around A: H A = -J^T (diag(p) - p p^T) J A, or with the slope of the sigmoid.
        along = np.einsum("nkchw,nchw->nk", every, layer.activations)
        if head == "Sigmoid":
            curved = -onehot * chances * (1 - chances) * along
        else:
            curved = -chances * (along - (chances * along).sum(axis=1, keepdims=True))
        product = np.einsum("nk,nkchw->nchw", curved, every)
        np.testing.assert_allclose(layer.hessian_vectors, product, rtol=0, atol=2e-5 * np.abs(product).max())
        assert description.hessian_vectors == f"hessian_vectors/{layer.name}"


@pytest.mark.parametrize(
    "build",
    [small_classifier, residual_classifier, mobile_classifier, plain_classifier, channels_last_classifier],
    ids=lambda build: build.__name__,
)
def test_nothing_that_tensorrt_refuses(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    bundle = camrt.export(build(tmp_path / "source.onnx"), tmp_path / "bundle.onnx", second_order=True)
    assert forbidden_operators(bundle.path) == []


def test_without_second_derivatives(tmp_path: Path) -> None:
    bundle = camrt.export(small_classifier(tmp_path / "source.onnx"), tmp_path / "bundle.onnx")
    session = open_session(bundle.path, threads=1)
    with pytest.raises(MethodUnavailableError, match="second_order=True"):
        session.run(np.zeros((1, 3, 16, 16), np.float32), np.array([0]), bundle.manifest.layer_names, derivatives=2)


def _probabilities(logits: np.ndarray, head: str) -> np.ndarray:
    if head == "Sigmoid":
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
