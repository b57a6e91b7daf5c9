"""RefineCAM in camrt against its peers and against a plain prediction: ``python -m benchmarks.bench_explain``.

One run, the same images, two threads, batch 1, four target layers. First every map is checked against the others: no
contender is timed on different work without the table saying so. Then the contenders take turns, one call each a round,
with a pause before every call so that the idle threads of one library have stopped spinning when the next one starts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import camrt
from benchmarks.peers import TORCHCAM_BASES, Contender, contenders, largest_difference
from camrt.types import FloatArray
from tests import oracles
from tests.models import TestModel, export_onnx, make_inputs, make_model

MODELS = ("resnet18", "resnet50", "mobilenet_v3_small")
GOALS = {"pytorch_grad_cam": 8.0, "pytorch_grad_cam_frozen": 4.0, "torchcam": 1.0}
PACKAGES = ("camrt", "torch", "torchvision", "grad-cam", "torchcam", "onnxruntime", "numpy")
OUTPUT_TOLERANCE = 1e-5
IMAGE_SEED = 101


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one contender."""

    key: str
    label: str
    explains: bool
    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float
    ratio_to_camrt: float
    ratio_to_prediction: float


def measure(lines: Sequence[Contender], rounds: int, warmup: int, pause: float) -> dict[str, list[float]]:
    """Seconds of every call, contenders taking turns; each round starts with another one."""
    seconds: dict[str, list[float]] = {line.key: [] for line in lines}
    for number in range(-warmup, rounds):
        offset = number % len(lines)
        for line in (*lines[offset:], *lines[:offset]):
            time.sleep(pause)
            started = time.perf_counter()
            line.run()
            elapsed = time.perf_counter() - started
            if number >= 0:
                seconds[line.key].append(elapsed)
    return seconds


def summarise(lines: Sequence[Contender], seconds: dict[str, list[float]]) -> list[Timing]:
    """Medians, quartiles and ratios of medians."""
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    timings = []
    for line in lines:
        lower, middle, upper = (1e3 * value for value in statistics.quantiles(seconds[line.key], n=4))
        timings.append(
            Timing(
                line.key,
                line.label,
                line.explains,
                middle,
                lower,
                upper,
                1e3 * min(seconds[line.key]),
                medians[line.key] / medians["camrt"],
                medians[line.key] / medians["onnxruntime"],
            )
        )
    return timings


def check_same_work(
    model: TestModel, lines: Sequence[Contender], explainer: camrt.Explainer, image: FloatArray
) -> dict[str, float]:
    """Largest differences from camrt's output; SystemExit where one is beyond its tolerance.

    pytorch-grad-cam computes the same map for every base. torch-cam leaves out a normalisation and has its own
    Grad-CAM++, so its pipeline is compared through its LayerCAM, in its order of operations; the plain difference is
    reported too.
    """
    outputs = {line.key: line.run() for line in lines}
    differences = {key: largest_difference(outputs[key], outputs["onnxruntime"]) for key in ("torch", "camrt_predict")}
    limits = {key: OUTPUT_TOLERANCE * float(np.abs(outputs["onnxruntime"]).max()) for key in differences}
    for key in ("pytorch_grad_cam", "pytorch_grad_cam_frozen", "pytorch_grad_cam_cut"):
        differences[key], limits[key] = largest_difference(outputs[key], outputs["camrt"]), oracles.TOLERANCE_CEILING
    finest = explainer.manifest.target_layers[-1].shape[1:]
    predicted = int(outputs["onnxruntime"][0].argmax())
    theirs = oracles.torchcam_map(model.module, model.target_layers, image, [predicted], "layercam")[0]
    ours = explainer.explain(image, base_method="layercam", order="resize_once", output_size=finest)[0].saliency_map
    differences["torchcam (layercam, resize_once)"] = largest_difference(ours, theirs)
    limits["torchcam (layercam, resize_once)"] = oracles.TOLERANCE_CEILING
    if failed := {key: value for key, value in differences.items() if value > limits[key]}:
        raise SystemExit(f"{model.name}: outputs differ, so times would not compare: {failed}")
    if "torchcam" in outputs:
        differences["torchcam (as timed)"] = largest_difference(outputs["torchcam"], outputs["camrt"])
    return differences


def kernel_share(explainer: camrt.Explainer, image: FloatArray, base: str, rounds: int) -> float:
    """Median share of camrt's time that its kernels take."""
    shares = []
    for _ in range(rounds):
        stages = explainer.explain(image, base_method=base)[0].timings
        shares.append(stages["kernels"] / sum(stages.values()))
    return statistics.median(shares)


def bench_model(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Exports one model, checks and times everybody on it."""
    image = make_inputs(1, arguments.size, IMAGE_SEED)
    model = make_model(name, 0, arguments.size, images=image)
    source = export_onnx(model, folder / f"{name}.onnx", "torchscript")
    size = (arguments.size, arguments.size)
    bundle = camrt.export(source, folder / f"{name}.bundle.onnx", list(model.target_layers), image_size=size)
    explainer = camrt.Explainer(bundle.path, threads=arguments.threads)
    lines = contenders(model, str(source), explainer, image, arguments.base, arguments.threads)
    differences = check_same_work(model, lines, explainer, image)
    seconds = measure(lines, arguments.rounds, arguments.warmup, arguments.pause_ms / 1e3)
    return {
        "model": name,
        "layers": list(model.target_layers),
        "differences": differences,
        "timings": [asdict(timing) for timing in summarise(lines, seconds)],
        "kernel_share": kernel_share(explainer, image, arguments.base, arguments.rounds),
    }


def print_result(console: Console, result: dict[str, Any]) -> None:
    """One table a model."""
    table = Table(title=f"{result['model']}: {', '.join(result['layers'])}")
    for heading in ("", "median ms", "quartiles", "x camrt", "x prediction", "goal"):
        table.add_column(heading, justify="left" if not heading else "right")
    for timing in result["timings"]:
        goal = GOALS.get(timing["key"])
        met = "" if goal is None else f"{'met' if timing['ratio_to_camrt'] >= goal else 'MISSED'} (>= {goal:g} x)"
        table.add_row(
            timing["label"],
            f"{timing['median']:.1f}",
            f"{timing['lower_quartile']:.1f} to {timing['upper_quartile']:.1f}",
            f"{timing['ratio_to_camrt']:.2f}",
            f"{timing['ratio_to_prediction']:.2f}",
            met,
        )
    console.print(table)
    console.print(f"kernels: {100 * result['kernel_share']:.1f} % of camrt's time (goal: at most 5 %)")
    for key, value in result["differences"].items():
        console.print(f"largest difference, {key}: {value:.1e}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--base", default="gradcam++", choices=oracles.METHODS)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--pause-ms", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser.parse_args(arguments)


def main() -> None:
    """Runs the benchmark."""
    arguments = parse(sys.argv[1:])
    torch.set_num_threads(arguments.threads)
    console = Console(width=None if sys.stdout.isatty() else 150)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            results.append(bench_model(name, arguments, Path(folder)))
            print_result(console, results[-1])
    if arguments.base not in TORCHCAM_BASES:
        console.print(f"torch-cam has no {arguments.base}.")
    if arguments.json is not None:
        report = {
            "machine": {
                "processor": platform.machine(),
                "system": platform.system(),
                "python": platform.python_version(),
            },
            "versions": {package: version(package) for package in PACKAGES},
            "settings": {key: value for key, value in vars(arguments).items() if key not in ("json", "models")},
            "results": results,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
        console.print(f"written: {arguments.json}")


if __name__ == "__main__":
    main()
