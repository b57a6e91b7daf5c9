"""Vjp rules of pooling, and of normalisation over a window of channels."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from camrt.exporter.lowering import enlarge, tiled_max_gradient
from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import is_float, nominal_shape
from camrt.exporter.vjp.activation import keep_where
from camrt.exporter.vjp.reduction import share_among_equal
from camrt.exporter.vjp.registry import (
    Gradients,
    float_attribute,
    int_attribute,
    operand,
    refuse_batch,
    register_vjp,
    unsupported,
)
from camrt.exporter.vjp.window import Window, end_pads

_MAX_RANKS = 2048  # float16 counts no further


@register_vjp("GlobalAveragePool")
def global_average_pool(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Every position gets dy / (h w)."""
    x = operand(node)
    count = math.prod(nominal_shape(x)[axis] for axis in _positions(node))
    return [op.expand_like(op("Mul", cotangent, op.scalar(1.0 / count)), x)]


@register_vjp("GlobalMaxPool")
def global_max_pool(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The largest elements share dy evenly, as torch.amax does."""
    return [share_among_equal(op, operand(node), node.outputs[0], cotangent, _positions(node))]


def _positions(node: ir.Node) -> tuple[int, ...]:
    """The axes behind the channels."""
    x = operand(node)
    axes = tuple(range(2, len(nominal_shape(x))))
    refuse_batch(node, x, axes)
    return axes


@register_vjp("AveragePool")
def average_pool(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Every position gets dy / (positions averaged) from each window that covers it. A 1-D window has a single row."""
    window = Window.of(node)
    if window.is_identity:
        return [cotangent]
    include_pad = bool(int_attribute(node, "count_include_pad", 0))
    counts = window.counts(end_pads(node, window) if include_pad else None)
    dy = window.with_rows(op, cotangent)
    share = op("Mul", dy, op.constant((1.0 / counts).astype(op.dtype.numpy())[None, None]))
    if window.tiles:
        return [window.without_rows(op, enlarge(op, share, window.strides))]
    gradient = window.scatter(op, [share] * len(window.offsets), nominal_shape(operand(node))[1])
    return [window.without_rows(op, gradient)]


@register_vjp("MaxPool")
def max_pool(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The first maximum of each window, row by row, gets dy.

    The input at each offset of the windows is compared with the output; a running mask keeps the first match. Windows
    that tile the input have a faster form, see camrt.exporter.lowering.
    """
    if len(node.outputs) > 1:
        raise unsupported(node, "its Indices output is used")
    if not is_float(node.outputs[0]):
        raise unsupported(node, "it works on integers")
    window = Window.of(node)
    x, y, dy = (window.with_rows(op, value) for value in (operand(node), node.outputs[0], cotangent))
    if op.lowering and window.tiles and len(window.offsets) <= _MAX_RANKS:
        return [window.without_rows(op, tiled_max_gradient(op, x, y, dy, window.kernel, window.size))]
    lowest = float(np.finfo(op.dtype.numpy()).min)
    taken: ir.Value | None = None
    parts = []
    for candidate in window.gather(op, x, lowest):
        match = op("Equal", candidate, y)
        first = match if taken is None else op("And", match, op("Not", taken))
        taken = match if taken is None else op("Or", taken, match)
        parts.append(keep_where(op, first, dy))
    return [window.without_rows(op, window.scatter(op, parts, nominal_shape(operand(node))[1]))]


@register_vjp("LRN")
def local_response_normalization(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = x d^-beta, d = bias + alpha / size * (sum of x^2 over a window of channels).

    dx = dy d^-beta - 2 alpha beta / size * x * (sum over the mirrored window of dy x d^(-beta - 1)).
    """
    x, size = operand(node), int_attribute(node, "size", 1)
    refuse_batch(node, x, [1])
    alpha, beta = float_attribute(node, "alpha", 1e-4), float_attribute(node, "beta", 0.75)
    before, after = (size - 1) // 2, size // 2
    spread = op("Mul", _over_channels(op, op("Mul", x, x), x, before, after), op.scalar(alpha))
    d = op("Add", spread, op.scalar(float_attribute(node, "bias", 1.0)))
    scaled = op("Mul", cotangent, op("Pow", d, op.scalar(-beta)))
    through = _over_channels(op, op("Div", op("Mul", scaled, x), d), x, after, before)
    return [op("Sub", scaled, op("Mul", op("Mul", x, op.scalar(2 * alpha * beta)), through))]


def _over_channels(op: OpBuilder, value: ir.Value, x: ir.Value, before: int, after: int) -> ir.Value:
    """The mean, zeros counted, over each channel, ``before`` ones in front of it and ``after`` ones behind it."""
    channels, *sides = nominal_shape(x)[1:]
    flat = op("Reshape", value, op.ints([-1, 1, channels, math.prod(sides)]))
    kernel, pads = [before + 1 + after, 1], [before, 0, after, 0]
    mean = op("AveragePool", flat, kernel_shape=kernel, pads=pads, strides=[1, 1], count_include_pad=1)
    return op.reshape_like(mean, x)
