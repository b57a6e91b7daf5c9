"""Shapes of the values of a model whose image size is fixed and whose batch is not."""

from __future__ import annotations

import onnx_ir as ir

from camrt.errors import UnsupportedModelError

BATCH = -1  # stands for the batch axis in a nominal shape


def is_known(value: ir.Value) -> bool:
    """Whether every axis of ``value`` but the first has a known, positive length."""
    return value.shape is not None and all(isinstance(dim, int) and dim > 0 for dim in value.shape[1:])


def is_float(value: ir.Value | None) -> bool:
    """Whether ``value`` holds numbers that a gradient can flow through."""
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def nominal_shape(value: ir.Value) -> tuple[int, ...]:
    """Shape of ``value``, BATCH for a first axis that depends on the batch.

    Raises:
        UnsupportedModelError: shape inference could not tell.
    """
    if value.shape is None or not is_known(value):
        raise UnsupportedModelError(
            f"The shape of {value.name!r} cannot be inferred.",
            "Run onnx.shape_inference or onnx-simplifier on the model, or export it with a fixed image size.",
        )
    return tuple(dim if isinstance(dim, int) else BATCH for dim in value.shape)
