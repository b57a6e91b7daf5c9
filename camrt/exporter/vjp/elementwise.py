"""Vjp rules of elementwise functions of two inputs that broadcast."""

from __future__ import annotations

import onnx_ir as ir

from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.vjp.activation import keep_where
from camrt.exporter.vjp.registry import (
    Gradients,
    constant_scalar,
    operand,
    register_vjp,
    unbroadcast,
    unsupported,
    zeros_like,
)


@register_vjp("Add", "Sum")
def add(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Each term gets dy."""
    return [_if_wanted(op, node, index, cotangent) for index in range(len(node.inputs))]


@register_vjp("Mean")
def mean(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Each of n terms gets dy / n."""
    share = op("Mul", cotangent, op.scalar(1.0 / len(node.inputs)))
    return [_if_wanted(op, node, index, share) for index in range(len(node.inputs))]


@register_vjp("Sub")
def sub(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """da = dy, db = -dy."""
    right = op("Neg", cotangent) if op.wants(node.inputs[1]) else None
    return [_if_wanted(op, node, 0, cotangent), _if_wanted(op, node, 1, right)]


@register_vjp("Mul")
def mul(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """da = dy b, db = dy a."""
    a, b = operand(node, 0), operand(node, 1)
    left = op("Mul", cotangent, b) if op.wants(a) else None
    right = op("Mul", cotangent, a) if op.wants(b) else None
    return [_if_wanted(op, node, 0, left), _if_wanted(op, node, 1, right)]


@register_vjp("Div")
def div(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """da = dy / b, db = -dy y / b."""
    b = operand(node, 1)
    left = op("Div", cotangent, b)
    right = op("Neg", op("Mul", left, node.outputs[0])) if op.wants(b) else None
    return [_if_wanted(op, node, 0, left), _if_wanted(op, node, 1, right)]


@register_vjp("Pow")
def power(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """dx = dy n x^(n - 1), for a constant exponent n; 0 for n = 0, also at x = 0."""
    x, exponent = operand(node, 0), constant_scalar(node, 1)
    if exponent is None:
        raise unsupported(node, "its exponent is missing")
    if exponent == 0:
        return [zeros_like(op, cotangent)]
    lower = x if exponent == 2 else op("Pow", x, op.scalar(exponent - 1))
    return [op("Mul", cotangent, op("Mul", lower, op.scalar(exponent)))]


@register_vjp("Where")
def where(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The cotangent goes where the value came from."""
    condition, zero = operand(node, 0), op.scalar(0.0)
    left = op("Where", condition, cotangent, zero) if op.wants(node.inputs[1]) else None
    right = op("Where", condition, zero, cotangent) if op.wants(node.inputs[2]) else None
    return [None, _if_wanted(op, node, 1, left), _if_wanted(op, node, 2, right)]


@register_vjp("Max", "Min")
def extremum(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The inputs that equal the output share the gradient evenly, as torch.maximum does."""
    values = [operand(node, index) for index in range(len(node.inputs))]
    chosen = [op("Equal", value, node.outputs[0]) for value in values]
    total = op.cast(chosen[0])
    for more in chosen[1:]:
        total = op("Add", total, op.cast(more))
    share = op("Div", cotangent, total)
    return [_if_wanted(op, node, index, keep_where(op, mask, share)) for index, mask in enumerate(chosen)]


def _if_wanted(op: OpBuilder, node: ir.Node, index: int, gradient: ir.Value | None) -> ir.Value | None:
    """The gradient reduced to the shape of input ``index``, or None where nobody needs it."""
    value = node.inputs[index]
    if gradient is None or value is None or not op.wants(value):
        return None
    return unbroadcast(op, gradient, value, node.outputs[0])
