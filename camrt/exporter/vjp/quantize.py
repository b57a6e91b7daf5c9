"""Vjp rules of quantisation: straight through inside the clipping range, as in quantisation-aware training.

QuantizeLinear is a staircase, whose derivative says nothing. A pair of QuantizeLinear and DequantizeLinear stands for
the identity with clipping, and is differentiated so: Bengio et al. 2013, arXiv 1308.3432; Jacob et al. 2018,
arXiv 1712.05877. The gradient of the integers in between is that of the numbers they stand for.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import is_float, nominal_shape
from camrt.exporter.vjp.activation import keep_where
from camrt.exporter.vjp.registry import Gradients, int_attribute, operand, register_vjp, unsupported
from camrt.types import AnyArray

_INTEGERS = {
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
}


@register_vjp("DequantizeLinear")
def dequantize(_op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The gradient of the numbers that the integers stand for."""
    if is_float(operand(node)):
        raise unsupported(node, "its input is no integer")
    return [cotangent]


@register_vjp("QuantizeLinear")
def quantize(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """q = clip(round(x / s) + z, low, high); dx = dy where round(x / s) + z lies within low and high, else 0."""
    x, kind = operand(node), node.outputs[0].dtype
    if kind not in _INTEGERS or x.dtype is None:
        raise unsupported(node, f"a quantisation to {kind}; to 8 or 16 bit integers only")
    scale = _numbers(node, 1)
    zero = _numbers(node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros_like(scale)
    if scale.size > 1:
        rank = len(nominal_shape(x))
        axis = int_attribute(node, "axis", 1) % rank
        shape = [-1 if position == axis else 1 for position in range(rank)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    low, high = _INTEGERS[kind]
    bounds = [(limit - zero) * scale for limit in (low - 0.5, high + 0.5)]
    lower, upper = (op.constant(bound.astype(x.dtype.numpy())) for bound in bounds)
    inside = op("And", op("Greater", x, lower), op("Less", x, upper))
    op.dtype = x.dtype
    return [keep_where(op, inside, cotangent)]


def _numbers(node: ir.Node, index: int) -> AnyArray:
    value = operand(node, index)
    if value.const_value is None:
        raise unsupported(node, "its scale or zero point is computed from the image: dynamic quantisation")
    return value.const_value.numpy().astype(np.float64)
