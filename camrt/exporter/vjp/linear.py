"""Vjp rules of matrix products."""

from __future__ import annotations

import onnx_ir as ir

from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import BATCH, nominal_shape
from camrt.exporter.vjp.registry import (
    Gradients,
    constant_ints,
    float_attribute,
    int_attribute,
    operand,
    refuse_batch,
    register_vjp,
    unbroadcast,
    unsupported,
)


@register_vjp("Gemm")
def gemm(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Y = alpha A' B' + beta C; dA' = alpha dY B'^T. Only A is an activation.

    Of the layer that makes the logits, dY is one at a class and zero elsewhere: dA' is a row of B'^T.
    """
    if int_attribute(node, "transA", 0):
        raise unsupported(node, "transA puts the batch on the second axis")
    refuse_batch(node, operand(node), [1])
    if op.wants(node.inputs[1]):
        raise unsupported(node, "its second operand depends on the image")
    flipped = 1 - int_attribute(node, "transB", 0)
    alpha = float_attribute(node, "alpha", 1.0)
    gradients: list[ir.Value | None]
    if op.lowering and op.one_hot is not None and cotangent is op.one_hot[0] and not flipped:
        row = op("Gather", operand(node, 1), op.one_hot[1], axis=0)
        gradients = [row if alpha == 1.0 else op("Mul", row, op.scalar(alpha))]
    else:
        gradients = [op("Gemm", cotangent, operand(node, 1), alpha=alpha, transB=flipped)]
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
    refuse_batch(node, a, [-1])
    refuse_batch(node, b, [-2])
    left = op("MatMul", cotangent, _transposed(op, b)) if op.wants(a) else None
    right = op("MatMul", _transposed(op, a), cotangent) if op.wants(b) else None
    return [_summed(op, node, left, a), _summed(op, node, right, b)]


@register_vjp("Einsum")
def einsum(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The product of "a,b->y" has dA = "y,b->a" of dY and B, and dB = "y,a->b" of dY and A.

    Covers two operands, or one whose letters all stay, without ellipsis or a letter twice in one operand; a letter has
    one length. A letter that is summed over is not the batch.
    """
    equation = node.attributes["equation"].as_string().replace(" ", "")
    terms, arrow, result = equation.partition("->")
    letters = terms.split(",")
    others = {
        index: set(result).union(*(t for i, t in enumerate(letters) if i != index)) for index in range(len(letters))
    }
    plain = arrow and "." not in equation and all(len(set(term)) == len(term) for term in (*letters, result))
    if not plain or len(letters) > 2 or any(not set(term) <= others[index] for index, term in enumerate(letters)):
        raise unsupported(node, f"the equation {equation!r}")
    lengths: dict[str, int] = {}
    for index, term in enumerate(letters):
        refuse_batch(node, operand(node, index), [axis for axis, letter in enumerate(term) if letter not in result])
        for letter, length in zip(term, nominal_shape(operand(node, index)), strict=True):
            if lengths.setdefault(letter, length) != length:
                raise unsupported(node, f"the equation {equation!r} with two lengths of {letter!r}")
    gradients: list[ir.Value | None] = []
    for index, term in enumerate(letters):
        rest = [(letters[i], op.repeated(operand(node, i))) for i in range(len(letters)) if i != index]
        inverse = ",".join([result, *(name for name, _ in rest)]) + "->" + term
        wanted = op.wants(node.inputs[index])
        gradients.append(op("Einsum", cotangent, *(v for _, v in rest), equation=inverse) if wanted else None)
    return gradients


@register_vjp("CumSum")
def cumulative_sum(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The sum of dy from the other end."""
    refuse_batch(node, operand(node), constant_ints(node, 1) or ())
    exclusive, reverse = int_attribute(node, "exclusive", 0), int_attribute(node, "reverse", 0)
    return [op("CumSum", cotangent, operand(node, 1), exclusive=exclusive, reverse=1 - reverse)]


def _transposed(op: OpBuilder, value: ir.Value) -> ir.Value:
    """The last two axes exchanged."""
    rank = len(nominal_shape(value))
    return op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def _summed(op: OpBuilder, node: ir.Node, gradient: ir.Value | None, operand_value: ir.Value) -> ir.Value | None:
    """Sums over the leading axes that ``operand_value`` was broadcast along."""
    if gradient is None:
        return None
    shape, full = nominal_shape(operand_value), nominal_shape(node.outputs[0])
    extra = len(full) - len(shape)
    if extra:
        gradient = op.reduce_sum(gradient, range(extra), keepdims=0)
    axes = [axis for axis in range(len(shape) - 2) if shape[axis] == 1 and full[axis + extra] not in (1, BATCH)]
    return op.reduce_sum(gradient, axes) if axes else gradient
