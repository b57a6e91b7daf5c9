"""Puts the branch of an If in its place where the graph alone decides which one is taken."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from camrt.exporter.graph_walk import inner_graphs
from camrt.exporter.head import find_image_input
from camrt.exporter.infer_shapes import InferShapesPass
from camrt.exporter.shape_folding import PROBES, evaluated_shapes

_BATCHES = (1, *PROBES)  # one image too: a length of 1 is what exporters ask for


class InlineIfsPass(InPlacePass):
    """Replaces an If by the branch that it always takes.

    TorchScript writes ``x.squeeze(dim)`` as an If that asks whether the axis has length 1.

    1. The condition is a constant, or is computed from shapes and is the same for one, two and three images, or for
       the batch that the file fixes: the nodes of the branch take the place of the If.
    2. Any other If stays.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass."""
        modified = False
        while decided := _decided(model):
            for node, branch in decided:
                _inline(model.graph, node, branch)
            InferShapesPass()(model)
            modified = True
        return PassResult(model, modified)


def _decided(model: ir.Model) -> list[tuple[ir.Node, ir.Graph]]:
    """Every If of case 1, with its branch."""
    nodes = [node for node in model.graph if node.op_type == "If" and node.domain in ("", "ai.onnx")]
    if not nodes:
        return []
    image = find_image_input(model.graph)
    assert image.shape is not None
    batch = image.shape[0]
    probes = [evaluated_shapes(model, size)[1] for size in ((batch,) if isinstance(batch, int) else _BATCHES)]
    decided = []
    for node in nodes:
        condition = node.inputs[0]
        answers = {bool(probe[condition]) if condition in probe else None for probe in probes if condition is not None}
        if len(answers) == 1 and None not in answers:
            name = "then_branch" if answers.pop() else "else_branch"
            decided.append((node, node.attributes[name].as_graph()))
    return decided


def _inline(graph: ir.Graph, node: ir.Node, branch: ir.Graph) -> None:
    """Moves the nodes of ``branch`` in front of ``node``, and takes ``node`` away."""
    results, nodes = list(branch.outputs), list(branch)
    constants = list(branch.initializers.values())
    branch.outputs.clear()
    branch.initializers.clear()
    branch.remove(nodes)
    _make_unique(graph, [*(output for item in nodes for output in item.outputs), *constants], nodes)
    for value in constants:
        graph.register_initializer(value)
    graph.insert_before(node, nodes)
    for output, result in zip(node.outputs, results, strict=True):
        copy = ir.node("Identity", [result])
        copy.outputs[0].name, copy.outputs[0].type, output.name = output.name, output.type, None
        graph.insert_before(node, copy)
        output.replace_all_uses_with(copy.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _make_unique(graph: ir.Graph, values: list[ir.Value], nodes: list[ir.Node]) -> None:
    """Renames ``values`` and ``nodes`` that come into the graph and are called like others: branches share names."""
    graphs = [graph, *(inner for node in graph for inner in inner_graphs(node))]
    present = [node for item in graphs for node in item]
    value_names = {value.name for node in present for value in node.outputs}
    value_names |= {value.name for item in graphs for value in (*item.inputs, *item.initializers.values())}
    node_names = {node.name for node in present}
    for number, value in enumerate(values):
        if value.name in value_names:
            value.name = f"{value.name}/inlined_{len(value_names)}_{number}"
    for number, node in enumerate(nodes):
        if node.name and node.name in node_names:
            node.name = f"{node.name}/inlined_{len(node_names)}_{number}"
