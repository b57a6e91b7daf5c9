"""Says of a Reshape that the first axis stays, where it does: engines then know the batch behind it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from camrt.exporter.op_builder import PREFIX, add_constant
from camrt.exporter.shapes import BATCH, is_known, nominal_shape


class KeepBatchInReshapePass(InPlacePass):
    """Writes 0 (as it was) for -1 (what is left) in the target of a Reshape that keeps the first axis.

    Shape inference gives an axis of length -1 a new name. Behind it two values of the same batch look as if they may
    differ in length, and ONNX Runtime does not fuse the Add of such values with what follows it.

    1. ``Reshape(x (N, a, b, ...), [-1, c, d, ...])`` with a * b * ... = c * d * ...: the target becomes [0, c, d, ...].
    2. Any other Reshape, and one whose target is computed, stays.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass."""
        made: dict[tuple[int, ...], ir.Value] = {}
        changed = [node for node in model.graph if node.op_type == "Reshape" and _keeps_batch(node)]
        for node in changed:
            target = (0, *nominal_shape(node.outputs[0])[1:])
            if target not in made:
                name = f"{PREFIX}/same_batch_{len(made)}"
                made[target] = add_constant(model.graph, np.asarray(target, np.int64), name)
            node.replace_input_with(1, made[target])
            node.attributes.pop("allowzero", None)
        return PassResult(model, bool(changed))


def _keeps_batch(node: ir.Node) -> bool:
    """Case 1."""
    source, target, result = node.inputs[0], node.inputs[1], node.outputs[0]
    if source is None or target is None or target.const_value is None or not is_known(source) or not is_known(result):
        return False
    before, after = nominal_shape(source), nominal_shape(result)
    return _leads(before) and _leads(after) and np.prod(before) == np.prod(after)


def _leads(shape: Sequence[int]) -> bool:
    return bool(shape) and shape[0] == BATCH
