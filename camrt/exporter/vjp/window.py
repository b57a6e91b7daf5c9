"""Geometry of sliding windows: paddings resolved, counts of averaged positions, and the way back to the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from camrt.exporter.lowering import fit, interleave
from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import nominal_shape
from camrt.exporter.vjp.registry import (
    ints_attribute,
    operand,
    refuse_batch,
    text_attribute,
    unsupported,
    zeros_like,
)

_MAX_POSITIONS = 1 << 14  # of one window: the gradient takes some nodes a position


def begin_pads(
    node: ir.Node, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int] = (1, 1)
) -> tuple[int, int]:
    """Padding above and to the left, with auto_pad resolved. A node of one dimension has a single row."""
    mode = text_attribute(node, "auto_pad", "NOTSET")
    if mode == "VALID":
        return 0, 0
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        shape, output = (nominal_shape(value)[2:] for value in (operand(node), node.outputs[0]))
        (height, width), (rows, columns) = ((1,) * (2 - len(sides)) + sides for sides in (shape, output))
        reach = [(o - 1) * strides[a] + dilations[a] * (kernel[a] - 1) + 1 for a, o in enumerate((rows, columns))]
        totals = [max(reach[a] - side, 0) for a, side in enumerate((height, width))]
        above, left = (total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in totals)
        return above, left
    pads = ints_attribute(node, "pads", (0, 0, 0, 0))
    return (0, pads[0]) if len(pads) == 2 else (pads[0], pads[1])


def end_pads(node: ir.Node, window: Window) -> tuple[int, int]:
    """Padding below and to the right that the node declares, with auto_pad resolved."""
    if text_attribute(node, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        rows, columns = window.end
        return max(rows, 0), max(columns, 0)
    pads = ints_attribute(node, "pads", (0, 0, 0, 0))
    return (0, pads[1]) if len(pads) == 2 else (pads[2], pads[3])


def rows_and_columns(numbers: Sequence[int]) -> tuple[int, int]:
    """Those of a node of two dimensions; one of one dimension has a single row."""
    return (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


@dataclass(frozen=True, slots=True)
class Window:
    """A pooling window over rows and columns; one over a single dimension has one row.

    Attributes:
        kernel, strides: (rows, columns); the stride of an axis with one output is its kernel.
        begin: padding above and to the left.
        size: spatial size of the input. output: of the output.
        one_dimensional: whether the node's values have no rows, (N, C, w).
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    begin: tuple[int, int]
    size: tuple[int, int]
    output: tuple[int, int]
    one_dimensional: bool = False

    @classmethod
    def of(cls, node: ir.Node) -> Window:
        """Reads a pooling node; refuses windows that are dilated, of three dimensions, or of absurd size."""
        given = ints_attribute(node, "kernel_shape", ())
        if len(given) not in (1, 2):
            raise unsupported(node, f"a window of rank {len(given)}")
        if any(rate != 1 for rate in ints_attribute(node, "dilations", ())):
            raise unsupported(node, "a dilated window")
        refuse_batch(node, operand(node), range(1, len(given) + 2))
        kernel, stated = rows_and_columns(given), rows_and_columns(ints_attribute(node, "strides", (1, 1)))
        size, output = (rows_and_columns(nominal_shape(value)[2:]) for value in (operand(node), node.outputs[0]))
        strides = rows_and_columns([kernel[a] if output[a] == 1 else stated[a] for a in (0, 1)])
        if min(*kernel, *strides) < 1 or max(kernel[0] * kernel[1], strides[0] * strides[1]) > _MAX_POSITIONS:
            raise unsupported(node, f"a window of {given} with strides of {stated}")
        begin = begin_pads(node, kernel, stated)
        window = cls(kernel, strides, begin, size, output, one_dimensional=len(given) == 1)
        if text_attribute(node, "auto_pad", "NOTSET").startswith("SAME") and min(window.end) < 0:
            raise unsupported(node, "its auto_pad, with windows that do not reach the end of the input")
        return window

    def with_rows(self, op: OpBuilder, value: ir.Value) -> ir.Value:
        """(N, C, w) as (N, C, 1, w); what has rows stays."""
        return op("Unsqueeze", value, op.ints([2])) if self.one_dimensional else value

    def without_rows(self, op: OpBuilder, value: ir.Value) -> ir.Value:
        """The inverse of ``with_rows``."""
        return op("Squeeze", value, op.ints([2])) if self.one_dimensional else value

    @property
    def is_identity(self) -> bool:
        """Whether every output is one input."""
        return self.kernel == self.strides == (1, 1) and self.size == self.output

    @property
    def tiles(self) -> bool:
        """Whether the windows cover the input exactly once."""
        covered = (self.output[0] * self.strides[0], self.output[1] * self.strides[1])
        return self.kernel == self.strides and self.begin == (0, 0) and covered == self.size

    @property
    def is_whole(self) -> bool:
        """Whether the only window is the whole input."""
        return self.tiles and self.output == (1, 1)

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """(row, column) of every element of the window, row by row."""
        return list(product(range(self.kernel[0]), range(self.kernel[1])))

    @property
    def end(self) -> tuple[int, int]:
        """How far the last window reaches past the input; ceil_mode makes it more than the declared padding."""
        rows, columns = (
            (self.output[a] - 1) * self.strides[a] + self.kernel[a] - self.begin[a] - self.size[a] for a in (0, 1)
        )
        return rows, columns

    def counts(self, declared_end: Sequence[int] | None) -> npt.NDArray[np.float64]:
        """How many positions each window averages over, (h', w'); padding counts where its ends are given."""
        per_axis = []
        for a in (0, 1):
            low = 0 if declared_end is None else -self.begin[a]
            high = self.size[a] + (0 if declared_end is None else declared_end[a])
            starts = np.arange(self.output[a]) * self.strides[a] - self.begin[a]
            per_axis.append(np.minimum(starts + self.kernel[a], high) - np.maximum(starts, low))
        counts: npt.NDArray[np.float64] = np.multiply.outer(per_axis[0], per_axis[1]).astype(np.float64)
        return counts

    def gather(self, op: OpBuilder, value: ir.Value, fill: float) -> list[ir.Value]:
        """For every offset, the input at that offset of all windows, (N, C, h', w'); ``fill`` outside the input."""
        top, left = self.begin
        bottom, right = (max(length, 0) for length in self.end)
        if any((top, left, bottom, right)):
            value = op("Pad", value, op.ints([0, 0, top, left, 0, 0, bottom, right]), op.scalar(fill))
        (sh, sw), (oh, ow) = self.strides, self.output
        axes, steps = op.ints([2, 3]), op.ints([sh, sw])
        return [
            op("Slice", value, op.ints([i, j]), op.ints([i + (oh - 1) * sh + 1, j + (ow - 1) * sw + 1]), axes, steps)
            for i, j in self.offsets
        ]

    def scatter(self, op: OpBuilder, parts: Sequence[ir.Value], channels: int) -> ir.Value:
        """The transpose of ``gather``: adds part after part, (M, C, h', w') each, to (M, C, h, w).

        Offset i = s a + r lands in phase r, moved by a: parts of one phase are moved by padding and added, the phases
        interleaved.
        """
        (sh, sw), (kh, kw) = self.strides, self.kernel
        room = ((kh - 1) // sh, (kw - 1) // sw)
        phases: dict[tuple[int, int], ir.Value] = {}
        for (i, j), part in zip(self.offsets, parts, strict=True):
            (a, row), (b, column) = divmod(i, sh), divmod(j, sw)
            if room != (0, 0):
                part = op("Pad", part, op.ints([0, 0, a, b, 0, 0, room[0] - a, room[1] - b]), op.scalar(0.0))
            phase = (row, column)
            phases[phase] = op("Add", phases[phase], part) if phase in phases else part
        if len(phases) < sh * sw:
            empty = zeros_like(op, phases[0, 0])
            phases = {phase: phases.get(phase, empty) for phase in product(range(sh), range(sw))}
        q, r = self.output[0] + room[0], self.output[1] + room[1]
        whole = interleave(op, [phases[phase] for phase in sorted(phases)], self.strides, (channels, q, r))
        return fit(op, whole, self.begin, (sh * q, sw * r), self.size)
