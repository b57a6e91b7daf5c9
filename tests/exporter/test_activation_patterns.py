"""GELU and SiLU written out are differentiated as a whole; sums of gradients broadcast."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from camrt.exporter.backward import append_backward
from camrt.exporter.op_builder import OpBuilder
from tests.exporter.graphs import model_proto
from tests.exporter.test_vjp import Case, evaluator, gradient_model

DOUBLE = TensorProto.DOUBLE


def written_out(form: str, division: bool) -> list[onnx.NodeProto]:
    scale = (
        helper.make_node("Div", ["x", "root"], ["u"]) if division else helper.make_node("Mul", ["rsqrt", "x"], ["u"])
    )
    start = [scale, helper.make_node("Erf", ["u"], ["e"]), helper.make_node("Add", ["e", "one"], ["p"])]
    if form == "half last":
        end = [helper.make_node("Mul", ["x", "p"], ["q"]), helper.make_node("Mul", ["q", "half"], ["y"])]
    else:
        end = [helper.make_node("Mul", ["half", "x"], ["q"]), helper.make_node("Mul", ["q", "p"], ["y"])]
    return [*start, *end]


def backward_model(nodes: list[onnx.NodeProto], target: str = "x") -> tuple[ir.Model, onnx.ModelProto]:
    constants = {"root": math.sqrt(2), "rsqrt": math.sqrt(0.5), "one": 1.0, "half": 0.5}
    arrays = {name: np.float64(number) for name, number in constants.items()} | {"last": np.array([1])}
    proto = model_proto(nodes, {"x": ["N", 7]}, {"y": ["N", 7]}, arrays, dtype=DOUBLE)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    values = {value.name: value for node in model.graph for value in node.outputs} | {"x": model.graph.inputs[0]}
    dy = ir.Value(name="dy", type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape(["M", 7]))
    model.graph.inputs.append(dy)
    op = OpBuilder(model.graph, ir.DataType.DOUBLE)
    gradient = append_backward(op, values["y"], dy, {"target": values[target]})["target"]
    output = op.identity(gradient)
    output.name, output.type = "dx", ir.TensorType(ir.DataType.DOUBLE)
    model.graph.outputs.clear()
    model.graph.outputs.append(output)
    return model, ir.to_proto(model)


X = np.linspace(-4, 4, 21).reshape(3, 7)
DY = np.random.default_rng(0).standard_normal(X.shape)


def gelu_slope(x: np.ndarray) -> np.ndarray:
    cumulative = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return cumulative + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("division", [True, False])
@pytest.mark.parametrize("form", ["half last", "half first"])
def test_the_gradient_is_right_and_inner_values_have_one_user(form: str, division: bool) -> None:
    model, proto = backward_model(written_out(form, division))
    (dx,) = evaluator(proto).run(None, {"x": X, "dy": DY})
    np.testing.assert_allclose(dx, DY * gelu_slope(X), rtol=1e-12)
    inner = {value.name: value for node in model.graph for value in node.outputs if value.name in ("u", "e", "p", "q")}
    assert {name: len(value.uses()) for name, value in inner.items()} == dict.fromkeys(inner, 1)
    assert len(inner) == 4


def test_a_target_inside_the_pattern_is_reached() -> None:
    model, proto = backward_model(written_out("half last", division=True), target="u")
    (du,) = evaluator(proto).run(None, {"x": X, "dy": DY})
    np.testing.assert_allclose(du, DY * 0.5 * X * 2 / math.sqrt(math.pi) * np.exp(-(X**2) / 2), rtol=1e-12)
    assert any(node.op_type == "Exp" for node in model.graph)


def test_an_inner_value_that_is_used_elsewhere_is_differentiated_node_by_node() -> None:
    nodes = [*written_out("half last", division=True)[:-1], helper.make_node("Mul", ["q", "half"], ["z"])]
    nodes.append(helper.make_node("Add", ["z", "e"], ["y"]))
    _, proto = backward_model(nodes)
    (dx,) = evaluator(proto).run(None, {"x": X, "dy": DY})
    through_e = 2 / math.sqrt(math.pi) * np.exp(-(X**2) / 2) / math.sqrt(2)
    np.testing.assert_allclose(dx, DY * (gelu_slope(X) + through_e), rtol=1e-10)


def test_other_constants_are_no_gelu() -> None:
    nodes = written_out("half last", division=True)
    nodes[-1] = helper.make_node("Mul", ["q", "rsqrt"], ["y"])
    _, proto = backward_model(nodes)
    (dx,) = evaluator(proto).run(None, {"x": X, "dy": DY})
    np.testing.assert_allclose(dx, DY * gelu_slope(X) * math.sqrt(2), rtol=1e-12)


def test_the_operator_itself_has_the_same_gradient() -> None:
    _, proto = gradient_model(Case("Gelu", (7,), opset=20), DOUBLE)
    (dx,) = evaluator(proto).run(None, {"x": X, "dy": DY})
    np.testing.assert_allclose(dx, DY * gelu_slope(X), rtol=1e-12)


SILU = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu_slope(x: np.ndarray) -> np.ndarray:
    return sigmoid(x) + x * sigmoid(x) * (1 - sigmoid(x))


def appended(model: ir.Model) -> list[str]:
    """Operators of the backward part."""
    return [node.op_type for node in model.graph if (node.name or "").startswith("camrt/")]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_silu_has_one_slope(swapped: bool) -> None:
    product = helper.make_node("Mul", ["s", "x"] if swapped else ["x", "s"], ["y"])
    model, proto = backward_model([SILU[0], product])
    (dx,) = evaluator(proto).run(None, {"x": X, "dy": DY})
    np.testing.assert_allclose(dx, DY * silu_slope(X), rtol=1e-12, atol=1e-15)
    assert sorted(appended(model)) == ["Add", "Identity", "Mul", "Mul", "Sub"]


def test_a_sigmoid_that_is_used_elsewhere_is_differentiated_node_by_node() -> None:
    nodes = [SILU[0], helper.make_node("Mul", ["x", "s"], ["z"]), helper.make_node("Add", ["z", "s"], ["y"])]
    _, proto = backward_model(nodes)
    (dx,) = evaluator(proto).run(None, {"x": X, "dy": DY})
    slope = silu_slope(X) + sigmoid(X) * (1 - sigmoid(X))
    np.testing.assert_allclose(dx, DY * slope, rtol=1e-12, atol=1e-15)


def test_a_product_with_the_sigmoid_of_another_value_is_no_silu() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "half"], ["h"]),
        helper.make_node("Sigmoid", ["h"], ["s"]),
        helper.make_node("Mul", ["x", "s"], ["y"]),
    ]
    _, proto = backward_model(nodes)
    (dx,) = evaluator(proto).run(None, {"x": X, "dy": DY})
    s = sigmoid(X / 2)
    np.testing.assert_allclose(dx, DY * (s + X * s * (1 - s) / 2), rtol=1e-12, atol=1e-15)


def test_the_sigmoid_of_a_silu_may_be_a_target() -> None:
    _, proto = backward_model(SILU, target="s")
    (ds,) = evaluator(proto).run(None, {"x": X, "dy": DY})
    np.testing.assert_allclose(ds, DY * X, rtol=1e-12)


def test_a_gradient_that_is_the_same_everywhere_is_added_without_being_expanded() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("ReduceSum", ["r", "last"], ["total"]),
        helper.make_node("Mul", ["r", "total"], ["y"]),
    ]
    model, proto = backward_model(nodes, target="r")
    (dr,) = evaluator(proto).run(None, {"x": X, "dy": DY})
    r = np.maximum(X, 0)
    np.testing.assert_allclose(dr, DY * r.sum(1, keepdims=True) + (DY * r).sum(1, keepdims=True), rtol=1e-12)
    RemoveUnusedNodesPass()(model)
    assert "Expand" not in appended(model)
