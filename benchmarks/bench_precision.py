"""What fp16 and int8 keep of the embedded model's maps, on pictures of its test split: the table in docs/engines.md.

    .venv/bin/python benchmarks/bench_precision.py
    .venv/bin/python benchmarks/bench_precision.py --architecture efficientnet_b0   # fp16 of a random network

The source model is taken out of the embedded bundle. int8 is calibrated with pictures of the validation split. Nothing
is timed: ONNX Runtime has few kernels of halves for the CPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from PIL import Image

import camrt
from camrt.bundle import Bundle
from camrt.datasets.synthetic_shapes import SyntheticShapes
from camrt.evaluation import FidelityReport, map_fidelity
from camrt.explainer import embedded_bundle_path
from camrt.runtime.pruning import PrunableModel


def write_pictures(folder: Path, split: str, count: int) -> Path:
    """``count`` pictures of a split as PNG files."""
    folder.mkdir()
    for index, item in enumerate(SyntheticShapes(split, count)):
        Image.fromarray(item.image).save(folder / f"{index:04}.png")
    return folder


def compare(folder: Path, pictures: int, calibration: int) -> dict[str, FidelityReport]:
    """A report a precision."""
    embedded = Bundle.open(embedded_bundle_path())
    source = folder / embedded.manifest.source_name
    source.write_bytes(PrunableModel(embedded.path).complete((embedded.manifest.logits,)))
    test = write_pictures(folder / "test", "test", pictures)
    validation = write_pictures(folder / "validation", "validation", calibration)
    bundles = {}
    for precision in ("fp32", "fp16", "int8"):
        bundles[precision] = camrt.export(
            source,
            folder / f"{precision}.onnx",
            list(embedded.manifest.layer_names),
            preprocess=embedded.manifest.preprocessing,
            precision=precision,
            calibration=validation,
        )
    return {
        precision: map_fidelity(bundles[precision].path, bundles["fp32"].path, images=test, samples=pictures)
        for precision in ("fp16", "int8")
    }


def compare_random(folder: Path, name: str) -> dict[str, FidelityReport]:
    """fp16 of a test architecture with random weights, 64 px, its three coarsest layers, four random images."""
    from camrt.exporter.rounding import half_bundle
    from tests.models import export_onnx, make_inputs, make_model

    size = 64
    model = make_model(name, size=size, num_classes=10, images=make_inputs(2, size, 3))
    source = export_onnx(model, folder / f"{name}.onnx", "torchscript")
    plain = camrt.export(source, folder / "fp32.onnx", list(model.target_layers[:3]), image_size=(size, size))
    half = half_bundle(plain.path, folder / "fp16.onnx", make_inputs(4, size, 5))
    return {"fp16": map_fidelity(half.path, plain.path, samples=4)}


def markdown(reports: dict[str, FidelityReport]) -> str:
    """Two tables."""
    lines = ["| precision | top-1 agreement | logit error | verdict |", "|---|---|---|---|"]
    for precision, report in reports.items():
        verdict = "passed" if report.passed else "failed"
        lines.append(f"| {precision} | {report.top1_agreement:.1%} | {report.logit_error:.1e} | {verdict} |")
    layers = list(dict.fromkeys(row.layer for report in reports.values() for row in report.rows))
    lines += ["", "| precision, base method | " + " | ".join(layers) + " |", "|---" * (len(layers) + 1) + "|"]
    for precision, report in reports.items():
        for method in dict.fromkeys(row.method for row in report.rows):
            cells = {row.layer: f"{row.mean:.4f} ({row.lowest:.4f})" for row in report.rows if row.method == method}
            lines.append(f"| {precision}, {method} | " + " | ".join(cells[layer] for layer in layers) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=48, help="pictures that are explained")
    parser.add_argument("--calibration", type=int, default=96, help="pictures that int8 is calibrated with")
    parser.add_argument("--json", type=Path, help="also write the reports to this file")
    parser.add_argument("--architecture", help="a random network of tests/models.py in place of the embedded model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.architecture is None:
            reports = compare(Path(folder), arguments.pictures, arguments.calibration)
        else:
            reports = compare_random(Path(folder), arguments.architecture)
    print(markdown(reports))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({name: report.to_dict() for name, report in reports.items()}, indent=2))


if __name__ == "__main__":
    main()
