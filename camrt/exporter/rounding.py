"""Bundles of a lower precision, made from an export in float32."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from camrt.bundle import MANIFEST_KEY, Bundle, Manifest, Precision, check_output
from camrt.errors import InvalidInputError, UnsupportedModelError
from camrt.exporter.calibration import Calibration, as_fed, calibration_inputs, largest_values, quantized_file
from camrt.exporter.loading import load_model
from camrt.exporter.precision import check_can_be_halved, to_half
from camrt.exporter.source_files import source_sha256
from camrt.exporter.writing import write_model


class Export(Protocol):
    """Exports a source model to a bundle, in float32; ``layers`` in place of the target layers that were asked for."""

    def __call__(self, source: Path, destination: Path, layers: Sequence[str] = ...) -> Bundle:
        """The bundle."""
        ...


def half_bundle(
    bundle_path: str | os.PathLike[str], destination: str | os.PathLike[str], calibration: Calibration = None
) -> Bundle:
    """A float32 bundle in half precision, see camrt.exporter.precision.

    Args:
        bundle_path: the float32 bundle.
        destination: where the new one is written.
        calibration: a folder of pictures or an array (N, C, H, W) that show how large numbers become; None takes
            random images.

    Raises:
        InvalidInputError: the bundle is of another precision, the calibration cannot be used, or ``destination`` is the
            bundle itself.
        UnsupportedModelError: the graph cannot be rounded.
    """
    check_output(Path(destination), [Path(bundle_path)])
    bundle = Bundle.open(bundle_path)
    manifest = bundle.manifest
    if manifest.precision != "fp32":
        raise InvalidInputError(f"{bundle_path} is {manifest.precision} already.", "Give the fp32 bundle.")
    images = calibration_inputs(calibration, "fp16", manifest.input_shape, manifest.preprocessing)
    model = load_model(bundle.path)
    check_can_be_halved(model.graph, manifest)
    to_half(model, manifest, largest_values(model, manifest, images))
    return _write(model, dataclasses.replace(manifest, precision="fp16"), Path(destination))


def export_rounded(
    export: Export, source: Path, destination: Path, precision: Precision, calibration: Calibration
) -> Bundle:
    """Exports at a lower precision.

    fp16 rounds the finished graph. int8 quantises the source model first, so that its backward part differentiates what
    is computed: straight through the roundings, in float32, see camrt.exporter.vjp.quantize.

    Args:
        export: makes a float32 bundle.
        source: the source model.
        destination: where the bundle is written.
        precision: "fp16" or "int8".
        calibration: see camrt.exporter.calibration.calibration_inputs.
    """
    if precision not in ("fp16", "int8"):
        raise InvalidInputError(f"precision is {precision!r}.", "Choose fp32, fp16 or int8.")
    with tempfile.TemporaryDirectory() as folder:
        plain = export(source, Path(folder) / "fp32.onnx")
        if plain.manifest.precision != "fp32":
            raise UnsupportedModelError(
                f"{source} computes in {plain.manifest.precision}; {precision} is made from float32.",
                "Leave precision out.",
            )
        if precision == "fp16":
            return half_bundle(plain.path, destination, calibration)
        manifest = plain.manifest
        images = calibration_inputs(calibration, precision, manifest.input_shape, manifest.preprocessing)
        current = Path(folder) / source.name
        ir.save(load_model(source), current)
        with quantized_file(current, manifest.input_name, as_fed(images, manifest.input_layout)) as quantized:
            rounded = export(quantized, Path(folder) / "int8.onnx", manifest.layer_names)
        described = dataclasses.replace(
            rounded.manifest, precision=precision, source_name=source.name, source_sha256=source_sha256(source)
        )
        return _write(ir.load(rounded.path), described, destination)


def _write(model: ir.Model, manifest: Manifest, destination: Path) -> Bundle:
    model.metadata_props[MANIFEST_KEY] = manifest.to_json()
    write_model(model, destination)
    return Bundle(destination, manifest)
