"""``camrt export``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from camrt.cli._console import JsonOption, parse_names, parse_size, print_fields, print_json, print_table
from camrt.errors import InvalidInputError

if TYPE_CHECKING:
    from camrt.bundle import SaliencyOutput
    from camrt.preprocess import Preprocessing


class Emit(StrEnum):
    """What the graph computes last."""

    GRADIENTS = "gradients"
    MAP = "map"


class ExportPrecision(StrEnum):
    """What the graph computes in."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


def export(
    model: Annotated[Path, typer.Argument(help="An ONNX classifier.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="BUNDLE", help="The bundle to write.", show_default=False)
    ],
    layers: Annotated[
        str, typer.Option(help="Target layers separated by commas (see `camrt layers`), or auto.")
    ] = "auto",
    preprocess: Annotated[
        str | None,
        typer.Option(help="How images become inputs: a preset (imagenet, unit, ...) or a JSON file of its fields."),
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option(help="Class names: a text file, one a line, or a JSON file with a list.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Input size, 224 or 224x320 (height x width), where the model takes any.")
    ] = None,
    logits: Annotated[str | None, typer.Option(help="The class output, where the model has several outputs.")] = None,
    emit: Annotated[
        Emit, typer.Option(help="map: the graph also computes the saliency map, for runtimes without camrt's kernels.")
    ] = Emit.GRADIENTS,
    base: Annotated[str | None, typer.Option(help="Base method of that map.", show_default="gradcam++")] = None,
    fusion: Annotated[str | None, typer.Option(help="Fusion of that map.", show_default="product")] = None,
    order: Annotated[str | None, typer.Option(help="Order of that map.", show_default="normalize_twice")] = None,
    shapley: Annotated[
        bool, typer.Option("--shapley", help="Add Hessian-vector products, which shapleycam needs.")
    ] = False,
    lowering: Annotated[
        bool, typer.Option(help="Write gradients in the form that is fast in ONNX Runtime, or in their plain form.")
    ] = True,
    precision: Annotated[
        ExportPrecision, typer.Option(help="int8 keeps gradients in float32; see also `camrt check --against`.")
    ] = ExportPrecision.FP32,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Pictures to measure ranges with: needed by int8, useful to fp16."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Rewrite MODEL into a bundle that also returns activations and gradients of the target layers."""
    import camrt
    from camrt.bundle import check_output

    described = [class_names, Path(preprocess) if preprocess and preprocess.endswith(".json") else None]
    check_output(output, [path for path in described if path is not None])
    bundle = camrt.export(
        model,
        output,
        target_layers="auto" if layers == "auto" else parse_names(layers) or [],
        preprocess=_preprocessing(preprocess),
        class_names=None if class_names is None else _read_class_names(class_names),
        image_size=parse_size(size),
        logits=logits,
        emit=emit.value,
        base_method=base,
        fusion=fusion,
        order=order,
        lowering=lowering,
        second_order=shapley,
        precision=precision.value,
        calibration=calibration,
    )
    manifest = bundle.manifest
    bundle_bytes = bundle.path.stat().st_size
    if as_json:
        manifest_fields = json.loads(manifest.to_json())
        print_json({"bundle": str(bundle.path), "bytes": bundle_bytes, "manifest": manifest_fields})
        return
    print_fields(
        (
            ("bundle", str(bundle.path)),
            ("size", f"{bundle_bytes / 1e6:.1f} MB"),
            ("precision", manifest.precision),
            ("classes", str(manifest.num_classes) + ("" if manifest.class_names else ", without names")),
            ("preprocessing", "given" if manifest.preprocessing else "none: the bundle takes tensors, not images"),
            ("map in the graph", _saliency(manifest.saliency)),
        )
    )
    rows = ((layer.name, "x".join(map(str, layer.shape)), layer.value) for layer in manifest.target_layers)
    print_table(("layer", "shape", "value"), rows)


def _saliency(saliency: SaliencyOutput | None) -> str:
    if saliency is None:
        return "none"
    return f"{saliency.output}: {saliency.base_method}, {saliency.fusion}, {saliency.order}"


def _preprocessing(preprocess: str | None) -> str | Preprocessing | None:
    """A preset's name as it is; a JSON file as the Preprocessing that it describes."""
    if preprocess is None or not preprocess.endswith(".json"):
        return preprocess
    from camrt.preprocess import Preprocessing

    fields = _read_json(Path(preprocess))
    if not isinstance(fields, dict):
        raise InvalidInputError(f"{preprocess} holds no JSON object.", 'Write {"size": [224, 224], ...}.')
    return Preprocessing.from_dict(fields)


def _read_class_names(path: Path) -> list[str]:
    if path.suffix.lower() != ".json":
        return [line.strip() for line in _read_text(path).splitlines() if line.strip()]
    names = _read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidInputError(f"{path} holds no JSON list of strings.", 'Write ["cat", "dog", ...].')
    return names


def _read_json(path: Path) -> object:
    text = _read_text(path)
    try:
        fields: object = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"{path} is no JSON ({error}).", "Check the file.") from error
    return fields


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is no UTF-8 text.", "Save it as UTF-8.") from error
    except OSError as error:
        raise InvalidInputError(f"Cannot read {path}: {error.strerror}.", "Check the path.") from error
