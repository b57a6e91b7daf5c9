"""Vjp rules of operators that take elements by their index along an axis."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import BATCH, nominal_shape
from camrt.exporter.vjp.registry import (
    Gradients,
    constant_ints,
    int_attribute,
    operand,
    register_vjp,
    text_attribute,
    unsupported,
)

_PAD_MODES = ("constant", "reflect", "edge", "wrap")


@register_vjp("Slice")
def slice_(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Zeros where nothing was taken."""
    starts, ends = constant_ints(node, 1), constant_ints(node, 2)
    assert starts is not None
    assert ends is not None
    shape = nominal_shape(operand(node))
    axes = constant_ints(node, 3) or tuple(range(len(starts)))
    steps = constant_ints(node, 4) or (1,) * len(starts)
    gradient = cotangent
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis %= len(shape)
        if shape[axis] == BATCH:
            if (start, step) != (0, 1) or end < np.iinfo(np.int32).max:
                raise unsupported(node, "it takes a part of the batch")
            continue
        gradient = put_back(op, gradient, np.arange(shape[axis])[slice(start, _open(end, step), step)], shape, axis)
    return [gradient]


def _open(end: int, step: int) -> int | None:
    """The end for Python's slices, where ONNX's "beyond the first element" has no number."""
    return None if step < 0 and end <= -(2**31) else end


@register_vjp("Gather")
def gather(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Every element gets the sum of what was taken from it; the indices must be constant."""
    x, given = operand(node), operand(node, 1)
    indices = constant_ints(node, 1)
    shape = nominal_shape(x)
    axis = int_attribute(node, "axis", 0) % len(shape)
    if shape[axis] == BATCH:
        raise unsupported(node, "it takes a part of the batch")
    if op.wants(given) or indices is None:
        raise unsupported(node, "its indices depend on the image")
    rank = len(nominal_shape(given))
    if rank == 0:
        cotangent = op("Unsqueeze", cotangent, op.ints([axis]))
    elif rank > 1:
        flat = [*shape[:axis], len(indices), *shape[axis + 1 :]]
        cotangent = op("Reshape", cotangent, op.ints(flat))
    return [put_back(op, cotangent, np.asarray(indices) % shape[axis], shape, axis)]


@register_vjp("Pad")
def pad(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The part inside the padding; what a mode repeats from inside goes back to where it came from."""
    mode, pads = text_attribute(node, "mode", "constant"), constant_ints(node, 1)
    if pads is None or mode not in _PAD_MODES:
        raise unsupported(node, f"its mode is {mode}")
    shape = nominal_shape(operand(node))
    axes = constant_ints(node, 3) or tuple(range(len(pads) // 2))
    gradient = cotangent
    for axis, begin, end in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        axis %= len(shape)
        if (begin, end) != (0, 0):
            if shape[axis] == BATCH:
                raise unsupported(node, "it pads the batch axis")
            gradient = _unpadded(op, gradient, mode, (begin, end), shape, axis)
    return [gradient]


def _unpadded(
    op: OpBuilder, cotangent: ir.Value, mode: str, pads: tuple[int, int], shape: tuple[int, ...], axis: int
) -> ir.Value:
    """Undoes the padding of one axis."""
    (begin, end), length = pads, shape[axis]
    first, last = max(begin, 0), length + begin - max(-end, 0)
    if mode == "constant":
        inside = op("Slice", cotangent, op.ints([first]), op.ints([last]), op.ints([axis]))
        kept = np.arange(max(-begin, 0), length - max(-end, 0))
        return put_back(op, inside, kept, shape, axis)
    numbers = np.arange(max(-begin, 0), length - max(-end, 0))
    padded = np.pad(numbers, (max(begin, 0), max(end, 0)), mode=mode)  # type: ignore[call-overload]
    return put_back(op, cotangent, padded, shape, axis)


def put_back(
    op: OpBuilder, cotangent: ir.Value, indices: npt.NDArray[np.int_], shape: tuple[int, ...], axis: int
) -> ir.Value:
    """The gradient of x, of ``shape``, where y = x[..., indices, ...] along ``axis`` and ``cotangent`` is y's.

    1. A run of neighbours: zeros around it.
    2. Every element at most once: a zero is put behind the cotangent, and each element takes its own or the zero.
    3. Otherwise a product with the constant matrix that sums them.
    """
    length, rank = shape[axis], len(shape)
    if np.array_equal(indices, np.arange(length)):
        return cotangent
    if len(indices) and np.array_equal(indices, np.arange(indices[0], indices[0] + len(indices))):
        return _pad_axis(op, cotangent, rank, axis, int(indices[0]), length - int(indices[-1]) - 1)
    if len(set(indices.tolist())) == len(indices):
        origin = np.full(length, len(indices))
        origin[indices] = np.arange(len(indices))
        with_zero = _pad_axis(op, cotangent, rank, axis, 0, 1) if len(indices) < length else cotangent
        return op("Gather", with_zero, op.ints(origin.tolist()), axis=axis)
    sums = np.zeros((len(indices), length), op.dtype.numpy())
    sums[np.arange(len(indices)), indices] = 1
    order = [*(a for a in range(rank) if a != axis), axis]
    product = op("MatMul", op("Transpose", cotangent, perm=order), op.constant(sums))
    return op("Transpose", product, perm=[int(a) for a in np.argsort(order)])


def _pad_axis(op: OpBuilder, value: ir.Value, rank: int, axis: int, before: int, after: int) -> ir.Value:
    """Zeros in front of and behind one axis."""
    pads = [0] * (2 * rank)
    pads[axis], pads[rank + axis] = before, after
    return op("Pad", value, op.ints(pads), op.scalar(0.0))
