"""Operators for onnx's reference evaluator where its own are slow, wrong in corners, or round to float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from onnx.reference.op_run import OpRun
from torch.nn import functional


class Conv(OpRun):
    """The reference evaluator's own takes minutes for a whole network."""

    def _run(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, **attributes: Any) -> tuple[np.ndarray]:
        strides = attributes.get("strides") or [1, 1]
        dilations = attributes.get("dilations") or [1, 1]
        padded = _padded(x, w.shape[2:], strides, dilations, attributes, 0.0)
        bias = None if b is None else torch.from_numpy(b.astype(x.dtype))
        weight = torch.from_numpy(np.ascontiguousarray(w).astype(x.dtype))
        y = functional.conv2d(
            padded, weight, bias, strides, dilation=list(dilations), groups=attributes.get("group") or 1
        )
        return (y.numpy(),)


class MaxPool(OpRun):
    """As Conv."""

    def _run(self, x: np.ndarray, **attributes: Any) -> tuple[np.ndarray]:
        kernel = attributes["kernel_shape"]
        strides = attributes.get("strides") or [1, 1]
        padded = _padded(x, kernel, strides, [1, 1], attributes, -np.inf)
        y = functional.max_pool2d(padded, list(kernel), list(strides), ceil_mode=bool(attributes.get("ceil_mode")))
        return (y.numpy(),)


def _padded(
    x: np.ndarray,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    attributes: dict[str, Any],
    value: float,
) -> torch.Tensor:
    pads = list(attributes.get("pads") or [0, 0, 0, 0])
    mode = attributes.get("auto_pad") or "NOTSET"
    if mode.startswith("SAME"):
        for axis in (0, 1):
            size = x.shape[axis + 2]
            reach = (-(-size // strides[axis]) - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1
            total = max(reach - size, 0)
            small = total // 2
            pads[axis], pads[axis + 2] = (small, total - small) if mode == "SAME_UPPER" else (total - small, small)
    return functional.pad(torch.from_numpy(np.ascontiguousarray(x)), (pads[1], pads[3], pads[0], pads[2]), value=value)


class LRN(OpRun):
    """The reference evaluator's own writes its sums into float32."""

    def _run(self, x: np.ndarray, alpha: float, beta: float, bias: float, size: int) -> tuple[np.ndarray]:
        below, above = (size - 1) // 2, size // 2
        squares = np.pad(x**2, [(0, 0), (below, above), *[(0, 0)] * (x.ndim - 2)])
        total = sum(squares[:, c : c + x.shape[1]] for c in range(size))
        return (x / (bias + alpha / size * total) ** beta,)


class ConvTranspose(OpRun):
    """The reference evaluator's own fails on groups with dilations, and on output_shape."""

    def _run(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, **attributes: Any) -> tuple[np.ndarray]:
        strides = list(attributes.get("strides") or [1, 1])
        dilations = list(attributes.get("dilations") or [1, 1])
        extra = list(attributes.get("output_padding") or [0, 0])
        bias = None if b is None else torch.from_numpy(b)
        groups = attributes.get("group") or 1
        full = functional.conv_transpose2d(
            torch.from_numpy(np.array(x)), torch.from_numpy(np.array(w)), bias, strides, 0, 0, groups, dilations
        )
        full = functional.pad(full, (0, extra[1], 0, extra[0]))
        pads = list(attributes.get("pads") or [0, 0, 0, 0])
        mode, wanted = attributes.get("auto_pad") or "NOTSET", attributes.get("output_shape")
        if mode.startswith("SAME"):
            wanted = [x.shape[axis + 2] * strides[axis] for axis in (0, 1)]
        if wanted is not None:
            totals = [full.shape[axis + 2] - wanted[axis] for axis in (0, 1)]
            begins = [total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in totals]
            pads = [*begins, *(total - begin for total, begin in zip(totals, begins, strict=True))]
        return (functional.pad(full, (-pads[1], -pads[3], -pads[0], -pads[2])).numpy(),)


class BatchNormalization(OpRun):
    """At inference; the reference evaluator's own of opset 9 ignores the stored statistics."""

    def _run(
        self, x: np.ndarray, scale: np.ndarray, b: np.ndarray, m: np.ndarray, v: np.ndarray, **attributes: Any
    ) -> tuple[np.ndarray]:
        shape = (1, -1, *[1] * (x.ndim - 2))
        slope = scale / np.sqrt(v + (attributes.get("epsilon") or 1e-5))
        return ((x - m.reshape(shape)) * slope.reshape(shape) + b.reshape(shape),)
