"""Vjp rules of normalisation layers at inference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import nominal_shape
from camrt.exporter.vjp.registry import (
    Gradients,
    float_attribute,
    int_attribute,
    operand,
    refuse_batch,
    register_vjp,
    unsupported,
)


@register_vjp("BatchNormalization")
def batch_normalization(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = scale (x - mean) / sqrt(var + eps) + bias with stored statistics; dx = dy scale / sqrt(var + eps)."""
    if int_attribute(node, "training_mode", 0):
        raise unsupported(node, "it is in training mode")
    scale, variance = operand(node, 1), operand(node, 4)
    deviation = op("Sqrt", op("Add", variance, op.scalar(float_attribute(node, "epsilon", 1e-5))))
    spatial = len(nominal_shape(operand(node))) - 2
    slope = op("Reshape", op("Div", scale, deviation), op.ints([-1, *[1] * spatial]))
    return [op("Mul", cotangent, slope)]


@register_vjp("LayerNormalization")
def layer_normalization(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = scale x^ + bias, x^ = (x - mean) / sqrt(var + eps) over the last axes.

    dx = (g - mean(g) - x^ mean(g x^)) / sqrt(var + eps), g = dy scale. Mean and deviation are computed again: the
    operator's optional outputs are not available everywhere.
    """
    x = operand(node)
    rank = len(nominal_shape(x))
    axes = range(int_attribute(node, "axis", -1) % rank, rank)
    refuse_batch(node, x, axes)
    g = op("Mul", cotangent, operand(node, 1))
    return [_normalized_gradient(op, x, g, axes, float_attribute(node, "epsilon", 1e-5))]


def _normalized_gradient(op: OpBuilder, x: ir.Value, g: ir.Value, axes: Sequence[int], epsilon: float) -> ir.Value:
    """The gradient of x where ``g`` is that of x^ = (x - mean) / sqrt(var + eps) over ``axes``.

    In half precision computed in float32, as the operators themselves do: squares of half end at |x - mean| = 255.
    """
    wide = ir.DataType.FLOAT if op.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) else op.dtype
    if wide != op.dtype:
        x, g = (op("Cast", value, to=int(wide)) for value in (x, g))
    centred = op("Sub", x, op.reduce_mean(x, axes))
    variance = op.reduce_mean(op("Mul", centred, centred), axes)
    deviation = op("Sqrt", op("Add", variance, op.constant(np.asarray(epsilon, wide.numpy()))))
    normalized = op("Div", centred, deviation)
    along = op("Mul", normalized, op.reduce_mean(op("Mul", g, normalized), axes))
    gradient = op("Div", op("Sub", op("Sub", g, op.reduce_mean(g, axes)), along), deviation)
    return gradient if wide == op.dtype else op.cast(gradient)


@register_vjp("InstanceNormalization")
def instance_normalization(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = scale x^ + bias, x^ = (x - mean) / sqrt(var + eps) over the positions of each channel."""
    x = operand(node)
    rank = len(nominal_shape(x))
    refuse_batch(node, x, range(2, rank))
    scale = op("Reshape", operand(node, 1), op.ints([-1, *[1] * (rank - 2)]))
    g = op("Mul", cotangent, scale)
    return [_normalized_gradient(op, x, g, range(2, rank), float_attribute(node, "epsilon", 1e-5))]


@register_vjp("GroupNormalization")
def group_normalization(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """As InstanceNormalization, over the channels of a group; scale is one a group (opset 18) or one a channel."""
    x = operand(node)
    shape, groups = nominal_shape(x), int_attribute(node, "num_groups", 1)
    refuse_batch(node, x, range(1, len(shape)))
    apart = op.ints([-1, groups, shape[1] // groups, *shape[2:]])
    ones = [1] * (len(shape) - 2)
    scale = operand(node, 1)
    per_group = nominal_shape(scale)[0] == groups != shape[1]
    spread = op("Reshape", scale, op.ints([1, groups, 1 if per_group else shape[1] // groups, *ones]))
    g = op("Mul", op("Reshape", cotangent, apart), spread)
    axes = range(2, len(shape) + 1)
    grouped = _normalized_gradient(op, op("Reshape", x, apart), g, axes, float_attribute(node, "epsilon", 1e-5))
    return [op.reshape_like(grouped, x)]


@register_vjp("LpNormalization")
def lp_normalization(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = x / |x|_p along an axis; dx = (dy - y' sum(dy y)) / |x|_p, y' = y for p = 2 and sign(x) for p = 1."""
    x, y, axis = operand(node), node.outputs[0], int_attribute(node, "axis", -1)
    refuse_batch(node, x, [axis])
    axis %= len(nominal_shape(x))
    if int_attribute(node, "p", 2) == 2:
        length, slope = op("Sqrt", op.reduce_sum(op("Mul", x, x), [axis])), y
    else:
        length, slope = op.reduce_sum(op("Abs", x), [axis]), op("Sign", x)
    along = op.reduce_sum(op("Mul", cotangent, y), [axis])
    return [op("Div", op("Sub", cotangent, op("Mul", slope, along)), length)]
