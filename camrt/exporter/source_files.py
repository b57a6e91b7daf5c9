"""Which files a source model is made of: what tells it from another, and what an export must not write over."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from camrt.bundle import check_output, file_sha256


def check_destination(destination: Path, source: Path) -> None:
    """Refuses to write over the source model or its external data.

    Raises:
        InvalidInputError: ``destination`` is one of these files.
    """
    if destination.exists():  # else nothing is replaced, and the source need not be read for that
        check_output(destination, [source, *_external_data(source)])


def source_sha256(source: Path) -> str:
    """SHA-256 of a source model that can be loaded, hex.

    That of its file; with external data, that of the digests of all its files, a line each: the model, then the others
    by name.
    """
    digests = [file_sha256(path) for path in (source, *sorted(_external_data(source)))]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _external_data(source: Path) -> set[Path]:
    try:
        proto = onnx.load(source, format="protobuf", load_external_data=False)
    except (OSError, DecodeError):
        return set()  # what is wrong with the file is told when it is loaded
    nodes = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    tensors = [*proto.graph.initializer, *_tensors_of(nodes)]
    entries = (entry for tensor in tensors for entry in tensor.external_data)
    return {source.parent / entry.value for entry in entries if entry.key == "location"}


def _tensors_of(nodes: list[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """The tensors in the attributes of nodes, and of the nodes in their graphs."""
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for graph in (attribute.g, *attribute.graphs):
            yield from graph.initializer
            yield from _tensors_of(list(graph.node))
