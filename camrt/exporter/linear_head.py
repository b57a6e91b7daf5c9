"""The layers of whose mean over positions the logits are a linear function: what CAM (arXiv 1512.04150) is for."""

from __future__ import annotations

import onnx_ir as ir

from camrt.errors import UnsupportedOpError
from camrt.exporter.shapes import is_float, is_known, nominal_shape
from camrt.exporter.vjp.reduction import reduced_axes
from camrt.exporter.vjp.window import Window

_PASS_THROUGH = frozenset({"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Dropout"})
_KEEPS_CHANNELS = frozenset({"Identity", "Cast", "Dropout", "Transpose"})


def linear_head_inputs(logits: ir.Value) -> frozenset[ir.Value]:
    """The input of the global average pooling in front of at most one linear layer, and what is just re-arranged to it.

    Empty where the network ends otherwise. Linear layers are Gemm, MatMul and Conv by constants, with or without an
    Add.
    """
    value = _before(logits, _PASS_THROUGH)
    node = value.producer()
    if node is not None and node.op_type == "Add" and (factor := _variable(node)) is not None:
        value = _before(factor, _PASS_THROUGH)
        node = value.producer()
    if node is not None and node.op_type in ("Gemm", "MatMul", "Conv") and _variable(node) is node.inputs[0]:
        assert node.inputs[0] is not None
        if node.op_type != "Conv" or _has_no_positions(node.inputs[0]):
            value = _before(node.inputs[0], _PASS_THROUGH)
    pool = value.producer()
    if pool is None or not _averages_positions(pool):
        return frozenset()
    found = set()
    source = pool.inputs[0]
    while source is not None:
        found.add(source)
        before = source.producer()
        source = before.inputs[0] if before is not None and before.op_type in _KEEPS_CHANNELS else None
    return frozenset(found)


def _before(value: ir.Value, passed: frozenset[str]) -> ir.Value:
    """Steps back over nodes that change no number."""
    while (node := value.producer()) is not None and node.op_type in passed and is_float(node.inputs[0]):
        source = node.inputs[0]
        assert source is not None
        value = source
    return value


def _variable(node: ir.Node) -> ir.Value | None:
    """The only input that is no constant."""
    inputs = [value for value in node.inputs if value is not None and value.const_value is None]
    return inputs[0] if len(inputs) == 1 else None


def _has_no_positions(value: ir.Value) -> bool:
    return is_known(value) and set(nominal_shape(value)[2:]) <= {1}


def _averages_positions(node: ir.Node) -> bool:
    """Whether a node takes the mean over every axis but those of the batch and the channels."""
    source = node.inputs[0]
    if source is None or not is_known(source):
        return False
    if node.op_type == "GlobalAveragePool":
        return True
    try:
        if node.op_type == "AveragePool":
            return is_known(node.outputs[0]) and Window.of(node).is_whole
        return node.op_type == "ReduceMean" and len(reduced_axes(node)) == len(nominal_shape(source)) - 2
    except UnsupportedOpError:
        return False
