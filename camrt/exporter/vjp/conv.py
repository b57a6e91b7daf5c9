"""Vjp rule of convolutions."""

from __future__ import annotations

import onnx_ir as ir

from camrt.exporter.lowering import Axis, conv_input_gradient
from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import nominal_shape
from camrt.exporter.vjp.registry import (
    Gradients,
    int_attribute,
    ints_attribute,
    operand,
    register_vjp,
    unsupported,
)
from camrt.exporter.vjp.window import begin_pads


@register_vjp("Conv")
def conv(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The input's gradient; see camrt.exporter.lowering for its forms."""
    x, weight = operand(node), operand(node, 1)
    shape = nominal_shape(weight)
    if len(shape) != 4:
        raise unsupported(node, f"a kernel of rank {len(shape) - 2}")
    if op.wants(weight):
        raise unsupported(node, "its weight depends on the image")
    kernel, strides = shape[2:], ints_attribute(node, "strides", (1, 1))
    dilations = ints_attribute(node, "dilations", (1, 1))
    begins = begin_pads(node, kernel, strides, dilations)
    size, output = nominal_shape(x)[2:], nominal_shape(node.outputs[0])[2:]
    rows, columns = (Axis(size[a], output[a], kernel[a], strides[a], dilations[a], begins[a]) for a in (0, 1))
    four = (shape[0], shape[1], shape[2], shape[3])
    gradient = conv_input_gradient(op, cotangent, weight, four, (rows, columns), int_attribute(node, "group", 1))
    return [gradient]
