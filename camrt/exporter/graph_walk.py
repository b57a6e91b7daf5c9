"""Which values lie between two places of a graph, and which single values everything passes through."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from camrt.exporter.shapes import carries_gradient, is_float


def consumed_values(node: ir.Node) -> tuple[ir.Value, ...]:
    """What ``node`` reads: its inputs, and what the graphs inside it (branches, loop bodies) take from outside."""
    inner = [attribute for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH]
    captured = (
        value
        for attribute in inner
        for item in RecursiveGraphIterator(attribute.as_graph())
        for value in item.inputs
        if value is not None and value.graph is node.graph
    )
    return (*(value for value in node.inputs if value is not None), *(captured if inner else ()))


def values_between(graph: ir.Graph, starts: Iterable[ir.Value], end: ir.Value) -> frozenset[ir.Value]:
    """Values with a gradient that depend on a value of ``starts`` and that ``end`` depends on, both ends included."""
    downstream = set(starts)
    for node in graph:
        if any(value in downstream for value in consumed_values(node)):
            downstream.update(output for output in node.outputs if carries_gradient(output))
    upstream = {end}
    for node in reversed(graph):
        if any(output in upstream for output in node.outputs):
            upstream.update(value for value in consumed_values(node) if carries_gradient(value))
    return frozenset(downstream & upstream)


def path_nodes(graph: ir.Graph, between: frozenset[ir.Value]) -> list[ir.Node]:
    """Nodes that take a value of ``between`` to another one, in topological order."""
    return [
        node
        for node in graph
        if any(output in between for output in node.outputs)
        and any(value in between for value in consumed_values(node))
    ]


def cut_values(graph: ir.Graph, start: ir.Value, end: ir.Value) -> list[ir.Value]:
    """Values that every path from ``start`` to ``end`` passes through, in topological order, ``start`` left out.

    Sweeping the nodes in topological order, a value is such a cut if nothing else is alive when it is produced: alive
    is what was produced already and is still needed.
    """
    between = values_between(graph, [start], end)
    nodes = path_nodes(graph, between)
    last_use: dict[ir.Value, int] = {end: len(nodes)}
    for index, node in enumerate(nodes):
        last_use.update((value, index) for value in consumed_values(node) if value in between and value is not end)
    alive = {start}
    cuts = []
    for index, node in enumerate(nodes):
        produced = [output for output in node.outputs if output in between]
        alive = {value for value in alive if last_use[value] > index}.union(produced)
        if len(produced) == len(alive) == 1 and is_float(produced[0]):
            cuts.append(produced[0])
    return cuts
