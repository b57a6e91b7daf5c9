"""Reads an ONNX file from anywhere and brings it to an opset that the backward rules are written for."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.inliner
import onnx_ir as ir
from google.protobuf.message import DecodeError

from camrt.errors import InvalidModelError, UnsupportedModelError
from camrt.exporter.old_resizing import LAST_OPSET, keep_coordinates
from camrt.exporter.sparse import densify

MIN_OPSET, MAX_OPSET = 17, 21
MIN_SOURCE_OPSET = 7
MIN_IR_VERSION = 8  # what opset 17 asks for
_CONVERSION_ERRORS = (
    onnx.version_converter.ConvertError,
    onnx.shape_inference.InferenceError,
    RuntimeError,
    ValueError,
    IndexError,
)


def load_model(path: Path) -> ir.Model:
    """The model at ``path``, external data included, at an opset from 17 to 21.

    Raises:
        InvalidModelError: missing, not ONNX, truncated, or inconsistent.
        UnsupportedModelError: an opset that cannot be converted.
    """
    try:
        proto = onnx.load(path, format="protobuf")
    except OSError as error:
        raise InvalidModelError(f"Cannot read {path}: {error}.", "Check the path.") from error
    except (DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise InvalidModelError(
            f"{path} is not an ONNX file, or is truncated or damaged: {error}.", "Export the model again."
        ) from error
    if not proto.graph.node or not proto.opset_import:
        raise InvalidModelError(f"{path} holds no ONNX graph.", "Check that it is an .onnx file and complete.")
    try:
        _check_names(proto.graph)
        _check_references(proto.graph)
        densify(proto.graph)
        for tensor in proto.graph.initializer:
            onnx.numpy_helper.to_array(tensor)
        return ir.from_proto(_converted(_inlined(proto, path), path))
    except (ValueError, TypeError, KeyError, ir.serde.SerdeError) as error:
        raise InvalidModelError(f"The graph in {path} is inconsistent: {error}.", "Export the model again.") from error


def _check_names(graph: onnx.GraphProto) -> None:
    """ValueError where a name is not UTF-8: protobuf hands out such a name as bytes."""
    values = (*graph.input, *graph.output, *graph.value_info)
    names = [value.name for value in values] + [tensor.name for tensor in graph.initializer]
    names += [node.name for node in graph.node]
    for node in graph.node:
        names += [node.op_type, node.domain, *node.input, *node.output, *(item.name for item in node.attribute)]
    damaged = next((name for name in names if not isinstance(name, str)), None)
    if damaged is not None:
        raise ValueError(f"the name {damaged!r} is not UTF-8")


def _check_references(graph: onnx.GraphProto) -> None:
    """ValueError where a node reads, or the graph returns, what nothing makes, or where an attribute has no type."""
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    known.update(tensor.values.name for tensor in graph.sparse_initializer)
    known.update(output for node in graph.node for output in node.output)
    read = [name for node in graph.node for name in node.input] + [value.name for value in graph.output]
    missing = next((name for name in read if name not in known), None)
    if missing is not None:
        raise ValueError(f"nothing makes the value {missing!r}")
    for node in graph.node:
        if any(attribute.type == onnx.AttributeProto.UNDEFINED for attribute in node.attribute):
            raise ValueError(f"an attribute of node {node.name!r} has no type")


def _inlined(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model without local functions, where they or the model are of an opset that has to be converted.

    The converter drops functions. Where nothing is converted they stay for a later pass.
    """
    opset = _opset(proto)
    alike = all(_opset(function) == opset for function in proto.functions)
    if not proto.functions or (alike and MIN_OPSET <= opset <= MAX_OPSET):
        return proto
    try:
        typed = proto if alike else onnx.shape_inference.infer_shapes(proto)  # a function's converter asks for types
        return onnx.inliner.inline_local_functions(typed, convert_version=not alike)
    except _CONVERSION_ERRORS as error:
        raise UnsupportedModelError(
            f"{path} has functions that cannot be put in place at opset {opset}: {error}.",
            f"Export the model again, model and functions with one opset from {MIN_OPSET} to {MAX_OPSET}.",
        ) from error


def _opset(proto: onnx.ModelProto | onnx.FunctionProto) -> int:
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _converted(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model itself where its opset is in range, else converted to the nearest one."""
    opset = _opset(proto)
    if MIN_OPSET <= opset <= MAX_OPSET:
        return proto
    target = MIN_OPSET if opset < MIN_OPSET else MAX_OPSET
    if opset < MIN_SOURCE_OPSET:
        raise UnsupportedModelError(
            f"{path} uses opset {opset}.", f"Export the model again with an opset from {MIN_SOURCE_OPSET} up."
        )
    # Files of IR version 3 may list their weights as inputs or not; the converter demands that they do.
    proto.ir_version = max(proto.ir_version, MIN_IR_VERSION)
    try:
        converted = onnx.version_converter.convert_version(proto, target)
        if opset <= LAST_OPSET:
            keep_coordinates(converted.graph)
        return converted
    except _CONVERSION_ERRORS as error:
        raise UnsupportedModelError(
            f"{path} cannot be converted from opset {opset} to {target}: {error}.",
            f"Export the model again with an opset from {MIN_OPSET} to {MAX_OPSET}.",
        ) from error
