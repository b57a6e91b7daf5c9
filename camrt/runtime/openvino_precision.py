"""Keeps the forward part of a graph in float32 while OpenVINO computes the rest in bfloat16.

The forward part is what the exact results (logits, classes, activations) are computed from.

OpenVINO's CPU plugin lowers the precision of a whole graph. A node that carries the attribute ``precise`` keeps its
own; the Python interface cannot attach it, the file format can, so the graph is written, marked and read again. Some
of the plugin's rewrites forget the mark: of MaxPool's newer versions to the first, of products with constant weights,
of BatchNormalization by itself, of x * sigmoid(x). Those are written in a form that the plugin leaves alone. Whether it
worked is read from the compiled graph, see rounded_forward_nodes.
"""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import openvino

_UNMARKED = ("Const", "Parameter", "Result")
_ROUNDING = ("Reorder", "Const", "Input", "Output")  # moves of data; what reads them is looked at itself


def keep_forward_exact(core: openvino.Core, model: openvino.Model, exact: Sequence[int]) -> openvino.Model:
    """``model`` with every node of the forward part marked to keep its precision.

    Args:
        core: reads the marked graph.
        model: is changed.
        exact: positions of the exact results.
    """
    import openvino

    _products_as_convolutions(model, exact)
    _batch_norms_as_products(model, exact)
    _gates_by_tanh(model, exact)
    names = {node.get_friendly_name() for node in _forward_nodes(model, exact)}
    with tempfile.TemporaryDirectory() as folder:
        graph, weights = Path(folder) / "graph.xml", Path(folder) / "graph.bin"
        openvino.serialize(model, str(graph), str(weights))
        tree = ElementTree.parse(graph)
        layers = tree.getroot().find("layers")
        assert layers is not None
        for layer in layers:
            if layer.get("type") not in _UNMARKED and layer.get("name") in names:
                _as_first_max_pool(layer)
                _mark(layer)
        tree.write(graph)
        return core.read_model(str(graph), str(weights))


def rounded_forward_nodes(compiled: openvino.CompiledModel, exact: Sequence[int]) -> list[str]:
    """Names of forward nodes that compute in bfloat16."""
    found = []
    for node in _forward_nodes(compiled.get_runtime_model(), exact):
        info = node.get_rt_info()
        kind, precision = str(info["layerType"].astype(str)), str(info["runtimePrecision"].astype(str))
        if precision == "bf16" and kind not in _ROUNDING:
            found.append(node.get_friendly_name())
    return found


def _forward_nodes(model: openvino.Model, exact: Sequence[int], kind: str | None = None) -> Iterator[Any]:
    """What the results at the positions ``exact`` are computed from, or the nodes of one type among it, in order."""
    results = model.get_results()
    needed = {results[position].get_friendly_name() for position in exact}
    found = []
    for node in reversed(model.get_ordered_ops()):
        if node.get_friendly_name() in needed:
            needed.update(port.get_source_output().get_node().get_friendly_name() for port in node.inputs())
            found.append(node)
    return (node for node in reversed(found) if kind is None or node.get_type_name() == kind)


def _products_as_convolutions(model: openvino.Model, exact: Sequence[int]) -> None:
    """Replaces products, (N, C) times constant (K, C), by convolutions of one pixel."""
    from openvino import opset13

    for node in _forward_nodes(model, exact, "MatMul"):
        weights = node.input_value(1).get_node()
        flags = node.get_attributes()
        two_axes = len(node.input(0).get_partial_shape()) == len(node.input(1).get_partial_shape()) == 2
        if weights.get_type_name() != "Constant" or flags["transpose_a"] or not two_axes:
            continue
        matrix = weights.data if flags["transpose_b"] else weights.data.T
        outputs, inputs = matrix.shape
        data = node.input_value(0)
        if data.get_node().get_type_name() == "Reshape":  # the plugin would join the two
            data = data.get_node().input_value(0)
        pixels = opset13.reshape(data, opset13.constant([-1, inputs, 1, 1]), False)
        kernels = opset13.constant(matrix[:, :, None, None].copy())
        product = opset13.convolution(pixels, kernels, [1, 1], [0, 0], [0, 0], [1, 1])
        _replace(node, opset13.reshape(product, opset13.constant([-1, outputs]), False))


def _batch_norms_as_products(model: openvino.Model, exact: Sequence[int]) -> None:
    """Replaces BatchNormalization of constants by x * scale + shift."""
    from openvino import opset13

    for node in _forward_nodes(model, exact, "BatchNormInference"):
        # The data come first or third, by version; the constants are scale, shift, mean, variance in both.
        sources = [node.input_value(index).get_node() for index in range(5)]
        constants = [source for source in sources if source.get_type_name() == "Constant"]
        if len(constants) != 4:
            continue
        place = next(index for index, source in enumerate(sources) if source.get_type_name() != "Constant")
        gamma, beta, mean, variance = (constant.data.astype(np.float64) for constant in constants)
        scale = gamma / np.sqrt(variance + node.get_attributes()["epsilon"])
        axes = (-1, *(1,) * (len(node.input(place).get_partial_shape()) - 2))
        data = node.input_value(place)
        scaled = opset13.multiply(data, opset13.constant(scale.reshape(axes).astype(np.float32)))
        shift = opset13.constant((beta - mean * scale).reshape(axes).astype(np.float32))
        _replace(node, opset13.add(scaled, shift))


def _gates_by_tanh(model: openvino.Model, exact: Sequence[int]) -> None:
    """Replaces x * sigmoid(x), which the plugin would fuse, by x * (tanh(x / 2) / 2 + 1 / 2)."""
    from openvino import opset13

    for node in _forward_nodes(model, exact, "Multiply"):
        for index in (0, 1):
            gate, data = node.input_value(index).get_node(), node.input_value(1 - index)
            if gate.get_type_name() == "Sigmoid" and _same_port(gate.input_value(0), data):
                half = opset13.constant(np.float32(0.5))
                wave = opset13.tanh(opset13.multiply(data, half))
                _replace(node, opset13.multiply(data, opset13.add(opset13.multiply(wave, half), half)))
                break


def _same_port(one: Any, other: Any) -> bool:
    names = one.get_node().get_friendly_name(), other.get_node().get_friendly_name()
    return bool(names[0] == names[1] and one.get_index() == other.get_index())


def _replace(node: Any, other: Any) -> None:
    other.set_friendly_name(node.get_friendly_name())
    for target in node.output(0).get_target_inputs():
        target.replace_source_output(other.output(0))
    other.output(0).get_tensor().set_names(node.output(0).get_tensor().get_names())


def _as_first_max_pool(layer: ElementTree.Element) -> None:
    """A MaxPool whose indices nobody reads, without dilation, as version 1."""
    data, output = layer.find("data"), layer.find("output")
    if layer.get("type") != "MaxPool" or data is None or output is None:
        return
    if set((data.get("dilations") or "1").replace(" ", "").split(",")) != {"1"}:
        return
    layer.set("version", "opset1")
    for name in ("dilations", "index_element_type", "axis"):
        data.attrib.pop(name, None)
    for port in list(output)[1:]:
        output.remove(port)


def _mark(layer: ElementTree.Element) -> None:
    """Attaches the attribute ``precise`` in front of the ports, where the format has it."""
    info = layer.find("rt_info")
    if info is None:
        info = ElementTree.Element("rt_info")
        ports = [index for index, child in enumerate(layer) if child.tag in ("input", "output")]
        layer.insert(ports[0] if ports else len(layer), info)
    ElementTree.SubElement(info, "attribute", {"name": "precise", "version": "0"})
