"""Hessian-vector products in the graph, for ShapleyCAM (arXiv 2501.06261).

The target value of class k is that of the paper, t = y_k + log p_k: the logit plus the log-probability (softmax over
the classes, or the sigmoid of the logit where the model ends in one). A logit alone would not do: in a network of ReLUs
it is piecewise linear, and its Hessian zero. Two values a layer are appended, A its activations:

- G = dt/dA, the backward part walked once more, from the cotangent of t at the logits:
  2 onehot(k) - softmax(y), or onehot(k) (2 - sigmoid(y));
- H A = d(sum G v)/dA at v = A held constant: the walk applied to a graph that holds a backward part already, from G
  back to A with the cotangent A. It goes through the forward nodes behind the layer too. Masks (what a ReLU lets
  through) come from comparisons, whose results are no floats: nothing flows through them, and their derivative counts
  as zero.

Cost: one backward part for all layers, and for each layer about two more of the part between it and the logits. Nothing
of it runs unless second derivatives are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from camrt.bundle import Head
from camrt.exporter.backward import append_backward
from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import nominal_shape

Output: TypeAlias = tuple[str, ir.Value, str]
"""Kind of a graph output, its value, and the letter of its batch axis."""


def append_second_order(
    model: ir.Model,
    op: OpBuilder,
    logits: ir.Value,
    one_hot: ir.Value,
    head: Head,
    targets: Mapping[str, ir.Value],
) -> dict[str, tuple[Output, Output]]:
    """Appends gradient and Hessian-vector product of the target value for every layer.

    Args:
        model: its graph is that of ``op``.
        op: the builder that made the first backward part; what is equal in both is made once.
        logits: (N, K).
        one_hot: (M, K), one at the explained class.
        head: what the source model ends in.
        targets: layer name -> value of the forward graph.

    Returns:
        Layer name -> dt/dA and H A, (M, ...), kept like the layer.

    Raises:
        UnsupportedOpError: an operator of the backward part cannot be differentiated again.
    """
    gradients = append_backward(op, logits, _cotangent(op, logits, one_hot, head), targets)
    found = {}
    for name, value in targets.items():
        # Rules read shapes, and those of the nodes just appended are not known yet.
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
        vector = _for_every_class(op, value, one_hot)
        products = append_backward(op, gradients[name], vector, {name: value})
        found[name] = (("target_gradients", gradients[name], "M"), ("hessian_vectors", products[name], "M"))
    return found


def _cotangent(op: OpBuilder, logits: ir.Value, one_hot: ir.Value, head: Head) -> ir.Value:
    """dt/dy, (M, K)."""
    if head == "sigmoid":
        return op("Mul", one_hot, op("Sub", op.scalar(2.0), op("Sigmoid", logits)))
    return op("Sub", op("Mul", one_hot, op.scalar(2.0)), op("Softmax", logits, axis=-1))


def _for_every_class(op: OpBuilder, value: ir.Value, one_hot: ir.Value) -> ir.Value:
    """``value`` (N, ...) as (M, ...)."""
    classes = op("Shape", one_hot, start=0, end=1)
    ones = op.ints([1] * (len(nominal_shape(value)) - 1))
    return op("Expand", value, op("Concat", classes, ones, axis=0))
