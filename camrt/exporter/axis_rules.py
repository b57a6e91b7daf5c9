"""What each operator does to the meaning of axes, and the walk that finds it for every value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeAlias

import onnx_ir as ir

from camrt.exporter.axes import (
    Atom,
    Axes,
    Axis,
    axis_size,
    fits,
    is_channels,
    merged,
    named_axes,
    regrouped,
    resized,
    token_grid,
)
from camrt.exporter.shapes import BATCH, is_known, nominal_shape
from camrt.exporter.vjp.registry import int_attribute, ints_attribute

_AxesOf: TypeAlias = dict[ir.Value, Axes]


def find_axes(image: ir.Value, image_axes: str, nodes: Iterable[ir.Node]) -> dict[ir.Value, Axes]:
    """The axes of every value that ``nodes`` make of the image, as far as they are known.

    Args:
        image: (N, C, H, W) or (N, H, W, C).
        image_axes: "NCHW" or "NHWC".
        nodes: from the image to the logits, in topological order.
    """
    found: _AxesOf = {image: named_axes(nominal_shape(image), image_axes)}
    for node in nodes:
        if not any(value in found for value in node.inputs if value is not None):
            continue
        rule = _RULES.get(node.op_type, _elementwise)
        for output in node.outputs:
            if is_known(output):
                axes = rule(node, output, found)
                if axes is not None and fits(axes, nominal_shape(output)):
                    found[output] = tuple(merged(axis) for axis in axes)
    return found


def _source(node: ir.Node, found: _AxesOf, index: int = 0) -> Axes | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else found.get(value)


def _elementwise(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    """Those of the first input of the output's shape, or that has the output's rank and is broadcast."""
    known = [value for value in node.inputs if value is not None and value in found]
    shape = nominal_shape(output)
    same = [value for value in known if nominal_shape(value) == shape]
    whole = next((value for value in same if not any(a.symbol == "?" for axis in found[value] for a in axis)), None)
    if whole is not None or same:
        return found[whole or same[0]]
    if known and len(found[known[0]]) == len(shape):
        return resized(found[known[0]], shape)
    return None


def _image_like(_node: ir.Node, output: ir.Value, _found: _AxesOf) -> Axes | None:
    shape = nominal_shape(output)
    return named_axes(shape, "NCHW") if len(shape) == 4 else None


def _normalization(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    return _source(node, found) or _image_like(node, output, found)


def _resize(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    axes, shape = _source(node, found), nominal_shape(output)
    if axes is None or any(len(axis) != 1 for axis in axes):
        return _image_like(node, output, found)
    return tuple((replace(axis[0], size=size),) for axis, size in zip(axes, shape, strict=True))


def _transpose(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    axes = _source(node, found)
    permutation = ints_attribute(node, "perm", range(len(nominal_shape(output)) - 1, -1, -1))
    return None if axes is None else tuple(axes[index] for index in permutation)


def _reshape(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    axes = _source(node, found)
    return None if axes is None else regrouped(axes, nominal_shape(output))


def _matmul(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    """Rows of the left operand, columns of the right one."""
    left, right = _source(node, found, 0), _source(node, found, 1)
    shape = nominal_shape(output)
    if left is not None and len(left) == len(shape):
        channels = (Atom("C", shape[-1]),)
        return (*left[:-1], right[-1] if right is not None else channels)
    if right is not None and len(right) == len(shape):
        return (*right[:-2], (Atom("C", shape[-2]),), right[-1])
    return None


def _einsum(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    """Each letter brings the axis of the first known operand that has it."""
    terms, arrow, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    if not arrow or "." in terms:
        return None
    meaning: dict[str, Axis] = {}
    for index, term in enumerate(terms.split(",")):
        for letter, axis in zip(term, _source(node, found, index) or (), strict=False):
            meaning.setdefault(letter, axis)
    return tuple(
        meaning.get(letter, (Atom("C", size),)) for letter, size in zip(result, nominal_shape(output), strict=True)
    )


def _reduce(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    axes, shape = _source(node, found), nominal_shape(output)
    if axes is None:
        return None
    if len(axes) == len(shape):
        return tuple(
            axis if size == BATCH or axis_size(axis) == size else () for axis, size in zip(axes, shape, strict=True)
        )
    remaining = list(axes)
    return regrouped(tuple(axis for axis in remaining if _is_kept(axis)), shape)


def _is_kept(axis: Axis) -> bool:
    return any(atom.symbol in ("N", "C") for atom in axis)


def _concat(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    shape = nominal_shape(output)
    axis = int_attribute(node, "axis", 0) % len(shape)
    known = [value for value in node.inputs if value is not None and value in found]
    axes = list(found[known[0]])
    joined = [found[value][axis] for value in known]
    grid = token_grid(joined[0])
    if all(is_channels(part) for part in joined):
        axes[axis] = (Atom("C", shape[axis]),)
    elif len(known) == 1 and known[0] is node.inputs[-1] and grid is not None:
        axes[axis] = (Atom("T", shape[axis], grid=grid),)
    else:
        axes[axis] = (Atom("?", shape[axis]),)
    return tuple(axes)


def _slice(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    axes, shape = _source(node, found), nominal_shape(output)
    starts, given, steps = (_ints(node, index) for index in (1, 3, 4))
    if axes is None or starts is None:
        return None
    order = given or range(len(starts))
    result = list(axes)
    for position, axis in enumerate(order):
        axis %= len(shape)
        step = steps[position] if steps else 1
        if shape[axis] != BATCH and (shape[axis] != axis_size(axes[axis]) or step != 1):
            result[axis] = _sliced(axes[axis], starts[position], step, shape[axis])
    return tuple(result)


def _sliced(axis: Axis, start: int, step: int, size: int) -> Axis:
    """What a slice of an axis is: channels, every n-th row, rows without those at the end, or tokens of positions."""
    if is_channels(axis):
        return (Atom("C", size),)
    only = axis[0]
    if len(axis) == 1 and only.symbol in ("H", "W") and 0 <= start < step:
        return (replace(only, size=size, stride=only.stride * step),)
    if len(axis) == 1 and only.symbol == "T" and start == only.prefix and step == 1 and size == math.prod(only.grid):
        return (Atom("H", only.grid[0]), Atom("W", only.grid[1]))
    return (Atom("?", size),)


def _ints(node: ir.Node, index: int) -> list[int] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return (
        None if value is None or value.const_value is None else [int(i) for i in value.const_value.numpy().reshape(-1)]
    )


def _split(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    axes = _source(node, found)
    return None if axes is None else resized(axes, nominal_shape(output))


def _gather(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    axes, indices, shape = _source(node, found), node.inputs[1], nominal_shape(output)
    if axes is None or indices is None or indices.shape is None:
        return None
    axis = int_attribute(node, "axis", 0) % len(axes)
    if len(shape) == len(axes) - 1:
        return (*axes[:axis], *axes[axis + 1 :])
    return resized(axes, shape) if len(shape) == len(axes) else None


def _pad(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    """Rows and columns that are added at the end leave the others where they are."""
    axes, shape, pads, given = _source(node, found), nominal_shape(output), _ints(node, 1), _ints(node, 3)
    if axes is None or pads is None:
        return None
    begins = dict(zip([axis % len(shape) for axis in given or range(len(shape))], pads, strict=False))
    result = list(resized(axes, shape))
    for index, axis in enumerate(axes):
        if shape[index] not in (BATCH, axis_size(axis)) and begins.get(index, 0) == 0 and len(axis) == 1:
            result[index] = (replace(axis[0], size=shape[index]),) if axis[0].symbol in ("H", "W") else result[index]
    return tuple(result)


_Rule: TypeAlias = Callable[[ir.Node, ir.Value, _AxesOf], "Axes | None"]
_IMAGE_OPERATORS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LRN", "DepthToSpace", "SpaceToDepth")
_RULES: dict[str, _Rule] = {
    **dict.fromkeys((*_IMAGE_OPERATORS, "GlobalAveragePool", "GlobalMaxPool"), _image_like),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _normalization),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("MatMul", "Gemm"), _matmul),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"), _reduce),
    "Einsum": _einsum,
    "Resize": _resize,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Pad": _pad,
}
