"""Which cotangents may hold infinities: those of what lies in front of a slope that is infinite somewhere.

The root of a ReLU's output has an infinite slope wherever the ReLU is off. PyTorch's masks choose, so the gradient is 0
there; a product with the mask would be NaN. So in front of such operators, up to and with the next mask, rules take
their plain forms (see camrt.exporter.lowering), which choose as well. An infinity that this mask lets through is one in
PyTorch's gradient, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from camrt.exporter.vjp.registry import constant_scalar

_STEEP = frozenset({"Sqrt", "Log", "Reciprocal", "ReduceLogSum", "LpNormalization"})
_MASKS = frozenset({"Relu", "Clip", "HardSigmoid", "ThresholdedRelu", "QuantizeLinear", "Max", "Min"})


def infinite_cotangents(nodes: Sequence[ir.Node]) -> frozenset[ir.Value]:
    """The values whose cotangents may hold infinities, or NaN made of them.

    Args:
        nodes: from the target layers to the logits, in topological order.
    """
    found: set[ir.Value] = set()
    for node in reversed(nodes):
        reached = not found.isdisjoint(node.outputs)
        if _is_steep(node) or (reached and node.op_type not in _MASKS):
            found.update(value for value in node.inputs if value is not None)
    return frozenset(found)


def _is_steep(node: ir.Node) -> bool:
    """Whether the slope of ``node`` has no bound."""
    match node.op_type:
        case "Div":
            divisor = None if node.inputs[1] is None else node.inputs[1].const_value
            return divisor is None or not np.all(divisor.numpy())
        case "Pow":
            exponent = constant_scalar(node, 1)
            return exponent is not None and exponent < 1 and exponent != 0
    return node.op_type in _STEEP
