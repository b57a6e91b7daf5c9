"""Shape inference that trusts nothing in the file but the shapes of the inputs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import ShapeInferencePass

from camrt.errors import InvalidModelError
from camrt.exporter.graph_walk import inner_graphs

KEEPS_SHAPE = frozenset({"GroupNormalization"})

# A failed shape inference is logged there with its traceback; here it is raised.
logging.getLogger("onnx_ir").addHandler(logging.NullHandler())


class InferShapesPass(InPlacePass):
    """Infers every shape anew; shapes stored in the file are dropped, they may hold for another batch or size.

    Names of open sizes in branches and loop bodies go too. Operators that ONNX has no inference for and that keep the
    shape of their input are inferred as such.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass."""
        for node in model.graph:
            for output in node.outputs:
                output.shape = None
            for graph in inner_graphs(node):
                _forget_shapes(graph)
        with _as_identities([node for node in model.graph if node.op_type in KEEPS_SHAPE]):
            ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
        if all(output.shape is None for node in model.graph for output in node.outputs):
            raise InvalidModelError(
                "ONNX cannot infer the shapes of the model's values.", "Check the model with onnx.checker."
            )
        return PassResult(model, True)


def _forget_shapes(graph: ir.Graph) -> None:
    """Of a branch or loop body: what its nodes make has no shape, what it is given no named sizes."""
    for node in graph:
        for output in node.outputs:
            output.shape = None
    for value in graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([dim if isinstance(dim, int) else None for dim in value.shape])


@contextmanager
def _as_identities(nodes: Sequence[ir.Node]) -> Iterator[None]:
    """Calls ``nodes`` Identity for a while; inference looks at the first input of one only."""
    names = [node.op_type for node in nodes]
    for node in nodes:
        node.op_type = "Identity"
    try:
        yield
    finally:
        for node, name in zip(nodes, names, strict=True):
            node.op_type = name
