"""Rows of the numeric check in test_vjp.py: windows, resizes, reductions and the less common elementwise functions."""

from __future__ import annotations

from typing import Any

import numpy as np

RNG = np.random.default_rng(11)


def row(op: str, name: str = "", shape: tuple[int, ...] = (3, 5, 4), **more: Any) -> dict[str, Any]:
    """The fields of a Case; what is no field is an attribute of the node."""
    fields = {key: more.pop(key) for key in ("constants", "inputs", "outputs", "low", "high", "opset") if key in more}
    return {"op": op, "name": name, "shape": shape, "attributes": more, **fields}


def weighted(op: str, name: str, shape: tuple[int, ...], weight: tuple[int, ...], **attributes: Any) -> dict[str, Any]:
    return row(op, name, shape, constants={"w": RNG.standard_normal(weight)}, inputs=("x", "w"), **attributes)


def resized(name: str, scales: tuple[float, float], **attributes: Any) -> dict[str, Any]:
    factors = np.array([1, 1, *scales], np.float32)
    return row("Resize", name, (2, 5, 6), constants={"s": factors}, inputs=("x", "", "s"), **attributes)


def sized(name: str, size: tuple[int, int], **attributes: Any) -> dict[str, Any]:
    constants = {"z": np.array(size)}
    return row("Resize", name, (2, 5, 6), constants=constants, inputs=("x", "", "", "z"), axes=[2, 3], **attributes)


def scaled(name: str, axes: list[int], scales: tuple[float, ...], **attributes: Any) -> dict[str, Any]:
    constants = {"s": np.array(scales, np.float32)}
    return row("Resize", name, (2, 5, 6), constants=constants, inputs=("x", "", "s"), axes=axes, **attributes)


def along_the_batch(op: str, **attributes: Any) -> tuple[dict[str, Any], str]:
    return row(op, "batch", **attributes), "along the batch"


def reduced(op: str, name: str = "", axes: tuple[int, ...] = (2, 3), low: float = 0.3, **more: Any) -> dict[str, Any]:
    return row(op, name, constants={"a": np.array(axes)}, inputs=("x", "a"), low=low, **more)


_UP = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
ROWS = [
    row("PRelu", constants={"s": RNG.uniform(0.1, 0.5, (3, 1, 1))}, inputs=("x", "s")),
    row("PRelu", "one-slope", constants={"s": np.array([0.25])}, inputs=("x", "s")),
    row("Selu"),
    row("Selu", "constants", alpha=1.5, gamma=0.8),
    row("Celu"),
    row("Celu", "alpha", alpha=0.6),
    row("ThresholdedRelu"),
    row("ThresholdedRelu", "alpha", alpha=0.3),
    row("Softsign"),
    row("Mish"),
    *[row(op) for op in ("Sign", "Floor", "Ceil", "Round")],
    row("Mean", inputs=("x", "x", "c"), constants={"c": RNG.standard_normal((3, 1, 1))}),
    row("ReduceMin", constants={"a": np.array([2, 3])}, inputs=("x", "a")),
    row("ReduceMin", "flat", constants={"a": np.array([1])}, inputs=("x", "a"), keepdims=0),
    row("ReduceMax", "flat", constants={"a": np.array([1])}, inputs=("x", "a"), keepdims=0),
    *[reduced(op) for op in ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")],
    *[reduced(op, "flat", (1,), keepdims=0) for op in ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")],
    reduced("ReduceL1", "signs", low=-2.0),
    reduced("ReduceL2", "signs", low=-2.0),
    reduced("ReduceLogSumExp", "signs", low=-2.0),
    row("ReduceSum", "flat", constants={"a": np.array([1, -1])}, inputs=("x", "a"), keepdims=0),
    row("LRN", shape=(7, 3, 4), size=5, alpha=0.5),
    row("LRN", "narrow", shape=(6, 3, 4), size=3, alpha=0.7, beta=0.5, bias=2.0),
    row("LRN", "wide", shape=(3, 2, 2), size=7, alpha=0.9),
    row("LRN", "alexnet", shape=(6, 3, 4), size=5, alpha=1e-4, beta=0.75, bias=1.0),
    row("GlobalMaxPool", "row", (4, 1, 6)),
    row("GlobalAveragePool", "1d", (4, 6)),
    row("MaxPool", "overlapping-ceil", (3, 8, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1], ceil_mode=1),
    row("MaxPool", "overlapping-ceil-odd", (2, 9, 10), kernel_shape=[3, 2], strides=[2, 3], ceil_mode=1),
    row("MaxPool", "same-upper", (3, 8, 7), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    row("MaxPool", "same-lower", (3, 8, 7), kernel_shape=[2, 2], strides=[1, 1], auto_pad="SAME_LOWER"),
    row("MaxPool", "valid", (3, 8, 7), kernel_shape=[3, 3], strides=[2, 2], auto_pad="VALID"),
    row("MaxPool", "gaps", (3, 9, 8), kernel_shape=[2, 2], strides=[3, 3]),
    row("AveragePool", "same-upper", (3, 8, 7), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    row("AveragePool", "same-lower", (3, 8, 7), kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_LOWER"),
    row("AveragePool", "asymmetric-include", (3, 8, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 2, 1], count_include_pad=1),
    row("AveragePool", "ceil-pads", (3, 8, 8), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
    row("AveragePool", "gaps", (3, 9, 8), kernel_shape=[2, 2], strides=[3, 3]),
    row("MaxPool", "whole", (3, 5, 4), kernel_shape=[5, 4], strides=[1, 1]),
    row("MaxPool", "one-window", (3, 6, 5), kernel_shape=[4, 3], strides=[3, 3], pads=[1, 0, 0, 0]),
    row("MaxPool", "1d", (3, 9), kernel_shape=[3], strides=[2], pads=[1, 1]),
    row("MaxPool", "1d-tiles", (3, 8), kernel_shape=[2], strides=[2]),
    row("AveragePool", "whole", (3, 5, 4), kernel_shape=[5, 4], strides=[1, 1]),
    row("AveragePool", "one-window", (3, 6, 5), kernel_shape=[4, 3], strides=[3, 3], pads=[1, 0, 0, 0]),
    row("AveragePool", "one-row", (3, 5, 7), kernel_shape=[5, 3], strides=[1, 2]),
    row("AveragePool", "1d", (3, 9), kernel_shape=[3], strides=[2], pads=[1, 1]),
    row("AveragePool", "1d-include", (3, 9), kernel_shape=[4], strides=[3], pads=[0, 2], count_include_pad=1),
    row("AveragePool", "1d-tiles", (3, 8), kernel_shape=[2], strides=[2]),
    row("Pow", "zero", constants={"n": np.float64(0)}, inputs=("x", "n")),
    weighted("Conv", "1d", (3, 9), (4, 3, 3), pads=[1, 1]),
    weighted("Conv", "1d-strided", (3, 10), (4, 3, 3), pads=[1, 1], strides=[2]),
    weighted("Conv", "1d-dilated-groups", (4, 10), (4, 2, 3), pads=[2, 2], dilations=[2], group=2),
    weighted("Conv", "1d-same", (3, 10), (4, 3, 4), auto_pad="SAME_UPPER", strides=[2]),
    weighted("Conv", "1d-channels", (1, 7), (1, 1, 3), pads=[1, 1]),
    weighted("ConvTranspose", "2x2", (3, 4, 5), (3, 4, 2, 2), strides=[2, 2]),
    weighted("ConvTranspose", "3x3-pads", (3, 4, 5), (3, 4, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
    weighted("ConvTranspose", "output-padding", (3, 4, 5), (3, 4, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    weighted("ConvTranspose", "stride1", (3, 4, 5), (3, 4, 3, 3), pads=[1, 0, 1, 2]),
    weighted("ConvTranspose", "dilated-groups", (4, 4, 5), (4, 3, 3, 3), strides=[2, 1], dilations=[2, 2], group=2),
    weighted("ConvTranspose", "output-shape", (3, 4, 5), (3, 4, 3, 3), strides=[2, 2], output_shape=[8, 10]),
    weighted("ConvTranspose", "same-upper", (3, 4, 5), (3, 4, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    weighted("ConvTranspose", "same-lower", (3, 4, 5), (3, 4, 3, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
    resized("twice", (2, 2), **_UP),
    resized("three-by-two", (3, 2), **_UP),
    resized("half-pixel-twice", (2, 2), mode="nearest"),
    resized("nearest-fraction", (1.7, 1.2), mode="nearest"),
    resized("nearest-down", (0.6, 0.5), **_UP),
    resized("nearest-ceil", (1.5, 1.5), mode="nearest", nearest_mode="round_prefer_ceil"),
    resized("linear", (2, 2), mode="linear"),
    resized("linear-asymmetric", (2, 1.5), mode="linear", coordinate_transformation_mode="asymmetric"),
    resized("linear-corners", (2, 2), mode="linear", coordinate_transformation_mode="align_corners"),
    resized("linear-pytorch", (0.5, 0.4), mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    resized("columns", (1, 2), mode="linear"),
    sized("sizes", (9, 4), mode="linear"),
    sized("sizes-corners", (10, 11), mode="linear", coordinate_transformation_mode="align_corners"),
    sized("sizes-nearest", (10, 18), **_UP),
    scaled("columns-only", [3], (1.5,), mode="linear"),
    scaled("axes-swapped", [3, 2], (1.5, 2), mode="linear"),
    sized("sizes-swapped", (12, 9), mode="linear") | {"attributes": {"axes": [3, 2], "mode": "linear"}},
]  # fmt: skip

REFUSED = [
    (resized("cubic", (2, 2), mode="cubic"), "cubic"),
    (sized("aspect", (7, 12), mode="linear", keep_aspect_ratio_policy="not_larger"), "aspect"),
    (resized("symmetric", (2, 2), mode="linear", coordinate_transformation_mode="half_pixel_symmetric"), "half_pixel_symmetric"),
    (weighted("Conv", "3d", (2, 4, 4, 4), (3, 2, 2, 2, 2)), "one or two dimensions"),
    (weighted("ConvTranspose", "1d", (3, 5), (3, 4, 2)), "two dimensions"),
    (weighted("ConvTranspose", "grown", (3, 4, 5), (3, 4, 2, 2), strides=[2, 2], output_shape=[13, 15]), "larger"),
    (row("AveragePool", "same-gaps", (3, 6, 6), kernel_shape=[1, 1], strides=[3, 3], auto_pad="SAME_UPPER"), "auto_pad"),
    (row("AveragePool", "3d", (3, 4, 4, 4), kernel_shape=[2, 2, 2]), "rank 3"),
    (sized("halfway", (3, 6), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="round_prefer_ceil")
     | {"shape": (2, 7, 6), "constants": {"z": np.array([2, 6])}}, "almost halfway"),
    (row("ReduceSum", "none", inputs=("x",), noop_with_empty_axes=1), "no axis"),
    (row("ReduceMean", "all", inputs=("x",)), "along the batch"),
    (row("Einsum", "two-lengths", (3, 5, 4), constants={"w": RNG.standard_normal((3, 1))}, inputs=("x", "w"),
         equation="nchw,ch->nw"), "two lengths of 'h'"),
    (row("Einsum", "batch", (4,), constants={"w": RNG.standard_normal((2, 3))}, inputs=("x", "w"), equation="nc,nd->cd"),
     "along the batch"),
    (row("CumSum", "batch", constants={"a": np.array(-4)}, inputs=("x", "a")), "along the batch"),
    *[along_the_batch(op, constants={"a": np.array([-4, 2])}, inputs=("x", "a"))
      for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2")],
    *[along_the_batch(op, axis=0) for op in ("Softmax", "LogSoftmax", "LpNormalization")],
    along_the_batch("LayerNormalization", constants={"s": np.ones((1, 3, 5, 4))}, inputs=("x", "s"), axis=0),
]  # fmt: skip
