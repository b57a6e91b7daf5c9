"""``export``: from a classifier's ONNX file to a bundle."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import InvariantError
from onnx_ir.passes.common import RemoveUnusedNodesPass

from camrt.bundle import MANIFEST_KEY, Bundle, Manifest, TargetLayer, file_sha256
from camrt.errors import CamrtError, InvalidInputError, InvalidModelError
from camrt.exporter.backward import append_backward
from camrt.exporter.head import (
    CLASS_INDEX,
    CLASS_INDEX_OUT,
    ClassifierHead,
    append_class_selection,
    find_head,
    find_image_input,
    flat_logits,
)
from camrt.exporter.layers import LayerCandidate, LayerFinder
from camrt.exporter.loading import load_model
from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.passes import normalize
from camrt.exporter.shapes import nominal_shape
from camrt.preprocess import Preprocessing

_TO_NCHW = [0, 3, 1, 2]
_MALFORMED = (InvariantError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError)


def export(
    model_path: str | os.PathLike[str],
    bundle_path: str | os.PathLike[str],
    target_layers: str | Sequence[str] = "auto",
    *,
    preprocess: str | Preprocessing | Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    image_size: tuple[int, int] | None = None,
    logits: str | None = None,
) -> Bundle:
    """Rewrites a classifier so that one run returns logits, activations of several layers and their gradients.

    Args:
        model_path: an ONNX classifier, opset 7 or later.
        bundle_path: where the bundle is written; replaced only when the export has succeeded.
        target_layers: "auto" (the stage ends), or layer names, PyTorch module paths, value names or glob patterns.
        preprocess: how images become input tensors: a preset's name, a Preprocessing or its fields. Without it the
            bundle explains tensors only.
        class_names: K names in the order of the logits.
        image_size: (H, W), for a model that takes any; default the size of ``preprocess``, else 224x224.
        logits: the class output, where the model has several outputs.

    Returns:
        The bundle.

    Raises:
        InvalidModelError, UnsupportedModelError, UnsupportedOpError: the model cannot be read or rewritten.
        LayerNotFoundError: a target layer does not exist.
        InvalidInputError: arguments that contradict each other or the model.
    """
    source, destination = Path(model_path), Path(bundle_path)
    with _inconsistent_graphs_refused(source):
        prepared = _prepare(source, _nominal_size(preprocess, image_size), logits)
        input_shape = _three(nominal_shape(prepared.image)[1:])
        preprocessing = _preprocessing(preprocess, input_shape)
        _check_class_names(class_names, prepared.head.num_classes)
        layers = prepared.finder.select(target_layers)
        outputs = tuple(value.name or "" for value in prepared.model.graph.outputs)
        logits_name, described = _append_outputs(prepared, layers)
    manifest = Manifest(
        camrt_version=version("camrt"),
        source_name=source.name,
        source_sha256=file_sha256(source),
        input_name=prepared.image.name or "",
        input_shape=input_shape,
        logits=logits_name,
        head=prepared.head.kind,
        probabilities=None if prepared.head.kind == "logits" else prepared.head.output.name,
        num_classes=prepared.head.num_classes,
        outputs=outputs,
        class_index_input=CLASS_INDEX,
        class_index_output=CLASS_INDEX_OUT,
        target_layers=described,
        class_names=None if class_names is None else tuple(class_names),
        preprocessing=None if preprocessing is None else preprocessing.to_dict(),
    )
    prepared.model.metadata_props[MANIFEST_KEY] = manifest.to_json()
    _write(prepared.model, destination)
    return Bundle(destination, manifest)


def list_layers(
    model_path: str | os.PathLike[str], image_size: tuple[int, int] | None = None, logits: str | None = None
) -> list[LayerCandidate]:
    """Every layer that can be explained, in the order of the network, with what ``auto`` picks and why."""
    source = Path(model_path)
    with _inconsistent_graphs_refused(source):
        return _prepare(source, image_size, logits).finder.candidates()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A model in the form that the rewriting reads."""

    model: ir.Model
    image: ir.Value
    head: ClassifierHead
    finder: LayerFinder


def _prepare(source: Path, image_size: tuple[int, int] | None, logits: str | None) -> _Prepared:
    model = load_model(source)
    if MANIFEST_KEY in model.metadata_props:
        raise InvalidInputError(
            f"{source} is a camrt bundle already.", "Use it as it is, or export the source model again."
        )
    normalize(model, image_size)
    image, head = find_image_input(model.graph), find_head(model.graph, logits)
    return _Prepared(model, image, head, LayerFinder(model.graph, image, head.logits))


@contextmanager
def _inconsistent_graphs_refused(source: Path) -> Iterator[None]:
    """Turns what a graph against ONNX's rules makes of the passes and vjp rules into InvalidModelError.

    A node may lack an input or attribute that its operator requires, or give one of an absurd value. The rules read
    what ONNX guarantees; they do not check it again.
    """
    try:
        yield
    except CamrtError:
        raise
    except _MALFORMED as error:
        if isinstance(error, InvariantError) and isinstance(error.__cause__, CamrtError):
            raise error.__cause__ from error
        raise InvalidModelError(
            f"The graph in {source} is inconsistent ({type(error).__name__}: {error}).",
            "Check it with onnx.checker, or export the model again.",
        ) from error


def _append_outputs(prepared: _Prepared, layers: Mapping[str, ir.Value]) -> tuple[str, tuple[TargetLayer, ...]]:
    """Appends class selection, backward part and the new graph outputs; the name of the logits, and the layers."""
    graph, head, dtype = prepared.model.graph, prepared.head, prepared.head.logits.dtype
    assert dtype is not None
    op = OpBuilder(graph, dtype)
    logits = flat_logits(op, head)
    _, class_index_out, cotangent = append_class_selection(op, logits)
    gradients = append_backward(op, logits, cotangent, layers)
    if logits not in graph.outputs:
        graph.outputs.append(logits)
    graph.outputs.append(class_index_out)
    described = []
    source_names = {name: value.name or "" for name, value in layers.items()}
    for name, value in layers.items():
        layout = prepared.finder.layout(value)
        pair = []
        for kind, item, batch in (("activations", value, "N"), ("gradients", gradients[name], "M")):
            upright = item if layout == "NCHW" else op("Transpose", item, perm=_TO_NCHW)
            upright.type = value.type
            pair.append(_named_output(op, upright, f"{kind}/{name}", batch, _upright_shape(value, layout)))
        described.append(TargetLayer(name, source_names[name], _upright_shape(value, layout), layout, *pair))
    RemoveUnusedNodesPass()(prepared.model)
    return logits.name or "", tuple(described)


def _named_output(op: OpBuilder, value: ir.Value, name: str, batch: str, shape: tuple[int, int, int]) -> str:
    """Makes ``value`` a graph output called ``name``; a value that is an output already gets a second name."""
    if value in op.graph.outputs:
        copy = op.identity(value)
        copy.type = value.type
        value = copy
    value.name, value.shape = name, ir.Shape([batch, *shape])
    op.graph.outputs.append(value)
    return name


def _upright_shape(value: ir.Value, layout: str) -> tuple[int, int, int]:
    """(C, h, w)."""
    shape = nominal_shape(value)
    return (shape[1], shape[2], shape[3]) if layout == "NCHW" else (shape[3], shape[1], shape[2])


def _three(numbers: Sequence[int]) -> tuple[int, int, int]:
    return numbers[0], numbers[1], numbers[2]


def _nominal_size(
    preprocess: str | Preprocessing | Mapping[str, Any] | None, image_size: tuple[int, int] | None
) -> tuple[int, int] | None:
    """The (H, W) that the caller asks for; a preset's name asks for none."""
    if image_size is not None and not all(isinstance(side, int) and side > 0 for side in image_size):
        raise InvalidInputError(f"image_size is {image_size}.", "Give (H, W), two positive integers.")
    if preprocess is None or isinstance(preprocess, str):
        return image_size
    size = (preprocess if isinstance(preprocess, Preprocessing) else Preprocessing.from_dict(preprocess)).size
    if image_size not in (None, size):
        raise InvalidInputError(
            f"image_size is {image_size}, but the preprocessing makes images of {size}.", "Leave image_size out."
        )
    return size


def _preprocessing(
    given: str | Preprocessing | Mapping[str, Any] | None, input_shape: tuple[int, int, int]
) -> Preprocessing | None:
    """The Preprocessing that was asked for in one of its three forms."""
    if given is None:
        return None
    if input_shape[0] != 3:
        raise InvalidInputError(
            f"The model takes images of {input_shape[0]} channels; preprocessing makes three.",
            "Leave preprocess out, and explain tensors.",
        )
    if isinstance(given, str):
        return Preprocessing.preset(given, input_shape[1:])
    return given if isinstance(given, Preprocessing) else Preprocessing.from_dict(given)


def _check_class_names(names: Sequence[str] | None, num_classes: int) -> None:
    if names is not None and len(names) != num_classes:
        raise InvalidInputError(
            f"{len(names)} class names for a model of {num_classes} classes.",
            "Give one name a class, in the order of the logits.",
        )


def _write(model: ir.Model, destination: Path) -> None:
    """Writes to a file beside ``destination`` and renames it: an interrupted export leaves no half bundle."""
    temporary = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=destination.parent, prefix=destination.name, suffix=".part")
        os.close(handle)
        temporary = Path(name)
        ir.save(model, temporary)
        temporary.chmod(0o644)
        temporary.replace(destination)
    except OSError as error:
        raise InvalidInputError(f"Cannot write {destination}: {error.strerror or error}.", "Check the path.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
