"""The saliency map as part of the graph, in standard operators: for runtimes that have none of camrt's kernels.

The formulas, the names of methods, fusions and orders, and what counts as degenerate are those of
``camrt.kernels.backend.KernelBackend``; float32 throughout, also in a float16 model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from camrt.bundle import SaliencyOutput
from camrt.errors import MethodNotFoundError
from camrt.exporter.op_builder import OpBuilder

SALIENCY_MAP = "saliency_map"
DEGENERATE = "saliency_map_degenerate"
ORDERS = ("normalize_twice", "resize_once")

_NORMALIZE_EPSILON = 1e-7
_XGRADCAM_EPSILON = 1e-7
_PLUS_PLUS_EPSILON = 1e-6
_SMALLEST = 1e-37  # below it, 1 / m is no float32: such an m counts as 0

Size: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class MapLayer:
    """One target layer as it enters the map.

    Attributes:
        activations: (N, C, h, w). gradients: (M, C, h, w), N being M or 1.
        shape: (C, h, w).
    """

    activations: ir.Value
    gradients: ir.Value
    shape: tuple[int, int, int]

    @property
    def positions(self) -> int:
        """h w."""
        return self.shape[1] * self.shape[2]


_Rule: TypeAlias = Callable[[OpBuilder, MapLayer], ir.Value]


@dataclass(frozen=True, slots=True)
class _LayerMap:
    """A map (M, h, w) of ``size`` (h, w)."""

    value: ir.Value
    size: Size


def checked_saliency(base_method: str | None, fusion: str | None, order: str | None) -> SaliencyOutput:
    """What the manifest says about the map; None stands for gradcam++, product, normalize_twice.

    Raises:
        MethodNotFoundError: a name that the graph cannot compute.
    """
    base_method, fusion, order = base_method or "gradcam++", fusion or "product", order or ORDERS[0]
    for kind, name, known in (
        ("base method", base_method, _RULES),
        ("fusion", fusion, _FUSIONS),
        ("order", order, ORDERS),
    ):
        if name not in known:
            raise MethodNotFoundError(
                f"A graph cannot compute the {kind} {name!r}.", f"Choose one of {', '.join(known)}."
            )
    return SaliencyOutput(SALIENCY_MAP, DEGENERATE, base_method, fusion, order)


def append_saliency_map(op: OpBuilder, layers: Sequence[MapLayer], size: Size, saliency: SaliencyOutput) -> None:
    """Appends RefineCAM over ``layers`` and makes it two graph outputs.

    ``saliency_map`` (M, H, W) float32 in [0, 1], and ``saliency_map_degenerate`` (M, L) bool: True where a layer's map
    is not finite, or constant after ReLU; it then counts as all zeros.

    Args:
        op: the builder.
        layers: coarse to fine.
        size: (H, W).
        saliency: the names of both outputs, and base method, fusion and order.
    """
    op.dtype = ir.DataType.FLOAT
    pairs = [_layer_map(op, layer, _RULES[saliency.base_method]) for layer in layers]
    maps = [layer_map for layer_map, _ in pairs]
    if saliency.order == "normalize_twice":
        resized = [_min_max(op, _resize(op, layer_map, size)) for layer_map in maps]
        result = _min_max(op, _fuse(op, resized, saliency.fusion)).value
    else:
        largest = (max(layer_map.size[0] for layer_map in maps), max(layer_map.size[1] for layer_map in maps))
        fused = _fuse(op, [_resize(op, layer_map, largest) for layer_map in maps], saliency.fusion)
        result = _resize(op, _min_max(op, fused), size).value
    flags = op("Concat", *(flag for _, flag in pairs), axis=1)
    _add_output(op, result, saliency.output, ir.DataType.FLOAT, ["M", *size])
    _add_output(op, flags, saliency.degenerate, ir.DataType.BOOL, ["M", len(layers)])


def _add_output(op: OpBuilder, value: ir.Value, name: str, dtype: ir.DataType, shape: list[int | str]) -> None:
    output = op.identity(value)
    output.name, output.type, output.shape = name, ir.TensorType(dtype), ir.Shape(shape)
    op.graph.outputs.append(output)


def _layer_map(op: OpBuilder, layer: MapLayer, rule: _Rule) -> tuple[_LayerMap, ir.Value]:
    """The normalised map (M, h, w), and whether it is degenerate, (M, 1)."""
    size = layer.shape[1:]
    activations, gradients = (
        value if value.dtype == op.dtype else op.cast(value) for value in (layer.activations, layer.gradients)
    )
    raw = rule(op, MapLayer(activations, gradients, layer.shape))
    positive = op("Relu", raw)
    # x * 0 is 0 for a finite x and NaN for any other.
    finite = op("Equal", op.reduce_sum(op("Mul", raw, op.scalar(0.0)), (1, 2)), op.scalar(0.0))
    contrast = op("Greater", _extreme(op, "ReduceMax", positive), _extreme(op, "ReduceMin", positive))
    sound = op("And", finite, contrast)
    normalized = _min_max(op, _LayerMap(positive, size)).value
    flag = op("Reshape", op("Not", sound), op.ints([-1, 1]))
    return _LayerMap(op("Where", sound, normalized, op.scalar(0.0)), size), flag


def _extreme(op: OpBuilder, op_type: str, value: ir.Value, axes: tuple[int, int] = (1, 2)) -> ir.Value:
    """ReduceMax or ReduceMin, axes kept; they are an attribute up to opset 17, an input after it."""
    if op.graph.opset_imports[""] < 18:
        return op(op_type, value, axes=axes, keepdims=1)
    return op(op_type, value, op.ints(axes), keepdims=1)


def _min_max(op: OpBuilder, layer_map: _LayerMap) -> _LayerMap:
    """(x - min) / (max - min + 1e-7), each map for itself."""
    lowest, highest = (_extreme(op, name, layer_map.value) for name in ("ReduceMin", "ReduceMax"))
    span = op("Add", op("Sub", highest, lowest), op.scalar(_NORMALIZE_EPSILON))
    return _LayerMap(op("Div", op("Sub", layer_map.value, lowest), span), layer_map.size)


def _resize(op: OpBuilder, layer_map: _LayerMap, size: Size) -> _LayerMap:
    """Bilinear, half-pixel centres, no antialias."""
    if size == layer_map.size:
        return layer_map
    scales = np.asarray([1, 1, *map(_scale, layer_map.size, size)], np.float32)
    wide = op("Unsqueeze", layer_map.value, op.ints([1]))
    mode = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return _LayerMap(op("Squeeze", op("Resize", wide, None, op.constant(scales), **mode), op.ints([1])), size)


def _scale(length: int, wanted: int) -> np.float32:
    """The float32 scale nearest to wanted / length for which floor(length * scale), what runtimes take, is wanted.

    The product is exact here: whatever precision a runtime multiplies in, it comes out right.
    """
    scale = np.float32(wanted / length)
    while math.floor(length * float(scale)) < wanted:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def _channel_weighted(op: OpBuilder, layer: MapLayer, weights: ir.Value) -> ir.Value:
    """Sum over channels of weights (M, C, 1, 1) times activations, (M, h, w), as a product of matrices."""
    channels, height, width = layer.shape
    row = op("Reshape", weights, op.ints([-1, 1, channels]))
    flat = op("Reshape", layer.activations, op.ints([-1, channels, height * width]))
    return op("Reshape", op("MatMul", row, flat), op.ints([-1, height, width]))


def _total(op: OpBuilder, value: ir.Value, count: int) -> ir.Value:
    """The sum over the ``count`` positions, (M, C, 1, 1), as if it were summed in float64 and rounded once.

    In gradcam++ and xgradcam, activations of both signs may almost cancel, and the sum is divided by. So the values
    are split into high + low parts: (x + s) - s, with s at least 2 n max |x|, are multiples of one number, and so few
    of them that float32 adds them up without an error; what is left over is small. (Rump, Ogita, Oishi: Accurate
    floating-point summation I, 2008.)
    """
    splitter = op("Mul", _extreme(op, "ReduceMax", op("Abs", value), (2, 3)), op.scalar(2.0 * count))
    high = op("Sub", op("Add", value, splitter), splitter)
    return op("Add", op.reduce_sum(high, (2, 3)), op.reduce_sum(op("Sub", value, high), (2, 3)))


def _gradcam(op: OpBuilder, layer: MapLayer) -> ir.Value:
    return _channel_weighted(op, layer, op.reduce_mean(layer.gradients, (2, 3)))


def _gradcam_plus_plus(op: OpBuilder, layer: MapLayer) -> ir.Value:
    """With R = relu(G), w = sum R R^2 / (2 R^2 + S R^3 + 1e-6): where G <= 0 the term is 0, as it must be."""
    positive = op("Relu", layer.gradients)
    square = op("Mul", positive, positive)
    cubic = op("Mul", _total(op, layer.activations, layer.positions), op("Mul", square, positive))
    below = op("Add", op("Add", op("Mul", square, op.scalar(2.0)), cubic), op.scalar(_PLUS_PLUS_EPSILON))
    return _channel_weighted(op, layer, op.reduce_sum(op("Mul", positive, op("Div", square, below)), (2, 3)))


def _xgradcam(op: OpBuilder, layer: MapLayer) -> ir.Value:
    total = op("Add", _total(op, layer.activations, layer.positions), op.scalar(_XGRADCAM_EPSILON))
    along = op.reduce_sum(op("Mul", layer.gradients, layer.activations), (2, 3))
    return _channel_weighted(op, layer, op("Div", along, total))


def _hirescam(op: OpBuilder, layer: MapLayer) -> ir.Value:
    return _over_channels(op, op("Mul", layer.gradients, layer.activations))


def _gradcam_elementwise(op: OpBuilder, layer: MapLayer) -> ir.Value:
    return _over_channels(op, op("Relu", op("Mul", layer.gradients, layer.activations)))


def _layercam(op: OpBuilder, layer: MapLayer) -> ir.Value:
    return _over_channels(op, op("Mul", op("Relu", layer.gradients), layer.activations))


def _over_channels(op: OpBuilder, value: ir.Value) -> ir.Value:
    return op.reduce_sum(value, [1], keepdims=0)


_RULES: dict[str, _Rule] = {
    "gradcam": _gradcam,
    "gradcam++": _gradcam_plus_plus,
    "xgradcam": _xgradcam,
    "hirescam": _hirescam,
    "gradcam_elementwise": _gradcam_elementwise,
    "layercam": _layercam,
}
BASE_METHODS = tuple(_RULES)


def _fuse(op: OpBuilder, maps: Sequence[_LayerMap], fusion: str) -> _LayerMap:
    return _LayerMap(_FUSIONS[fusion](op, [layer_map.value for layer_map in maps]), maps[0].size)


def _chain(op: OpBuilder, op_type: str, values: Sequence[ir.Value]) -> ir.Value:
    return reduce(lambda left, right: op(op_type, left, right), values)


def _product(op: OpBuilder, maps: Sequence[ir.Value]) -> ir.Value:
    return _chain(op, "Mul", maps)


def _geometric(op: OpBuilder, maps: Sequence[ir.Value]) -> ir.Value:
    return op("Pow", _chain(op, "Mul", maps), op.scalar(1 / len(maps)))


def _mean(op: OpBuilder, maps: Sequence[ir.Value]) -> ir.Value:
    return op("Mul", _chain(op, "Add", maps), op.scalar(1 / len(maps)))


def _largest(op: OpBuilder, maps: Sequence[ir.Value]) -> ir.Value:
    return _chain(op, "Max", maps)


def _log_exp(op: OpBuilder, maps: Sequence[ir.Value]) -> ir.Value:
    """(ln L + 1) / ln sum exp(1 / m)."""
    positive, log_sum = _log_sum_exp_inverse(op, maps)
    return op("Where", positive, op("Div", op.scalar(math.log(len(maps)) + 1), log_sum), op.scalar(0.0))


def _exp_mean(op: OpBuilder, maps: Sequence[ir.Value]) -> ir.Value:
    """1 / ln mean exp(1 / m)."""
    positive, log_sum = _log_sum_exp_inverse(op, maps)
    mean = op("Sub", log_sum, op.scalar(math.log(len(maps))))
    return op("Where", positive, op("Reciprocal", mean), op.scalar(0.0))


def _log_sum_exp_inverse(op: OpBuilder, maps: Sequence[ir.Value]) -> tuple[ir.Value, ir.Value]:
    """Where every m is positive, and ln sum exp(1 / m) there, the largest exponent taken out of the sum."""
    positive = op("Greater", _chain(op, "Min", maps), op.scalar(_SMALLEST))
    inverse = [op("Reciprocal", op("Where", positive, value, op.scalar(1.0))) for value in maps]
    highest = _chain(op, "Max", inverse)
    terms = [op("Exp", op("Sub", value, highest)) for value in inverse]
    return positive, op("Add", highest, op("Log", _chain(op, "Add", terms)))


_FUSIONS: dict[str, Callable[[OpBuilder, Sequence[ir.Value]], ir.Value]] = {
    "product": _product,
    "geometric": _geometric,
    "log_exp": _log_exp,
    "exp_mean": _exp_mean,
    "mean": _mean,
    "max": _largest,
}
FUSIONS = tuple(_FUSIONS)
