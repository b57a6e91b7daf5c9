"""Vjp rules of operators that move elements without changing them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import BATCH, nominal_shape
from camrt.exporter.vjp.registry import (
    Gradients,
    constant_ints,
    int_attribute,
    ints_attribute,
    operand,
    register_multi_output_vjp,
    register_vjp,
    unbroadcast,
    unsupported,
)


@register_vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The elements keep their order; the first axis, which holds the batch, is inferred."""
    x = operand(node)
    if nominal_shape(x)[0] != BATCH and nominal_shape(node.outputs[0])[0] == BATCH:
        raise unsupported(node, "it moves the batch to the first axis")
    return [op.reshape_like(cotangent, x)]


@register_vjp("Transpose")
def transpose(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The inverse permutation."""
    rank = len(nominal_shape(operand(node)))
    permutation = ints_attribute(node, "perm", range(rank - 1, -1, -1))
    return [op("Transpose", cotangent, perm=[int(axis) for axis in np.argsort(permutation)])]


@register_vjp("Expand")
def expand(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Sums over the axes that were repeated."""
    return [unbroadcast(op, cotangent, operand(node), node.outputs[0])]


@register_vjp("Concat")
def concat(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Each part gets its slice."""
    axis = _axis(node, operand(node))
    gradients: list[ir.Value | None] = []
    start = 0
    for value in node.inputs:
        assert value is not None
        length = nominal_shape(value)[axis]
        gradients.append(_slice(op, cotangent, start, start + length, axis) if op.wants(value) else None)
        start += length
    return gradients


@register_multi_output_vjp("Split")
def split(op: OpBuilder, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> Gradients:
    """The parts side by side again; a part that nobody used counts as zeros."""
    axis = _axis(node, operand(node))
    template = next(cotangent for cotangent in cotangents if cotangent is not None)
    batch = op("Shape", template, start=0, end=1)
    parts = []
    for output, cotangent in zip(node.outputs, cotangents, strict=True):
        if cotangent is None:
            size = op("Concat", batch, op.ints(nominal_shape(output)[1:]), axis=0)
            cotangent = op("Expand", op.scalar(0.0), size)
        parts.append(cotangent)
    return [op("Concat", *parts, axis=axis)]


@register_vjp("Slice")
def slice_(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Zeros around the part that was taken; steps other than 1 are refused."""
    x, y = operand(node), node.outputs[0]
    starts, ends = constant_ints(node, 1), constant_ints(node, 2)
    assert starts is not None
    assert ends is not None
    axes = constant_ints(node, 3) or tuple(range(len(starts)))
    if any(step != 1 for step in constant_ints(node, 4) or ()):
        raise unsupported(node, "a step other than 1")
    shape, rank = nominal_shape(x), len(nominal_shape(x))
    before, after = [0] * rank, [0] * rank
    for axis, start in zip(axes, starts, strict=True):
        axis %= rank
        length = shape[axis]
        before[axis] = max(start + length, 0) if start < 0 else min(start, length)
        after[axis] = length - before[axis] - nominal_shape(y)[axis]
    padded = op("Pad", cotangent, op.ints([*before, *after]), op.scalar(0.0))
    return [padded]


@register_vjp("Pad")
def pad(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The part inside the padding; only constant padding with non-negative amounts."""
    mode = node.attributes.get("mode")
    pads = constant_ints(node, 1)
    assert pads is not None
    if (mode is not None and mode.as_string() != "constant") or min(pads) < 0:
        raise unsupported(node, "a mode other than constant, or a negative amount")
    axes = constant_ints(node, 3) or tuple(range(len(pads) // 2))
    gradient = cotangent
    for axis, start in zip(axes, pads, strict=False):
        length = nominal_shape(operand(node))[axis]
        if nominal_shape(node.outputs[0])[axis] != length:
            gradient = _slice(op, gradient, start, start + length, axis)
    return [gradient]


def _axis(node: ir.Node, value: ir.Value) -> int:
    """The node's axis counted from the front; the batch axis is refused."""
    axis = int_attribute(node, "axis", 0) % len(nominal_shape(value))
    if axis == 0:
        raise unsupported(node, "it works along the batch axis")
    return axis


def _slice(op: OpBuilder, value: ir.Value, start: int, end: int, axis: int) -> ir.Value:
    return op("Slice", value, op.ints([start]), op.ints([end]), op.ints([axis]))
