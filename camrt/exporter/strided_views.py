"""Takes back what torch.onnx's dynamo exporter makes of ``as_strided``: a Gather over the flattened tensor."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from camrt.exporter.shape_folding import PROBES
from camrt.exporter.shapes import BATCH, is_known, nominal_shape
from camrt.types import AnyArray


class RemoveStridedViewPass(InPlacePass):
    """Removes a Gather that takes every element of a tensor in its order.

    1. ``y = Gather(Reshape(x, [-1]), index)``, where y has the shape of x, and index, computed from shapes alone,
       counts 0, 1, 2, ... for two batch sizes, or for the one that the file fixes: uses of y become uses of x.
    2. Any other Gather stays.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass."""
        removed = [node for node in model.graph if node.op_type == "Gather" and _replace_if_identity(node)]
        for node in removed:
            model.graph.remove(node, safe=True)
        return PassResult(model, bool(removed))


def _replace_if_identity(gather: ir.Node) -> bool:
    """Case 1 for one node."""
    flat, index = gather.inputs[0], gather.inputs[1]
    flatten = None if flat is None else flat.producer()
    if flatten is None or flatten.op_type != "Reshape" or index is None or gather.outputs[0].is_graph_output():
        return False
    source, result = flatten.inputs[0], gather.outputs[0]
    if source is None or not is_known(source) or not is_known(result) or flat is None or flat.shape is None:
        return False
    shape = nominal_shape(source)
    if len(flat.shape) != 1 or shape != nominal_shape(result) or BATCH in shape[1:]:
        return False
    for batch in PROBES if shape[0] == BATCH else shape[:1]:
        full = (batch, *shape[1:])
        indices = _evaluate(index, batch)
        if indices is None or not np.array_equal(indices, np.arange(np.prod(full)).reshape(full)):
            return False
    result.replace_all_uses_with(source)
    return True


def _evaluate(value: ir.Value, batch: int) -> AnyArray | None:
    """The number that ``value`` has at a batch size, or None where it depends on more than shapes and constants."""
    assert value.name is not None
    nodes: list[ir.Node] = []
    known: dict[str, AnyArray] = {}
    if not _collect(value, batch, nodes, known):
        return None
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in nodes],
        "index",
        [],
        [onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.INT64, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in known.items()],
    )
    opset = value.graph.opset_imports[""] if value.graph is not None else 17
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    (result,) = onnx.reference.ReferenceEvaluator(model).run(None, {})
    return np.asarray(result)


def _collect(value: ir.Value, batch: int, nodes: list[ir.Node], known: dict[str, AnyArray]) -> bool:
    """Fills the nodes behind ``value`` in topological order, and the constants and shapes that they start from."""
    assert value.name is not None
    if value.name in known or any(value in node.outputs for node in nodes):
        return True
    if value.const_value is not None:
        known[value.name] = value.const_value.numpy()
        return True
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "Shape":
        source = node.inputs[0]
        if source is None or not is_known(source):
            return False
        shape = [batch if dim == BATCH else dim for dim in nominal_shape(source)]
        start, end = node.attributes.get("start"), node.attributes.get("end")
        part = shape[None if start is None else start.as_int() : None if end is None else end.as_int()]
        known[value.name] = np.asarray(part, np.int64)
        return True
    if not all(_collect(source, batch, nodes, known) for source in node.inputs if source is not None):
        return False
    nodes.append(node)
    return True
