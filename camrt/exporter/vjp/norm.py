"""Vjp rules of normalisation layers at inference."""

from __future__ import annotations

import onnx_ir as ir

from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import nominal_shape
from camrt.exporter.vjp.registry import Gradients, float_attribute, int_attribute, operand, register_vjp, unsupported


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
    axes = list(range(int_attribute(node, "axis", -1) % rank, rank))
    centred = op("Sub", x, op.reduce_mean(x, axes))
    variance = op.reduce_mean(op("Mul", centred, centred), axes)
    deviation = op("Sqrt", op("Add", variance, op.scalar(float_attribute(node, "epsilon", 1e-5))))
    normalized = op("Div", centred, deviation)
    g = op("Mul", cotangent, operand(node, 1))
    along = op("Mul", normalized, op.reduce_mean(op("Mul", g, normalized), axes))
    gradient = op("Div", op("Sub", op("Sub", g, op.reduce_mean(g, axes)), along), deviation)
    return [gradient]
