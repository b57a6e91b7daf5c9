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
from camrt.exporter.vjp.registry import Gradients, int_attribute, operand, register_vjp, unsupported

Floats = npt.NDArray[np.float64]
_ROUNDING: dict[str, Callable[[Floats], Floats]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis: lengths before and after, and output elements per input element."""

    size: int
    output: int
    scale: float

    def sources(self, mode: str) -> Floats:
        """Where each output element lies among the input's, after ONNX's coordinate_transformation_mode."""
        x = np.arange(self.output, dtype=np.float64)
        match mode:
            case "half_pixel":
                return (x + 0.5) / self.scale - 0.5
            case "pytorch_half_pixel":
                return (x + 0.5) / self.scale - 0.5 if self.output > 1 else np.zeros(1)
            case "align_corners":
                return x * (self.size - 1) / max(self.output - 1, 1)
            case _:
                return x / self.scale

    def matrix(self, mode: str, coordinates: str, rounding: str) -> Floats:
        """R, (output, size)."""
        x, rows = self.sources(coordinates), np.arange(self.output)
        weights = np.zeros((self.output, self.size))
        if mode == "nearest":
            weights[rows, np.clip(_ROUNDING[rounding](x), 0, self.size - 1).astype(int)] = 1
            return weights
        low = np.floor(x)
        for index, share in ((low, 1 - (x - low)), (low + 1, x - low)):
            np.add.at(weights, (rows, np.clip(index, 0, self.size - 1).astype(int)), share)
        return weights


@register_vjp("Resize")
def resize(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Nearest and linear resizes of the last two axes; cubic ones, antialiasing and crops are refused."""
    mode, coordinates = _text(node, "mode", "nearest"), _text(node, "coordinate_transformation_mode", "half_pixel")
    known = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
    if mode not in ("nearest", "linear") or coordinates not in known or int_attribute(node, "antialias", 0):
        raise unsupported(node, f"mode {mode} with coordinates {coordinates}, or antialiasing")
    if _text(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise unsupported(node, "a policy that keeps the aspect ratio")
    before, after = nominal_shape(operand(node)), nominal_shape(node.outputs[0])
    if len(before) != 4 or before[:2] != after[:2]:
        raise unsupported(node, f"it resizes {before} to {after}, not the last two axes of four")
    rounding = _text(node, "nearest_mode", "round_prefer_floor")
    rows, columns = (
        _Axis(before[axis], after[axis], scale).matrix(mode, coordinates, rounding)
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


def _repeats(weights: Floats, factor: int) -> bool:
    """Whether R repeats every element ``factor`` times in place."""
    return np.array_equal(weights, np.repeat(np.eye(weights.shape[1]), factor, axis=0))


def _scales(node: ir.Node, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[float, float]:
    """Output elements per input element, of rows and columns: as given, or the quotient of the sizes."""
    given = node.inputs[2] if len(node.inputs) > 2 else None
    quotients = (after[2] / before[2], after[3] / before[3])
    if given is None or given.shape is None or given.shape[0] == 0:
        return quotients
    if given.const_value is None:
        raise unsupported(node, "its scales are no constant")
    numbers = given.const_value.numpy().tolist()
    return (float(numbers[-2]), float(numbers[-1])) if numbers else quotients


def _text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()
