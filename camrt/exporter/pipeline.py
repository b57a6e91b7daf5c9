"""``export``: from a classifier's ONNX file to a bundle."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
from onnx_ir.passes import InvariantError
from onnx_ir.passes.common import RemoveUnusedNodesPass

from camrt.bundle import MANIFEST_KEY, Bundle, Manifest, Precision, SaliencyOutput, TargetLayer
from camrt.errors import CamrtError, InvalidInputError, InvalidModelError
from camrt.exporter.arguments import check_class_names, checked_emit, checked_preprocessing, nominal_size
from camrt.exporter.backward import append_backward
from camrt.exporter.head import (
    CLASS_INDEX,
    CLASS_INDEX_OUT,
    ClassifierHead,
    append_class_selection,
    find_head,
    find_image_input,
    flat_logits,
    image_layout,
)
from camrt.exporter.layers import LayerCandidate, LayerFinder
from camrt.exporter.linear_head import linear_head_inputs
from camrt.exporter.loading import load_model
from camrt.exporter.map_graph import MapLayer, append_saliency_map
from camrt.exporter.number_formats import source_precision
from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.passes import normalize
from camrt.exporter.second_order import append_second_order
from camrt.exporter.shapes import nominal_shape
from camrt.exporter.source import TorchModule, source_file
from camrt.exporter.source_files import check_destination, source_sha256
from camrt.exporter.writing import write_model
from camrt.preprocess import Preprocessing
from camrt.types import FloatArray

_MALFORMED = (InvariantError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError)


def export(
    model: str | os.PathLike[str] | TorchModule,
    bundle_path: str | os.PathLike[str],
    target_layers: str | Sequence[str] = "auto",
    *,
    preprocess: str | Preprocessing | Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    image_size: tuple[int, int] | None = None,
    logits: str | None = None,
    emit: Literal["gradients", "map"] = "gradients",
    base_method: str | None = None,
    fusion: str | None = None,
    order: str | None = None,
    lowering: bool = True,
    second_order: bool = False,
    precision: Precision = "fp32",
    calibration: str | os.PathLike[str] | FloatArray | None = None,
) -> Bundle:
    """Rewrites a classifier so that one run returns logits, activations of several layers and their gradients.

    Args:
        model: the path of an ONNX classifier, opset 7 or later; or a torch.nn.Module, see camrt.exporter.from_torch.
        bundle_path: where the bundle is written; replaced only when the export has succeeded.
        target_layers: "auto" (the stage ends), or layer names, PyTorch module paths, value names or glob patterns.
        preprocess: how images become input tensors: a preset's name, a Preprocessing or its fields. Without it the
            bundle explains tensors only.
        class_names: K names in the order of the logits.
        image_size: (H, W), for a model that takes any; default the size of ``preprocess``, else 224x224.
        logits: the class output, where the model has several outputs.
        emit: "map" makes the graph compute the RefineCAM saliency map of its target layers too, see
            camrt.exporter.map_graph; "gradients" leaves that to the kernels.
        base_method: of that map, default gradcam++.
        fusion: of that map, default product.
        order: of that map, default normalize_twice.
        lowering: False writes gradients in their plain form, and not in the one that is fast in ONNX Runtime.
        second_order: adds Hessian-vector products, which shapleycam needs, see camrt.exporter.second_order.
        precision: "fp16" (casts in the graph) or "int8" (Q/DQ pairs, gradients in float32), see
            camrt.exporter.rounding.
        calibration: a folder of pictures, or inputs (N, C, H, W), that precision measures ranges with; int8 needs it.

    Returns:
        The bundle.

    Raises:
        InvalidModelError, UnsupportedModelError, UnsupportedOpError: the model cannot be read or rewritten.
        LayerNotFoundError: a target layer does not exist.
        InvalidInputError: arguments that contradict each other or the model, or a ``bundle_path`` that is the source
            model or its external data.
    """
    destination, size = Path(bundle_path), nominal_size(preprocess, image_size)
    saliency = checked_emit(emit, base_method, fusion, order)
    if precision != "fp32":

        def exported(source: Path, destination: Path, layers: str | Sequence[str] = target_layers) -> Bundle:
            return export(
                source,
                destination,
                layers,
                preprocess=preprocess,
                class_names=class_names,
                image_size=image_size,
                logits=logits,
                emit=emit,
                base_method=base_method,
                fusion=fusion,
                order=order,
                lowering=lowering,
                second_order=second_order,
            )

        from camrt.exporter.rounding import export_rounded  # imports the engine

        with source_file(model, size) as source:
            check_destination(destination, source)
            return export_rounded(exported, source, destination, precision, calibration)
    if calibration is not None:
        raise InvalidInputError(
            "Calibration data has no effect at precision 'fp32'.", "Leave it out, or ask for 'int8' or 'fp16'."
        )
    with source_file(model, size) as source, _inconsistent_graphs_refused(source):
        check_destination(destination, source)
        prepared = _prepare(source, size, logits)
        digest = source_sha256(source)
        input_layout = image_layout(prepared.image)
        input_shape = _upright_shape(prepared.image, input_layout)
        preprocessing = checked_preprocessing(preprocess, input_shape)
        check_class_names(class_names, prepared.head.num_classes)
        layers = prepared.finder.select(target_layers)
        outputs = tuple(value.name or "" for value in prepared.model.graph.outputs)
        logits_name, described = _append_outputs(prepared, layers, input_shape[1:], saliency, lowering, second_order)
    manifest = Manifest(
        camrt_version=version("camrt"),
        source_name=source.name,
        source_sha256=digest,
        input_name=prepared.image.name or "",
        input_shape=input_shape,
        input_layout=input_layout,
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
        precision=source_precision(prepared.model.graph),
        saliency=saliency,
    )
    prepared.model.metadata_props[MANIFEST_KEY] = manifest.to_json()
    write_model(prepared.model, destination)
    return Bundle(destination, manifest)


def list_layers(
    model: str | os.PathLike[str] | TorchModule,
    image_size: tuple[int, int] | None = None,
    logits: str | None = None,
    *,
    inside_blocks: bool = False,
) -> list[LayerCandidate]:
    """Every layer that ``auto`` considers, in the order of the network, with what it picks and why.

    Args:
        model: as in ``export``.
        image_size: as in ``export``.
        logits: as in ``export``.
        inside_blocks: adds every other value that can be named as a target layer.
    """
    size = nominal_size(None, image_size)
    with source_file(model, size) as source, _inconsistent_graphs_refused(source):
        return _prepare(source, size, logits).finder.candidates(inside_blocks)


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


def _append_outputs(
    prepared: _Prepared,
    layers: Mapping[str, ir.Value],
    size: tuple[int, int],
    saliency: SaliencyOutput | None,
    lowering: bool,
    second_order: bool,
) -> tuple[str, tuple[TargetLayer, ...]]:
    """Appends class selection, backward part and the new graph outputs; the name of the logits, and the layers."""
    graph, head, dtype = prepared.model.graph, prepared.head, prepared.head.logits.dtype
    assert dtype is not None
    op = OpBuilder(graph, dtype, lowering=lowering)
    logits = flat_logits(op, head)
    _, class_index_out, cotangent = append_class_selection(op, logits)
    heads, gradients = linear_head_inputs(logits), append_backward(op, logits, cotangent, layers)
    second = append_second_order(prepared.model, op, logits, cotangent, head.kind, layers) if second_order else {}
    if logits not in graph.outputs:
        graph.outputs.append(logits)
    graph.outputs.append(class_index_out)
    described, map_layers = [], []
    source_names = {name: value.name or "" for name, value in layers.items()}
    for name, value in layers.items():
        place = prepared.finder.placement(value)
        pair, values = [], []
        kinds = [("activations", value, "N"), ("gradients", gradients[name], "M"), *second.get(name, ())]
        for kind, item, batch in kinds:
            upright = place.upright(op, item)
            upright.type = value.type
            values.append(upright)
            pair.append(_named_output(op, upright, f"{kind}/{name}", batch, place.shape))
        shape, source, prefix = place.shape, source_names[name], place.prefix or None
        described.append(
            TargetLayer(name, source, shape, place.layout, pair[0], pair[1], prefix, value in heads, *pair[2:])
        )
        map_layers.append(MapLayer(values[0], values[1], shape))
    if saliency is not None:
        append_saliency_map(op, map_layers, size, saliency)
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
