"""What each operator does to the meaning of axes, and the walk that finds it for every value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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
    swept,
    token_grid,
)
from camrt.exporter.graph_walk import consumed_values
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
    _follow(nodes, found)
    return found


def _follow(nodes: Iterable[ir.Node], found: _AxesOf) -> None:
    """Adds to ``found`` what ``nodes`` make of the values in it."""
    for node in nodes:
        if not any(value in found for value in consumed_values(node)):
            continue
        rule = _RULES.get(node.op_type, _elementwise)
        for output in node.outputs:
            if is_known(output):
                axes = rule(node, output, found)
                if axes is not None and fits(axes, nominal_shape(output)):
                    found[output] = tuple(merged(axis) for axis in axes)


def _source(node: ir.Node, found: _AxesOf, index: int = 0) -> Axes | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else found.get(value)


def _clearest(values: Sequence[ir.Value], found: _AxesOf) -> Axes | None:
    """The axes of the first value whose meaning is known in full, else those of the first."""
    clear = (found[value] for value in values if all(atom.is_clear for axis in found[value] for atom in axis))
    return next(clear, found[values[0]] if values else None)


def _elementwise(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    """Those of an input of the output's shape, or of the first one, if it has the output's rank and is broadcast."""
    known = [value for value in node.inputs if value is not None and value in found]
    shape = nominal_shape(output)
    same = _clearest([value for value in known if nominal_shape(value) == shape], found)
    if same is not None:
        return same
    if known and len(found[known[0]]) == len(shape):
        return resized(found[known[0]], shape)
    return None


def _if(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    """What both branches say."""
    said = []
    for name in ("then_branch", "else_branch"):
        branch, inner = node.attributes[name].as_graph(), dict(found)
        _follow(branch, inner)
        said.append(inner.get(branch.outputs[node.outputs.index(output)]))
    return said[0] if said[0] == said[1] else None


def _convolution(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    """New channels, on rows and columns as the input has them."""
    axes, shape = _window(node, output, found), nominal_shape(output)
    return None if axes is None else (axes[0], (Atom("C", shape[1]),), *axes[2:])


def _window(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    """Those of the input, at another resolution."""
    axes, shape = _source(node, found), nominal_shape(output)
    if axes is None or len(shape) != 4 or len(axes) != 4:
        return None
    windows = _window_lengths(node)
    return (axes[0], *(swept(axis, size, w) for axis, size, w in zip(axes[1:], shape[1:], (1, *windows), strict=True)))


def _window_lengths(node: ir.Node) -> tuple[int, int]:
    """Rows and columns that one place of the output is made of, or steps over; 1 where an operator has no window."""
    kernel = node.inputs[1] if node.op_type == "Conv" else None
    sizes = ints_attribute(node, "kernel_shape", ())
    if not sizes and kernel is not None and is_known(kernel):
        sizes = nominal_shape(kernel)[2:]
    if len(sizes) != 2 or node.op_type == "ConvTranspose":
        return 1, 1
    dilations, strides = ints_attribute(node, "dilations", (1, 1)), ints_attribute(node, "strides", (1, 1))
    reach = [max(1 + d * (k - 1), s) for k, d, s in zip(sizes, dilations, strides, strict=True)]
    return reach[0], reach[1]


def _normalization(node: ir.Node, _output: ir.Value, found: _AxesOf) -> Axes | None:
    return _source(node, found)


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
    """Channels beside channels, or tokens behind others that have no positions; anything else is unknown."""
    shape = nominal_shape(output)
    axis = int_attribute(node, "axis", 0) % len(shape)
    known = [value for value in node.inputs if value is not None and value in found]
    axes = list(_clearest(known, found) or ())
    joined = [found[value][axis] for value in known]
    *front, last = joined
    grid = token_grid(last) if known[-1] is node.inputs[-1] and not any(token_grid(part) for part in front) else None
    if all(is_channels(part) for part in joined):
        axes[axis] = (Atom("C", shape[axis]),)
    elif grid is not None:
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
    """What a slice of an axis is: channels, every n-th row, rows without those at the ends, or tokens of positions."""
    if is_channels(axis):
        return (Atom("C", size),)
    only = axis[0]
    if len(axis) == 1 and only.symbol in ("H", "W"):
        if step == 1:
            return (replace(only, size=size, shift=only.shift - (start if start >= 0 else start + only.size)),)
        if 0 <= start < step and only.shift == 0:
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
    if len(shape) != len(axes):
        return None
    taken = _ints(node, 1)
    if is_channels(axes[axis]) or taken == list(range(axis_size(axes[axis]))):
        return resized(axes, shape)
    return (*axes[:axis], (Atom("?", shape[axis]),), *axes[axis + 1 :])


def _pad(node: ir.Node, output: ir.Value, found: _AxesOf) -> Axes | None:
    """Rows and columns that are added at the end leave the others where they are, in front they shift them."""
    axes, shape, pads, given = _source(node, found), nominal_shape(output), _ints(node, 1), _ints(node, 3)
    if axes is None or pads is None:
        return None
    begins = dict(zip([axis % len(shape) for axis in given or range(len(shape))], pads, strict=False))
    result = list(resized(axes, shape))
    for index, axis in enumerate(axes):
        if shape[index] != BATCH and len(axis) == 1 and axis[0].symbol in ("H", "W"):
            result[index] = (replace(axis[0], size=shape[index], shift=axis[0].shift + begins.get(index, 0)),)
    return tuple(result)


_Rule: TypeAlias = Callable[[ir.Node, ir.Value, _AxesOf], "Axes | None"]
_CONVOLUTIONS = ("Conv", "ConvTranspose", "DepthToSpace", "SpaceToDepth")
_WINDOWS = ("MaxPool", "AveragePool", "LRN", "GlobalAveragePool", "GlobalMaxPool", "Resize")
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(_WINDOWS, _window),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _normalization),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("MatMul", "Gemm"), _matmul),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"), _reduce),
    "Einsum": _einsum,
    "If": _if,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Pad": _pad,
}
