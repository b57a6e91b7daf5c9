"""Vjp rules of matrix products."""

from __future__ import annotations

import onnx_ir as ir

from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import nominal_shape
from camrt.exporter.vjp.registry import (
    Gradients,
    float_attribute,
    int_attribute,
    operand,
    register_vjp,
    unbroadcast,
    unsupported,
)


@register_vjp("Gemm")
def gemm(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Y = alpha A' B' + beta C; dA' = alpha dY B'^T. Only A is an activation."""
    if int_attribute(node, "transA", 0):
        raise unsupported(node, "transA puts the batch on the second axis")
    if op.wants(node.inputs[1]):
        raise unsupported(node, "its second operand depends on the image")
    flipped = 1 - int_attribute(node, "transB", 0)
    alpha = float_attribute(node, "alpha", 1.0)
    gradients: list[ir.Value | None] = [op("Gemm", cotangent, operand(node, 1), alpha=alpha, transB=flipped)]
    if len(node.inputs) == 3:
        added = node.inputs[2]
        scaled = op("Mul", cotangent, op.scalar(float_attribute(node, "beta", 1.0))) if op.wants(added) else None
        gradients.append(None)
        gradients.append(None if scaled is None or added is None else unbroadcast(op, scaled, added, node.outputs[0]))
    return gradients


@register_vjp("MatMul")
def matmul(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Y = A B; dA = dY B^T, dB = A^T dY, with the leading axes broadcast as in the forward product."""
    a, b = operand(node, 0), operand(node, 1)
    if min(len(nominal_shape(a)), len(nominal_shape(b))) < 2:
        raise unsupported(node, "a vector operand")
    left = op("MatMul", cotangent, _transposed(op, b)) if op.wants(a) else None
    right = op("MatMul", _transposed(op, a), cotangent) if op.wants(b) else None
    return [_summed(op, node, left, a), _summed(op, node, right, b)]


def _transposed(op: OpBuilder, value: ir.Value) -> ir.Value:
    """The last two axes exchanged."""
    rank = len(nominal_shape(value))
    return op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def _summed(op: OpBuilder, node: ir.Node, gradient: ir.Value | None, operand_value: ir.Value) -> ir.Value | None:
    """Sums over the leading axes that ``operand_value`` was broadcast along."""
    if gradient is None:
        return None
    shape, full = nominal_shape(operand_value), nominal_shape(node.outputs[0])
    if len(shape) != len(full):
        raise unsupported(node, f"operands of rank {len(shape)} and {len(full)} that both depend on the image")
    axes = [axis for axis in range(len(full) - 2) if shape[axis] == 1 and full[axis] > 1]
    return op.reduce_sum(gradient, axes) if axes else gradient
