"""The backward walk: from the cotangent of the logits to the gradients of the target layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from camrt.errors import UnsupportedOpError
from camrt.exporter.activation_patterns import ActivationPattern, find_activation_patterns
from camrt.exporter.batch_axis import find_batch_axes
from camrt.exporter.graph_walk import path_nodes, values_between
from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.vjp import MULTI_OUTPUT_RULES, VJP_RULES, has_rule
from camrt.exporter.vjp.infinities import infinite_cotangents
from camrt.exporter.vjp.registry import operand, unsupported


def append_backward(
    op: OpBuilder, logits: ir.Value, logits_cotangent: ir.Value, targets: Mapping[str, ir.Value]
) -> dict[str, ir.Value]:
    """Appends the nodes that compute the gradient of every target, and no others.

    Args:
        op: builder over the model's graph; the forward nodes stay as they are.
        logits: (N, K), where the walk starts.
        logits_cotangent: (M, K), its gradient.
        targets: layer name -> value of the forward graph.

    Returns:
        Layer name -> gradient, (M, ...).

    Raises:
        UnsupportedOpError: an operator without a rule lies on the way; names the layers that work.
    """
    graph = op.graph
    between = values_between(graph, targets.values(), logits)
    nodes = path_nodes(graph, between)
    for node in nodes:
        if not has_rule(node):
            raise _unsupported(graph, node, logits, targets)
    op.wanted = between
    op.batch_axes, op.cotangent = find_batch_axes(graph), logits_cotangent
    patterns = find_activation_patterns(nodes, targets.values())
    inner = {node for pattern in patterns.values() for node in pattern.inner}
    lowering, infinite = op.lowering, infinite_cotangents(nodes)
    gradients: dict[ir.Value, ir.Value] = {logits: logits_cotangent}
    for node in reversed(nodes):
        if node in inner:
            continue
        op.dtype = node.outputs[0].dtype or op.dtype
        op.lowering = lowering and infinite.isdisjoint(node.outputs)
        cotangents = [gradients.get(output) for output in node.outputs]
        pattern = patterns.get(node)
        inputs: Sequence[ir.Value | None] = node.inputs if pattern is None else [pattern.x]
        try:
            contributions = _apply_rule(op, node, pattern, cotangents)
        except UnsupportedOpError as error:
            raise _unsupported(graph, node, logits, targets, error.reason) from error
        for value, gradient in zip(inputs, contributions, strict=True):
            if value is None or value not in between:
                continue
            if gradient is None:
                raise _unsupported(graph, node, logits, targets, f"its input {value.name!r} depends on the image")
            gradients[value] = _sum(op, gradients[value], gradient) if value in gradients else gradient
    op.lowering = lowering
    return {name: gradients[value] for name, value in targets.items()}


def _sum(op: OpBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    """The sum of two gradients of a value. Add broadcasts, so an Expand of one of them is left out."""
    one, other = _unexpanded(first), _unexpanded(second)
    if one is first or other is second:
        return op("Add", one, other)
    return op("Add", first, second)


def _unexpanded(gradient: ir.Value) -> ir.Value:
    """What an Expand made ``gradient`` of, or ``gradient``."""
    node = gradient.producer()
    return operand(node) if node is not None and node.op_type == "Expand" else gradient


def _apply_rule(
    op: OpBuilder, node: ir.Node, pattern: ActivationPattern | None, cotangents: Sequence[ir.Value | None]
) -> Sequence[ir.Value | None]:
    """The gradients of the node's inputs, or the one of the pattern that ends in it.

    Raises:
        UnsupportedOpError: the rule refuses the node, or an output that the rule does not cover is on the path.
    """
    if node.op_type in MULTI_OUTPUT_RULES:
        found = MULTI_OUTPUT_RULES[node.op_type](op, node, cotangents)
    else:
        cotangent = cotangents[0]
        if cotangent is None or any(other is not None for other in cotangents[1:]):
            raise unsupported(node, "an output other than its first is used")
        if pattern is not None:
            return [pattern.gradient(op, cotangent)]
        found = VJP_RULES[node.op_type](op, node, cotangent)
    return [*found, *[None] * (len(node.inputs) - len(found))]


def _unsupported(
    graph: ir.Graph, node: ir.Node, logits: ir.Value, targets: Mapping[str, ir.Value], reason: str = ""
) -> UnsupportedOpError:
    """The error for ``node``, with the target layers that the gradient reaches without it."""
    working = tuple(
        name
        for name, value in targets.items()
        if all(
            other is not node and has_rule(other) for other in path_nodes(graph, values_between(graph, [value], logits))
        )
    )
    return UnsupportedOpError(node.op_type, node.name or node.outputs[0].name or "", working, reason)
