"""Vjp rule of convolutions."""

from __future__ import annotations

import onnx_ir as ir

from camrt.exporter.lowering import WindowAxis, conv_input_gradient
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
from camrt.exporter.vjp.window import begin_pads, rows_and_columns


@register_vjp("Conv")
def conv(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The input's gradient; see camrt.exporter.lowering for its forms. A 1-D convolution is one of a single row."""
    x, weight = operand(node), operand(node, 1)
    shape = nominal_shape(weight)
    if len(shape) not in (3, 4):
        raise unsupported(node, f"a kernel of rank {len(shape) - 2}; convolutions of one or two dimensions only")
    _refuse_forms(op, node)
    strides, dilations = _spatial(node, "strides"), _spatial(node, "dilations")
    kernel = (1,) * (4 - len(shape)) + shape[2:]
    begins, group = begin_pads(node, kernel, strides, dilations), int_attribute(node, "group", 1)
    size, output = _sides(x), _sides(node.outputs[0])
    rows, columns = (WindowAxis(size[a], output[a], kernel[a], strides[a], dilations[a], begins[a]) for a in (0, 1))
    four = (shape[0], shape[1], kernel[0], kernel[1])
    if len(shape) == 4:
        return [conv_input_gradient(op, cotangent, weight, four, (rows, columns), group)]
    row, kernels = (op("Unsqueeze", value, op.ints([2])) for value in (cotangent, weight))
    gradient = conv_input_gradient(op, row, kernels, four, (rows, columns), group)
    return [op("Squeeze", gradient, op.ints([2]))]


@register_vjp("ConvTranspose")
def conv_transpose(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """The transpose of a transpose: a Conv of dy with the same weight, strides, dilations and padding."""
    x, weight = operand(node), operand(node, 1)
    shape = nominal_shape(weight)
    if len(shape) != 4:
        raise unsupported(node, f"a kernel of rank {len(shape) - 2}; two dimensions only")
    _refuse_forms(op, node)
    strides, dilations = _spatial(node, "strides"), _spatial(node, "dilations")
    size, output = _sides(x), _sides(node.outputs[0])
    reach = [(size[a] - 1) * strides[a] + dilations[a] * (shape[a + 2] - 1) + 1 for a in (0, 1)]
    begins = _transposed_begins(node, reach, output)
    ends = [max(reach[a] - begins[a] - output[a], 0) for a in (0, 1)]
    if min(begins) < 0:
        raise unsupported(node, f"an output of {output} that is larger than the {tuple(reach)} it reaches")
    gradient = op(
        "Conv",
        cotangent,
        weight,
        kernel_shape=shape[2:],
        pads=[*begins, *ends],
        strides=strides,
        dilations=dilations,
        group=int_attribute(node, "group", 1),
    )
    return [gradient]


def _transposed_begins(node: ir.Node, reach: list[int], output: tuple[int, int]) -> list[int]:
    """What a ConvTranspose cuts off above and to the left: given, or a share of what it must cut off in all."""
    mode = text_attribute(node, "auto_pad", "NOTSET")
    if mode == "VALID" or (mode == "NOTSET" and "output_shape" not in node.attributes):
        return list(ints_attribute(node, "pads", (0, 0, 0, 0))[:2]) if mode == "NOTSET" else [0, 0]
    extra = ints_attribute(node, "output_padding", (0, 0))
    totals = [reach[a] + extra[a] - output[a] for a in (0, 1)]
    return [total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in totals]


def _refuse_forms(op: OpBuilder, node: ir.Node) -> None:
    """Refuses a weight that depends on the image, and a batch that is not the first axis."""
    x = operand(node)
    refuse_batch(node, x, range(1, len(nominal_shape(x))))
    if op.wants(node.inputs[1]):
        raise unsupported(node, "its weight depends on the image")


def _spatial(node: ir.Node, name: str) -> tuple[int, int]:
    """Strides or dilations of rows and columns; those of a 1-D node count for columns."""
    return rows_and_columns(ints_attribute(node, name, (1, 1)))


def _sides(value: ir.Value) -> tuple[int, int]:
    """(rows, columns); a value of three axes is one row."""
    return rows_and_columns(nominal_shape(value)[2:])
