"""Shapes of the values of a model whose image size is fixed and whose batch is not."""

from __future__ import annotations

import onnx_ir as ir

from camrt.errors import UnsupportedModelError

BATCH = -1  # stands for the axis that grows with the batch in a nominal shape
BATCH_NAME = "N"  # what that axis is called in the graph


def is_known(value: ir.Value) -> bool:
    """Whether every axis of ``value`` has a known, positive length, but one that may grow with the batch."""
    if value.shape is None:
        return False
    lengths = [dim for dim in value.shape if isinstance(dim, int)]
    return len(lengths) >= len(value.shape) - 1 and min(lengths, default=1) > 0


def is_float(value: ir.Value | None) -> bool:
    """Whether ``value`` holds numbers that a gradient can flow through."""
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


_QUANTIZED = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16})


def carries_gradient(value: ir.Value | None) -> bool:
    """Whether ``value`` holds floats, or integers that stand for floats between two halves of a quantised model."""
    return is_float(value) or (value is not None and value.dtype in _QUANTIZED)


def nominal_shape(value: ir.Value) -> tuple[int, ...]:
    """Shape of ``value``, BATCH for the one axis that depends on the batch.

    Mostly the first axis; another inside attention, where a Transpose moved it. Its length is the batch, or a multiple
    of it where other axes were merged into it (the windows of Swin).

    Raises:
        UnsupportedModelError: shape inference could not tell.
    """
    if value.shape is None or not is_known(value):
        raise UnsupportedModelError(
            f"The shape of {value.name!r} cannot be inferred.",
            "Run onnx.shape_inference or onnx-simplifier on the model, or export it with a fixed image size.",
        )
    return tuple(dim if isinstance(dim, int) else BATCH for dim in value.shape)
