"""A GELU written out is differentiated as a whole, so that its inner values stay free for fusion."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

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
    proto = model_proto(
        nodes, {"x": ["N", 7]}, {"y": ["N", 7]}, {k: np.float64(v) for k, v in constants.items()}, dtype=DOUBLE
    )
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
