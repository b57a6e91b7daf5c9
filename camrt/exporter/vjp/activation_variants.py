"""Vjp rules of less common elementwise functions of one input. Boundaries are PyTorch's."""

from __future__ import annotations

import onnx_ir as ir

from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.vjp.activation import keep_where
from camrt.exporter.vjp.registry import Gradients, float_attribute, operand, register_vjp, unsupported, zeros_like

_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


@register_vjp("PRelu")
def prelu(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = x where x > 0, else slope x, with a constant slope."""
    x, slope = operand(node), operand(node, 1)
    if op.wants(slope):
        raise unsupported(node, "its slope depends on the image")
    positive = op.cast(op("Greater", x, op.scalar(0.0)))
    steps = op("Add", op("Mul", positive, op("Sub", op.scalar(1.0), slope)), slope)
    return [op("Mul", cotangent, steps)]


@register_vjp("Selu")
def selu(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = gamma x where x > 0, else gamma alpha (exp(x) - 1); the slope is gamma, or y + gamma alpha."""
    alpha = float_attribute(node, "alpha", _SELU_ALPHA)
    gamma = float_attribute(node, "gamma", _SELU_GAMMA)
    return [_with_tail(op, node, cotangent, gamma, op("Add", node.outputs[0], op.scalar(gamma * alpha)))]


@register_vjp("Celu")
def celu(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = x where x > 0, else alpha (exp(x / alpha) - 1); the slope is 1, or y / alpha + 1."""
    scaled = op("Mul", node.outputs[0], op.scalar(1 / float_attribute(node, "alpha", 1.0)))
    return [_with_tail(op, node, cotangent, 1.0, op("Add", scaled, op.scalar(1.0)))]


def _with_tail(op: OpBuilder, node: ir.Node, cotangent: ir.Value, slope: float, tail: ir.Value) -> ir.Value:
    """dy times ``slope`` where y > 0, and times ``tail`` elsewhere."""
    positive = op("Greater", node.outputs[0], op.scalar(0.0))
    return op("Mul", cotangent, op("Where", positive, op.scalar(slope), tail))


@register_vjp("ThresholdedRelu")
def thresholded_relu(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = x where x > alpha, else 0."""
    alpha = op.scalar(float_attribute(node, "alpha", 1.0))
    return [keep_where(op, op("Greater", operand(node), alpha), cotangent)]


@register_vjp("Softsign")
def softsign(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = x / (1 + |x|); dx = dy / (1 + |x|)^2."""
    bound = op("Add", op("Abs", operand(node)), op.scalar(1.0))
    return [op("Div", cotangent, op("Mul", bound, bound))]


@register_vjp("Mish")
def mish(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = x t, t = tanh(softplus(x)); dx = dy (t + x sigmoid(x) (1 - t^2))."""
    x = operand(node)
    t = op("Tanh", op("Softplus", x))
    rise = op("Mul", op("Mul", x, op("Sigmoid", x)), op("Sub", op.scalar(1.0), op("Mul", t, t)))
    return [op("Mul", cotangent, op("Add", t, rise))]


@register_vjp("Sign", "Floor", "Ceil", "Round")
def step(op: OpBuilder, _node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Constant between its jumps; the gradient is 0, as PyTorch's."""
    return [zeros_like(op, cotangent)]
