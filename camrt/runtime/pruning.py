"""Cuts a graph down to what a set of outputs needs.

ONNX Runtime executes every node of a graph whichever outputs are fetched, so each output set gets a graph of its own.
The weights are shared: in a pruned graph large initialisers are references by name, and the arrays are handed over
beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from camrt.bundle import HALF_OUTPUT_SUFFIX
from camrt.errors import InvalidModelError, UnsupportedModelError
from camrt.types import AnyArray

_INLINE_BYTES = 1024  # smaller initialisers (shapes, axes, scalars) stay in the graph, where optimisers read them
_SHAREABLE_KINDS = "biuf"  # NumPy's own numbers; strings and bfloat16 cannot be handed over as arrays
_EXTERNAL_NAME = "shared-weights"


class PrunableModel:
    """An ONNX model in memory that pruned graphs are taken from.

    Args:
        path: the model's file.

    Raises:
        InvalidModelError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self._model = onnx.load(Path(path), format="protobuf")
        except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as error:
            raise InvalidModelError(
                f"Cannot read {path} as an ONNX model: {error}.", "Check the file, or export the model again."
            ) from error
        graph = self._model.graph
        self._producers = {output: node for node in graph.node for output in node.output if output}
        self._order = {id(node): index for index, node in enumerate(graph.node)}
        self._inputs = {value.name: value for value in graph.input}
        self._outputs = {value.name: value for value in graph.output}
        self._small: dict[str, onnx.TensorProto] = {}
        self._references: dict[str, onnx.TensorProto] = {}
        self.weights: dict[str, AnyArray] = {}
        try:
            for tensor in graph.initializer:
                self._keep(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidModelError(f"A weight of {path} is damaged: {error}.", "Export the model again.") from error
        del graph.initializer[:]

    @property
    def input_dtypes(self) -> dict[str, np.dtype[Any]]:
        """Element type of every input of the graph."""
        return {name: self._dtype(value) for name, value in self._inputs.items()}

    @property
    def output_dtypes(self) -> dict[str, np.dtype[Any]]:
        """Element type of every output of the graph."""
        return {name: self._dtype(value) for name, value in self._outputs.items()}

    def _dtype(self, value: onnx.ValueInfoProto) -> np.dtype[Any]:
        try:
            return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        except KeyError as error:
            raise InvalidModelError(f"{value.name!r} is no tensor.", "Export the model again.") from error

    def pruned(self, outputs: Sequence[str], cut_at: str | None = None) -> tuple[bytes, list[str]]:
        """The serialised graph that computes ``outputs``, and the names of the weights that it refers to.

        Args:
            outputs: names of graph outputs.
            cut_at: a graph output that becomes the input in place of the image; class indices stay an input.

        Raises:
            UnsupportedModelError: with cut_at, where the outputs need the image all the same.
        """
        nodes, leaves = self._needed(outputs, cut_at)
        inputs = [self._inputs[name] for name in self._inputs if name in leaves]
        if cut_at is not None:
            nodes[:0] = [self._copy(cut_at, source) for source in self._copied_values(cut_at)]
            image = next((value.name for value in inputs if self._is_image(value)), None)
            if image is not None:
                raise UnsupportedModelError(
                    f"The logits need {image!r} beside {cut_at!r}: a path goes around the layer.",
                    "Choose a layer that everything passes through.",
                )
            inputs = [self._outputs[cut_at], *inputs]
        weights = [name for name in self._references if name in leaves]
        graph = onnx.GraphProto(
            name=self._model.graph.name or "pruned",
            node=nodes,
            input=inputs,
            output=[self._outputs[name] for name in outputs],
            initializer=[
                *(self._small[name] for name in self._small if name in leaves),
                *(self._references[name] for name in weights),
            ],
        )
        model = onnx.ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import, graph=graph)
        return model.SerializeToString(), weights

    def inputs(self, outputs: Sequence[str], cut_at: str | None = None) -> tuple[str, ...]:
        """Names of the inputs of the graph of ``pruned``."""
        _, leaves = self._needed(outputs, cut_at)
        names = tuple(name for name in self._inputs if name in leaves)
        return names if cut_at is None else (cut_at, *names)

    def complete(self, outputs: Sequence[str], cut_at: str | None = None) -> bytes:
        """The serialised graph of ``pruned`` with its weights inside, for engines that cannot take them beside it."""
        graph, names = self.pruned(outputs, cut_at)
        model = onnx.load_model_from_string(graph)
        inline = [tensor for tensor in model.graph.initializer if tensor.name not in set(names)]
        del model.graph.initializer[:]
        model.graph.initializer.extend(inline)
        model.graph.initializer.extend(numpy_helper.from_array(self.weights[name], name) for name in names)
        return model.SerializeToString()

    def _is_image(self, value: onnx.ValueInfoProto) -> bool:
        """Whether an input is the image: the other one, the class indices, are integers."""
        return self._dtype(value).kind == "f"

    def _needed(self, outputs: Iterable[str], cut_at: str | None) -> tuple[list[onnx.NodeProto], set[str]]:
        """The nodes behind ``outputs`` in their order, and the names that no node produces."""
        found: dict[int, onnx.NodeProto] = {}
        leaves: set[str] = set()
        cuts = set() if cut_at is None else {cut_at, *self._copied_values(cut_at)}
        stack = list(outputs)
        seen = set(stack)
        while stack:
            name = stack.pop()
            node = None if name in cuts else self._producers.get(name)
            if node is None:
                leaves.add(name)
                continue
            found[self._order[id(node)]] = node
            fresh = {value for value in _consumed_names(node) if value} - seen
            seen |= fresh
            stack.extend(fresh)
        return [found[index] for index in sorted(found)], leaves

    def _copied_values(self, name: str) -> list[str]:
        """The values that the output ``name`` holds too: by Identity, transposed, or as a half bundle's float32."""
        values: list[str] = []
        node = self._producers.get(name)
        if node is not None and node.op_type == "Transpose":
            return [node.input[0]]
        while node is not None and (node.op_type == "Identity" or node.name == f"{name}{HALF_OUTPUT_SUFFIX}"):
            values.append(node.input[0])
            node = self._producers.get(node.input[0])
        return values

    def _copy(self, name: str, source: str) -> onnx.NodeProto:
        """The node that makes ``source`` of the output that copies it, ``name``, in the element type of ``source``."""
        node = self._producers[name]
        if node.op_type == "Identity":
            return onnx.NodeProto(op_type="Identity", input=[name], output=[source])
        if node.op_type == "Transpose":
            (perm,) = (list(attribute.ints) for attribute in node.attribute if attribute.name == "perm")
            back = [perm.index(axis) for axis in range(len(perm))]
            return onnx.helper.make_node("Transpose", [name], [source], perm=back)
        to = onnx.AttributeProto(name="to", type=onnx.AttributeProto.INT, i=onnx.TensorProto.FLOAT16)
        return onnx.NodeProto(op_type="Cast", input=[name], output=[source], attribute=[to])

    def _keep(self, tensor: onnx.TensorProto) -> None:
        """Files one initialiser: inline, or as a shared array with a reference to it."""
        array = numpy_helper.to_array(tensor)
        if array.nbytes <= _INLINE_BYTES or array.dtype.kind not in _SHAREABLE_KINDS:
            small = onnx.TensorProto()
            small.CopyFrom(tensor)
            self._small[tensor.name] = small
            return
        self.weights[tensor.name] = array
        reference = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        reference.data_location = onnx.TensorProto.EXTERNAL
        reference.external_data.add(key="location", value=_EXTERNAL_NAME)
        self._references[tensor.name] = reference


def _consumed_names(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads: its inputs, and every name that the graphs inside it mention."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from _consumed_names(inner)
            yield from (value.name for value in attribute.g.output)
