"""GELU written out as five operators, found so that its gradient leaves their intermediate values alone.

Engines fuse x / sqrt(2) -> Erf -> + 1 -> * x -> * 1/2 into one operator, unless a value inside is used elsewhere. A
gradient node by node would use them; the gradient of the whole uses x only, and the fusion survives.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class GeluPatterns:
    """The GELUs of a graph.

    Attributes:
        sources: last node of a pattern -> its x.
        inner: the other nodes of all patterns.
    """

    sources: dict[ir.Node, ir.Value]
    inner: frozenset[ir.Node]


def find_gelu_patterns(nodes: Sequence[ir.Node], targets: Collection[ir.Value]) -> GeluPatterns:
    """The patterns among ``nodes`` whose inner values are used inside only, and are no target.

    1. ``((x * (1 + erf(x / sqrt 2))) * 1/2``
    2. ``(x * 1/2) * (1 + erf(x / sqrt 2))``

    with factors in any order, and the division written as a product or not.
    """
    sources: dict[ir.Node, ir.Value] = {}
    inner: set[ir.Node] = set()
    for node in nodes:
        if node.op_type == "Erf" and (pattern := _around(node)) is not None:
            last, members, x = pattern
            if not any(output in targets or output.is_graph_output() for item in members for output in item.outputs):
                sources[last] = x
                inner.update(members)
    return GeluPatterns(sources, frozenset(inner))


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
