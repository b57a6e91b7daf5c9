"""Where the batch is in a value, so that a value of one image can be combined with the cotangents of several classes.

With N = 1 and M classes the forward part has N = 1, and the backward part M. Mostly N is the first axis alone, and
operators broadcast it. But attention folds other axes into it: windows of Swin are an axis of length N * 64, and their
cotangents one of length M * 64. A forward value kept so is repeated before a rule combines it with a cotangent:

    (N * 64, ...) -> (N, 64, ...) -> Expand to (M, 64, ...) -> (M * 64, ...)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from camrt.exporter.shapes import BATCH, is_float, is_known, nominal_shape

_REGROUPING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True)
class BatchAxis:
    """The axis of a value that grows with the batch; its length is outer * N * inner, in this order.

    Attributes:
        axis: which one.
        outer: factor that varies slower than the image.
        inner: factor that varies faster.
    """

    axis: int
    outer: int = 1
    inner: int = 1

    @property
    def is_folded(self) -> bool:
        """Whether other axes were merged into it."""
        return self.outer * self.inner > 1


def find_batch_axes(graph: ir.Graph) -> dict[ir.Value, BatchAxis]:
    """The batch axis of every floating-point value that has one.

    A value is left out where an operator mixed the images, or split the batch: a rule that meets it refuses.
    """
    found = {
        value: BatchAxis(nominal_shape(value).index(BATCH))
        for value in graph.inputs
        if is_float(value) and is_known(value) and BATCH in nominal_shape(value)
    }
    for node in graph:
        source = next((value for value in node.inputs if value is not None and value in found), None)
        if source is None:
            continue
        for output in node.outputs:
            if is_known(output) and BATCH in nominal_shape(output):
                axis = nominal_shape(output).index(BATCH)
                kept = found[source]
                regrouped = _regrouped(source, kept, output) if node.op_type in _REGROUPING else None
                if node.op_type not in _REGROUPING:
                    found[output] = BatchAxis(axis, kept.outer, kept.inner)
                elif regrouped is not None:
                    found[output] = regrouped
    return found


def _regrouped(source: ir.Value, kept: BatchAxis, output: ir.Value) -> BatchAxis | None:
    """The batch axis after a Reshape: what lies in front of the image in memory stays in front of it."""
    before, after = nominal_shape(source), nominal_shape(output)
    axis = after.index(BATCH)
    outer, outer_rest = divmod(math.prod(before[: kept.axis]) * kept.outer, math.prod(after[:axis]))
    inner, inner_rest = divmod(math.prod(before[kept.axis + 1 :]) * kept.inner, math.prod(after[axis + 1 :]))
    return BatchAxis(axis, outer, inner) if outer_rest == inner_rest == 0 else None
