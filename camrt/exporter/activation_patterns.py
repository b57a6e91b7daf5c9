"""Activations written out as several operators, found so that each is differentiated as a whole.

- GELU as five operators. Engines fuse x / sqrt(2) -> Erf -> + 1 -> * x -> * 1/2 into one, unless a value inside is used
  elsewhere. A gradient node by node would use them; the gradient of the whole uses x only, and the fusion survives.
- SiLU, x * sigmoid(x): the whole has one slope, four operators; the gradients of the two nodes are six.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.vjp.activation import gelu_gradient, silu_gradient


@dataclass(frozen=True, slots=True)
class ActivationPattern:
    """One activation function written out.

    Attributes:
        x: its input.
        inner: its nodes but the last.
        gradient: (builder, cotangent of its output) -> the gradient of x.
    """

    x: ir.Value
    inner: tuple[ir.Node, ...]
    gradient: Callable[[OpBuilder, ir.Value], ir.Value]


def find_activation_patterns(
    nodes: Sequence[ir.Node], targets: Collection[ir.Value]
) -> dict[ir.Node, ActivationPattern]:
    """Last node -> pattern, of those among ``nodes`` whose inner values are used inside only, and are no target.

    1. ``(x * (1 + erf(x / sqrt 2))) * 1/2`` and ``(x * 1/2) * (1 + erf(x / sqrt 2))``, with factors in any order, and
       the division written as a product or not;
    2. ``x * sigmoid(x)``.
    """
    finders = {"Erf": _gelu, "Sigmoid": _silu}
    found = {}
    for node in nodes:
        if node.op_type not in finders or (pair := finders[node.op_type](node)) is None:
            continue
        last, pattern = pair
        values = [output for item in pattern.inner for output in item.outputs]
        if not any(value in targets or value.is_graph_output() for value in values):
            found[last] = pattern
    return found


def _silu(sigmoid: ir.Node) -> tuple[ir.Node, ActivationPattern] | None:
    """The pattern that begins with a Sigmoid."""
    x, product = sigmoid.inputs[0], _only_user(sigmoid, "Mul")
    if x is None or product is None or x not in product.inputs:
        return None
    s, y = sigmoid.outputs[0], product.outputs[0]
    return product, ActivationPattern(x, (sigmoid,), lambda op, cotangent: silu_gradient(op, s, y, cotangent))


def _gelu(erf: ir.Node) -> tuple[ir.Node, ActivationPattern] | None:
    """The pattern around an Erf."""
    around = _around(erf)
    if around is None:
        return None
    last, inner, x = around
    return last, ActivationPattern(x, tuple(inner), lambda op, cotangent: gelu_gradient(op, x, cotangent))


def _around(erf: ir.Node) -> tuple[ir.Node, list[ir.Node], ir.Value] | None:
    """(last node, other nodes, x) of the pattern around an Erf, or None."""
    scale = None if erf.inputs[0] is None else erf.inputs[0].producer()
    x = None if scale is None else _scaled(scale, math.sqrt(0.5))
    plus_one = _only_user(erf, "Add")
    product = None if plus_one is None else _only_user(plus_one, "Mul")
    if scale is None or x is None or plus_one is None or product is None or not _has_constant(plus_one, 1.0):
        return None
    if len(scale.outputs[0].uses()) != 1:
        return None
    if x in product.inputs:
        half = _only_user(product, "Mul")
        if half is not None and _has_constant(half, 0.5):
            return half, [scale, erf, plus_one, product], x
        return None
    other = next((value for value in product.inputs if value is not plus_one.outputs[0]), None)
    half = None if other is None else other.producer()
    if half is not None and _scaled(half, 0.5) is x and len(half.outputs[0].uses()) == 1:
        return product, [scale, erf, plus_one, half], x
    return None


def _only_user(node: ir.Node, op_type: str) -> ir.Node | None:
    """The one node that uses the output of ``node``, if it is of that type."""
    uses = node.outputs[0].uses()
    user = next(iter(uses)).node if len(uses) == 1 else None
    return user if user is not None and user.op_type == op_type else None


def _scaled(node: ir.Node, factor: float) -> ir.Value | None:
    """v of a node that computes ``factor * v``."""
    if node.op_type == "Div" and _is_constant(node.inputs[1], 1 / factor):
        return node.inputs[0]
    if node.op_type == "Mul" and _has_constant(node, factor):
        return next(value for value in node.inputs if not _is_constant(value, factor))
    return None


def _has_constant(node: ir.Node, number: float) -> bool:
    return sum(_is_constant(value, number) for value in node.inputs) == 1


def _is_constant(value: ir.Value | None, number: float) -> bool:
    if value is None or value.const_value is None or value.const_value.size != 1:
        return False
    return bool(np.isclose(value.const_value.numpy().astype(np.float64).item(), number, rtol=1e-3, atol=0))
