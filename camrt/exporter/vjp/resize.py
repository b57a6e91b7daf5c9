"""Vjp rule of Resize.

Along one axis a resize is y = R x with a constant matrix R, so the gradient is R^T dy: one MatMul an axis, whatever the
mode. Where every element is repeated a whole number of times, it is a sum over blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import nominal_shape
from camrt.exporter.vjp.registry import (
    Gradients,
    int_attribute,
    ints_attribute,
    operand,
    refuse_batch,
    register_vjp,
    text_attribute,
    unsupported,
)

Floats = npt.NDArray[np.floating]
_ROUNDING: dict[str, Callable[[Floats], Floats]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
_TIE_ULPS = 4  # closer to a half than this, runtimes round either way


@dataclass(frozen=True, slots=True)
class Resampling:
    """One axis: lengths before and after, and output elements per input element."""

    size: int
    output: int
    scale: float

    def sources(self, mode: str, real: type[np.floating]) -> Floats:
        """Where each output element lies among the input's, after ONNX's coordinate mode, as ``real``."""
        x, scale, half = np.arange(self.output, dtype=real), real(self.scale), real(0.5)
        places: Floats
        match mode:
            case "pytorch_half_pixel" if self.output == 1:
                places = np.zeros(1, real)
            case "half_pixel" | "pytorch_half_pixel":
                places = (x + half) / scale - half
            case "align_corners":
                places = x * real(self.size - 1) / real(max(self.output - 1, 1))
            case _:
                places = x / scale
        return places

    def nearest(self, coordinates: str, rounding: str) -> Floats | None:
        """R, (output, size), of mode nearest; None where rounding has no certain result.

        Coordinates are float32, as in ONNX Runtime: it takes the sixth of 14 rows, not the seventh, where one third of
        them end in 6.9999995.
        """
        x = self.sources(coordinates, np.float32)
        from_tie = np.abs(x - np.floor(x) - np.float32(0.5))
        if rounding.startswith("round") and np.any((from_tie > 0) & (from_tie <= _TIE_ULPS * np.spacing(np.abs(x)))):
            return None
        weights = np.zeros((self.output, self.size))
        index = _ROUNDING[rounding](x.astype(np.float64))
        weights[np.arange(self.output), np.clip(index, 0, self.size - 1).astype(int)] = 1
        return weights

    def linear(self, coordinates: str) -> Floats:
        """R, (output, size), of mode linear."""
        x = self.sources(coordinates, np.float64)
        weights, low = np.zeros((self.output, self.size)), np.floor(x)
        for index, share in ((low, 1 - (x - low)), (low + 1, x - low)):
            np.add.at(weights, (np.arange(self.output), np.clip(index, 0, self.size - 1).astype(int)), share)
        return weights


@register_vjp("Resize")
def resize(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Nearest and linear resizes of the last two axes; cubic ones, antialiasing and crops are refused."""
    mode = text_attribute(node, "mode", "nearest")
    coordinates = text_attribute(node, "coordinate_transformation_mode", "half_pixel")
    known = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
    if mode not in ("nearest", "linear") or coordinates not in known or int_attribute(node, "antialias", 0):
        raise unsupported(node, f"mode {mode} with coordinates {coordinates}, or antialiasing")
    if text_attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise unsupported(node, "a policy that keeps the aspect ratio")
    before, after = nominal_shape(operand(node)), nominal_shape(node.outputs[0])
    if len(before) != 4 or before[:2] != after[:2]:
        raise unsupported(node, f"it resizes {before} to {after}, not the last two axes of four")
    refuse_batch(node, operand(node), (1, 2, 3))
    rows, columns = (
        _matrix(node, Resampling(before[axis], after[axis], scale), mode, coordinates)
        for axis, scale in zip((2, 3), _scales(node, before, after), strict=True)
    )
    factors = (after[2] // before[2], after[3] // before[3])
    if _repeats(rows, factors[0]) and _repeats(columns, factors[1]):
        blocks = op("AveragePool", cotangent, kernel_shape=factors, strides=factors)
        return [op("Mul", blocks, op.scalar(float(factors[0] * factors[1])))]
    gradient = cotangent
    if before[2] != after[2]:
        gradient = op("MatMul", op.constant(np.ascontiguousarray(rows.T).astype(op.dtype.numpy())), gradient)
    if before[3] != after[3]:
        gradient = op("MatMul", gradient, op.constant(columns.astype(op.dtype.numpy())))
    return [gradient]


def _matrix(node: ir.Node, axis: Resampling, mode: str, coordinates: str) -> Floats:
    """R of one axis."""
    if mode == "linear":
        return axis.linear(coordinates)
    weights = axis.nearest(coordinates, text_attribute(node, "nearest_mode", "round_prefer_floor"))
    if weights is None:
        raise unsupported(node, f"resizing {axis.size} to {axis.output} by the nearest, positions lie almost halfway")
    return weights


def _repeats(weights: Floats, factor: int) -> bool:
    """Whether R repeats every element ``factor`` times in place."""
    return np.array_equal(weights, np.repeat(np.eye(weights.shape[1]), factor, axis=0))


def _scales(node: ir.Node, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[float, float]:
    """Output elements per input element, of rows and columns: as given for some axes, or the quotient of the sizes."""
    given = node.inputs[2] if len(node.inputs) > 2 else None
    quotients = (after[2] / before[2], after[3] / before[3])
    if given is None or given.shape is None or given.shape[0] == 0:
        return quotients
    if given.const_value is None:
        raise unsupported(node, "its scales are no constant")
    numbers = given.const_value.numpy().tolist()
    axes = [axis % len(before) for axis in ints_attribute(node, "axes", range(len(before)))]
    scales = dict(zip(axes, numbers, strict=True))
    return scales.get(2, 1.0), scales.get(3, 1.0)
