"""Where the axis of the images is after a Reshape or Slice, in a graph whose batch is fixed to a number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

_BEYOND = 2**31 - 1  # an end that exporters write for "all"


def regrouped_axis(
    before: Sequence[int], axis: int, outer: int, after: Sequence[int], batch: int
) -> tuple[int, int] | None:
    """(axis, outer) after a Reshape: as many elements lie in front of an image as before.

    With one image that can be said of several axes. An axis of the length of the batch is preferred, then the same axis
    as before, then any but the last, which holds channels.
    """
    front, last = math.prod(before[:axis]) * outer, len(after) - 1
    choices = {}
    for position, length in enumerate(after):
        ahead = math.prod(after[:position])
        if ahead and front % ahead == 0 and length % (front // ahead * batch) == 0:
            choices[position] = front // ahead
    best = sorted(
        choices.items(),
        key=lambda item: (
            not (item[1] == 1 and after[item[0]] == batch),
            item[0] == last and last > 0,
            item[0] != axis,
            item[0],
        ),
    )
    return best[0] if best else None


def cuts_axis(node: ir.Node, axis: int, rank: int) -> bool:
    """Whether a Slice takes a part of ``axis``; one from the start to beyond any end takes all of it."""
    starts, ends, steps = constant_numbers(node, 1), constant_numbers(node, 2), constant_numbers(node, 4)
    axes = constant_numbers(node, 3) or range(len(starts))
    for position, (start, end) in zip(axes, zip(starts, ends, strict=False), strict=False):
        if position % rank == axis and (start != 0 or end < _BEYOND or any(step != 1 for step in steps)):
            return True
    return False


def constant_numbers(node: ir.Node, index: int) -> tuple[int, ...]:
    """The integers of a constant input; none where it is left out or computed."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None:
        return ()
    return tuple(int(number) for number in value.const_value.numpy().reshape(-1))
