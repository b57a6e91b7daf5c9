"""Vjp rules of pooling and of reductions over positions."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from camrt.exporter.lowering import enlarge
from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import nominal_shape
from camrt.exporter.vjp.registry import (
    Gradients,
    constant_ints,
    int_attribute,
    ints_attribute,
    operand,
    register_vjp,
    unsupported,
)
from camrt.exporter.vjp.window import Window


@register_vjp("GlobalAveragePool")
def global_average_pool(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Every position gets dy / (h w)."""
    x = operand(node)
    return [op.expand_like(_per_position(op, cotangent, x, (2, 3)), x)]


@register_vjp("ReduceMean")
def reduce_mean(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Every element gets dy / (number of elements averaged)."""
    x, axes = operand(node), _axes(node)
    kept = _with_axes(op, node, cotangent, axes)
    return [op.expand_like(_per_position(op, kept, x, axes), x)]


@register_vjp("ReduceSum")
def reduce_sum(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Every element gets dy."""
    x = operand(node)
    return [op.expand_like(_with_axes(op, node, cotangent, _axes(node)), x)]


@register_vjp("ReduceMax", "GlobalMaxPool")
def reduce_max(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The largest elements share dy evenly, as torch.amax does."""
    x = operand(node)
    axes = (2, 3) if node.op_type == "GlobalMaxPool" else _axes(node)
    keep = node.op_type == "GlobalMaxPool" or int_attribute(node, "keepdims", 1) == 1
    peak = node.outputs[0] if keep else op("Unsqueeze", node.outputs[0], op.ints(axes))
    chosen = op.cast(op("Equal", x, peak))
    share = op("Div", chosen, op.reduce_sum(chosen, axes))
    gradient = op("Mul", share, cotangent if keep else op("Unsqueeze", cotangent, op.ints(axes)))
    return [gradient]


@register_vjp("AveragePool")
def average_pool(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Every position gets dy / (positions averaged) from each window that covers it."""
    window = Window.of(node)
    if window.is_identity:
        return [cotangent]
    include_pad = bool(int_attribute(node, "count_include_pad", 0))
    counts = window.counts(ints_attribute(node, "pads", (0, 0, 0, 0))[2:] if include_pad else None)
    share = op("Mul", cotangent, op.constant((1.0 / counts).astype(op.dtype.numpy())[None, None]))
    if not window.tiles:
        return [window.scatter(op, [share] * len(window.offsets), nominal_shape(operand(node))[1])]
    return [enlarge(op, share, window.strides)]


@register_vjp("MaxPool")
def max_pool(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The first maximum of each window, row by row, gets dy.

    The input at each offset of the windows is compared with the output; a running mask keeps the first match.
    """
    if len(node.outputs) > 1:
        raise unsupported(node, "its Indices output is used")
    window, y = Window.of(node), node.outputs[0]
    lowest = float(np.finfo(op.dtype.numpy()).min)
    taken: ir.Value | None = None
    parts = []
    for candidate in window.gather(op, operand(node), lowest):
        match = op("Equal", candidate, y)
        first = match if taken is None else op("And", match, op("Not", taken))
        taken = match if taken is None else op("Or", taken, match)
        parts.append(op("Mul", cotangent, op.cast(first)))
    return [window.scatter(op, parts, nominal_shape(y)[1])]


def _axes(node: ir.Node) -> tuple[int, ...]:
    """The reduced axes counted from the front, from the attribute or the input; the batch axis is refused."""
    given = constant_ints(node, 1) or ints_attribute(node, "axes", ())
    rank = len(nominal_shape(operand(node)))
    axes = tuple(sorted(axis % rank for axis in given))
    if not axes or axes[0] == 0:
        raise unsupported(node, "it reduces the batch axis")
    return axes


def _with_axes(op: OpBuilder, node: ir.Node, cotangent: ir.Value, axes: tuple[int, ...]) -> ir.Value:
    """The cotangent with the reduced axes present, of length 1."""
    if int_attribute(node, "keepdims", 1):
        return cotangent
    return op("Unsqueeze", cotangent, op.ints(axes))


def _per_position(op: OpBuilder, cotangent: ir.Value, x: ir.Value, axes: tuple[int, ...]) -> ir.Value:
    """The cotangent divided by the number of elements along ``axes``."""
    count = math.prod(nominal_shape(x)[axis] for axis in axes)
    return op("Mul", cotangent, op.scalar(1.0 / count))
