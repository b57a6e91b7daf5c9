"""Vjp rules of operators that move elements without changing them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import BATCH, nominal_shape
from camrt.exporter.vjp.indexing import put_back
from camrt.exporter.vjp.registry import (
    Gradients,
    constant_ints,
    int_attribute,
    ints_attribute,
    operand,
    refuse_batch,
    register_multi_output_vjp,
    register_vjp,
    text_attribute,
    unbroadcast,
    unsupported,
)


@register_vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The elements keep their order; the axis that holds the batch is inferred."""
    x, y = operand(node), node.outputs[0]
    if (x in op.batch_axes) != (y in op.batch_axes):
        raise unsupported(node, "it divides the batch")
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
    """The parts side by side again; parts that nobody used count as zeros."""
    x = operand(node)
    axis = _axis(node, x)
    if all(cotangent is not None for cotangent in cotangents):
        return [op("Concat", *cotangents, axis=axis)]
    gradient: ir.Value | None = None
    start = 0
    for output, cotangent in zip(node.outputs, cotangents, strict=True):
        end = start + nominal_shape(output)[axis]
        if cotangent is not None:
            part = put_back(op, cotangent, np.arange(start, end), nominal_shape(x), axis)
            gradient = part if gradient is None else op("Add", gradient, part)
        start = end
    return [gradient]


@register_vjp("Tile")
def tile(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Sums over the copies: an axis of length r d is (r, d), and r is summed."""
    shape, repeats = nominal_shape(operand(node)), constant_ints(node, 1)
    assert repeats is not None
    if any(repeat != 1 for repeat, dim in zip(repeats, shape, strict=True) if dim == BATCH):
        raise unsupported(node, "it repeats the batch")
    apart: list[int] = []
    copies: list[int] = []
    for repeat, dim in zip(repeats, shape, strict=True):
        if repeat > 1:
            copies.append(len(apart))
            apart.append(repeat)
        apart.append(dim)
    if not copies:
        return [cotangent]
    return [op.reduce_sum(op("Reshape", cotangent, op.ints(apart)), copies, keepdims=0)]


@register_vjp("DepthToSpace")
def depth_to_space(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The inverse; mode CRD keeps the channels in front of their blocks, DCR behind them."""
    x, block = operand(node), int_attribute(node, "blocksize", 1)
    refuse_batch(node, x, [1, 2, 3])
    if text_attribute(node, "mode", "DCR") == "DCR":
        return [op("SpaceToDepth", cotangent, blocksize=block)]
    _, channels, height, width = nominal_shape(x)
    blocks = op("Reshape", cotangent, op.ints([-1, channels // block**2, height, block, width, block]))
    return [op.reshape_like(op("Transpose", blocks, perm=[0, 1, 3, 5, 2, 4]), x)]


@register_vjp("SpaceToDepth")
def space_to_depth(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The inverse."""
    refuse_batch(node, operand(node), [1, 2, 3])
    return [op("DepthToSpace", cotangent, blocksize=int_attribute(node, "blocksize", 1), mode="DCR")]


def _axis(node: ir.Node, value: ir.Value) -> int:
    """The node's axis counted from the front; the batch axis is refused."""
    axis = int_attribute(node, "axis", 0) % len(nominal_shape(value))
    refuse_batch(node, value, [axis])
    return axis


def _slice(op: OpBuilder, value: ir.Value, start: int, end: int, axis: int) -> ir.Value:
    return op("Slice", value, op.ints([start]), op.ints([end]), op.ints([axis]))
