"""Vjp rules of reductions. The batch axis is never reduced."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import nominal_shape
from camrt.exporter.vjp.activation import keep_where
from camrt.exporter.vjp.registry import (
    Gradients,
    constant_ints,
    int_attribute,
    ints_attribute,
    operand,
    refuse_batch,
    register_vjp,
    unsupported,
)


@register_vjp("ReduceMean")
def reduce_mean(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Every element gets dy / (number of elements averaged)."""
    x, axes = operand(node), reduced_axes(node)
    count = math.prod(nominal_shape(x)[axis] for axis in axes)
    share = op("Mul", _with_axes(op, node, cotangent, axes), op.scalar(1.0 / count))
    return [op.expand_like(share, x)]


@register_vjp("ReduceSum")
def reduce_sum(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Every element gets dy."""
    return [op.expand_like(_with_axes(op, node, cotangent, reduced_axes(node)), operand(node))]


@register_vjp("ReduceMax", "ReduceMin")
def reduce_extremum(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The elements that equal the result share dy evenly, as torch.amax does."""
    axes = reduced_axes(node)
    kept, y = (_with_axes(op, node, value, axes) for value in (cotangent, node.outputs[0]))
    return [share_among_equal(op, operand(node), y, kept, axes)]


def share_among_equal(op: OpBuilder, x: ir.Value, y: ir.Value, cotangent: ir.Value, axes: tuple[int, ...]) -> ir.Value:
    """``cotangent`` shared evenly by the elements of ``x`` that equal ``y`` along ``axes``."""
    chosen = op("Equal", x, y)
    return keep_where(op, chosen, op("Div", cotangent, op.reduce_sum(op.cast(chosen), axes)))


@register_vjp("ReduceL1")
def reduce_l1(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = sum |x|; dx = dy sign(x)."""
    return [op("Mul", _with_axes(op, node, cotangent, reduced_axes(node)), op("Sign", operand(node)))]


@register_vjp("ReduceL2")
def reduce_l2(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = sqrt(sum x^2); dx = dy x / y, and 0 where y is 0."""
    axes, tiny = reduced_axes(node), float(np.finfo(op.dtype.numpy()).tiny)
    kept, y = (_with_axes(op, node, value, axes) for value in (cotangent, node.outputs[0]))
    return [op("Mul", op("Div", operand(node), op("Max", y, op.scalar(tiny))), kept)]


@register_vjp("ReduceSumSquare")
def reduce_sum_square(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = sum x^2; dx = 2 dy x."""
    kept = _with_axes(op, node, cotangent, reduced_axes(node))
    return [op("Mul", op("Mul", kept, op.scalar(2.0)), operand(node))]


@register_vjp("ReduceLogSum")
def reduce_log_sum(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = log(sum x); dx = dy exp(-y)."""
    axes = reduced_axes(node)
    kept, y = (_with_axes(op, node, value, axes) for value in (cotangent, node.outputs[0]))
    return [op.expand_like(op("Mul", kept, op("Exp", op("Neg", y))), operand(node))]


@register_vjp("ReduceLogSumExp")
def reduce_log_sum_exp(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = log(sum exp(x)); dx = dy exp(x - y)."""
    axes = reduced_axes(node)
    kept, y = (_with_axes(op, node, value, axes) for value in (cotangent, node.outputs[0]))
    return [op("Mul", kept, op("Exp", op("Sub", operand(node), y)))]


def reduced_axes(node: ir.Node) -> tuple[int, ...]:
    """The axes counted from the front: those of the attribute or the input, all where the node names none.

    Raises:
        UnsupportedOpError: the batch is among them; they are no constant; the node reduces none.
    """
    x = operand(node)
    rank = len(nominal_shape(x))
    given = constant_ints(node, 1) or ints_attribute(node, "axes", ())
    if not given and int_attribute(node, "noop_with_empty_axes", 0):
        raise unsupported(node, "it reduces no axis")
    axes = tuple(sorted(axis % rank for axis in given)) or tuple(range(rank))
    refuse_batch(node, x, axes)
    return axes


def _with_axes(op: OpBuilder, node: ir.Node, value: ir.Value, axes: tuple[int, ...]) -> ir.Value:
    """A value of the shape of the output, with the reduced axes present, of length 1."""
    if int_attribute(node, "keepdims", 1):
        return value
    return op("Unsqueeze", value, op.ints(axes))
