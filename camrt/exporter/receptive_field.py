"""How much of the image a position of a layer sees: the receptive field of its convolutions and poolings.

Along one axis a window of k elements, d apart, on a layer of stride j (input pixels a position) adds d (k - 1) j pixels
to the field; its stride multiplies j. Where branches join, the widest field counts, and the stride of its branch.

Channel gates (squeeze and excitation) and normalisations that average over all positions are left out, as is usual. A
product of two activations (attention) sees everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from camrt.exporter.shapes import is_known, nominal_shape
from camrt.exporter.vjp.registry import ints_attribute

_WINDOWS = frozenset({"Conv", "MaxPool", "AveragePool"})
_ENDS = frozenset({"GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum", "ReduceMax", "Gemm"})


@dataclass(frozen=True, slots=True)
class _Field:
    """Field and stride in pixels, rows and columns; ``size`` None where a position sees the whole image."""

    size: tuple[float, float] | None
    stride: tuple[float, float]

    @property
    def reach(self) -> float:
        return float("inf") if self.size is None else self.size[0] * self.size[1]


def receptive_fields(nodes: Iterable[ir.Node], image: ir.Value) -> dict[ir.Value, tuple[int, int] | None]:
    """Value -> (rows, columns) in pixels of the image, None for the whole image.

    Args:
        nodes: what lies between the image and the logits, in topological order.
        image: the image input.
    """
    fields = {image: _Field((1.0, 1.0), (1.0, 1.0))}
    for node in nodes:
        seen = [fields[value] for value in node.inputs if value is not None and value in fields]
        if not seen or node.op_type in _ENDS:
            continue
        widest = max(seen, key=lambda field: field.reach)
        if node.op_type in ("MatMul", "Einsum") and len(seen) > 1:
            widest = _Field(None, widest.stride)
        fields.update((output, _after(node, widest)) for output in node.outputs)
    return {
        value: None if field.size is None else (round(field.size[0]), round(field.size[1]))
        for value, field in fields.items()
    }


def _after(node: ir.Node, field: _Field) -> _Field:
    """The field of the node's output."""
    kernel = _kernel(node)
    if kernel is None:
        return field
    strides, dilations = (ints_attribute(node, name, (1, 1)) for name in ("strides", "dilations"))
    stride = (field.stride[0] * strides[0], field.stride[1] * strides[1])
    if field.size is None:
        return _Field(None, stride)
    rows, columns = (field.size[a] + dilations[a] * (kernel[a] - 1) * field.stride[a] for a in (0, 1))
    return _Field((rows, columns), stride)


def _kernel(node: ir.Node) -> tuple[int, int] | None:
    """Rows and columns of a 2-D window, or None where the node has none."""
    if node.op_type not in _WINDOWS:
        return None
    weight = node.inputs[1] if node.op_type == "Conv" else None
    kernel = ints_attribute(node, "kernel_shape", nominal_shape(weight)[2:] if weight and is_known(weight) else ())
    return (kernel[0], kernel[1]) if len(kernel) == 2 else None
