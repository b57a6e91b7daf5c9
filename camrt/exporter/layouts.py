"""Where the positions of a layer are kept, and how its values are put upright: (N, C, h, w)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from camrt.bundle import Layout
from camrt.exporter.axes import Axes, Axis
from camrt.exporter.op_builder import OpBuilder

_TO_NCHW = [0, 3, 1, 2]
_LAYOUTS: dict[tuple[str, ...], Layout] = {
    ("C", "H", "W"): "NCHW",
    ("H", "W", "C"): "NHWC",
    ("HW", "C"): "NLC",
    ("C", "HW"): "NCL",
}


@dataclass(frozen=True, slots=True)
class Placement:
    """How the graph keeps a layer.

    Attributes:
        layout: the order of its axes; L counts positions row by row.
        shape: (C, h, w).
        prefix: tokens in front of those that have positions, a class token say; 0 but for NLC.
    """

    layout: Layout
    shape: tuple[int, int, int]
    prefix: int = 0

    def upright(self, op: OpBuilder, value: ir.Value) -> ir.Value:
        """``value`` (N, ...), kept like the layer, as (N, C, h, w), without the tokens that have no position."""
        if self.layout == "NCHW":
            return value
        if self.layout == "NHWC":
            return op("Transpose", value, perm=_TO_NCHW)
        if self.prefix:
            end = self.prefix + self.shape[1] * self.shape[2]
            value = op("Slice", value, op.ints([self.prefix]), op.ints([end]), op.ints([1]))
        if self.layout == "NLC":
            value = op("Transpose", value, perm=[0, 2, 1])
        return op("Reshape", value, op.ints([-1, *self.shape]))


def placement(axes: Axes) -> Placement | None:
    """The placement of a value with these axes; None where it has no rows and columns, or they are not in order."""
    if len(axes) not in (3, 4) or [atom.symbol for atom in axes[0]] != ["N"]:
        return None
    layout = _LAYOUTS.get(tuple(_kind(axis) for axis in axes[1:]))
    if layout is None:
        return None
    if len(axes) == 4:
        height, width = next(
            (axes[i][0].size, axes[i + 1][0].size)
            for i in (1, 2)
            if _kind(axes[i]) == "H" and _kind(axes[i + 1]) == "W"
        )
        prefix = 0
    else:
        tokens = axes[1] if layout == "NLC" else axes[2]
        height, width = tokens[0].grid if len(tokens) == 1 else (tokens[0].size, tokens[1].size)
        prefix = tokens[0].prefix if len(tokens) == 1 else 0
        if prefix and layout == "NCL":
            return None
    channels = axes[{"NCHW": 1, "NCL": 1, "NHWC": 3, "NLC": 2}[layout]]
    return Placement(layout, (math.prod(atom.size for atom in channels), height, width), prefix)


def _kind(axis: Axis) -> str:
    """H, W, HW (tokens), C, or nothing of these."""
    if not all(atom.is_clear for atom in axis):
        return "?"
    symbols = [atom.symbol for atom in axis]
    if symbols in (["H"], ["W"]):
        return symbols[0]
    if symbols in (["H", "W"], ["T"]):
        return "HW"
    return "C" if "C" in symbols and set(symbols) <= {"C", "H", "W"} else "?"
