"""Which values lie between two places of a graph, and which single values everything passes through."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from camrt.exporter.shapes import carries_gradient, is_float


def inner_graphs(node: ir.Node) -> tuple[ir.Graph, ...]:
    """The graphs inside ``node`` (branches, loop bodies), and those inside them."""
    own: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            own.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            own.extend(attribute.as_graphs())
    return tuple(inner for graph in own for inner in (graph, *(g for item in graph for g in inner_graphs(item))))


def consumed_values(node: ir.Node) -> tuple[ir.Value, ...]:
    """What ``node`` reads: its inputs, and what the graphs inside it (branches, loop bodies) take from outside."""
    captured = (
        value
        for graph in inner_graphs(node)
        for value in (*(source for item in graph for source in item.inputs), *graph.outputs)
        if value is not None and _home(value) is node.graph
    )
    return (*(value for value in node.inputs if value is not None), *captured)


def _home(value: ir.Value) -> ir.Graph | ir.Function | None:
    """The graph that a value is made in; another one may return it."""
    producer = value.producer()
    return value.graph if producer is None else producer.graph


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
