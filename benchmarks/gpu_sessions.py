"""Whole explanations on a GPU against those of the CPU: ``python -m benchmarks.gpu_sessions --json results.json``.

ONNX Runtime's CUDA provider and the cuda kernels explain images by a ResNet-18 with random weights, at fp32 and fp16:
outputs, maps of every method, batches, CUDA graphs, several threads, ARCC, and what one explanation copies to the host.
Exit code 0: as on the CPU; 1: not; 2: this cannot be looked at here, and the last line says why.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_gpu import environment
from camrt.cam import GRADIENT_METHODS, Perturbation
from camrt.errors import BackendUnavailableError
from camrt.explainer import Explainer
from camrt.runtime.engine_options import GRAPHS_VARIABLE
from camrt.runtime.parity import ParityError
from camrt.runtime.session import Session
from camrt.types import FloatArray

SIZE = 224
METHODS = (*GRADIENT_METHODS, "eigencam", "eigengradcam", "finercam", "scorecam", "ablationcam")
LEAST_CORRELATION = {"fp32": 0.999, "fp16": 0.99}
LARGEST_ERROR = 1e-4  # of float32 outputs, relative to their norm; TF32 would give 1e-3
LARGEST_SCORE_ERROR = 0.01
LARGEST_CHANGE = 1e-4  # of a map, by batches, recordings or threads
HOST_COPIES = ("host", "host, recorded")
THREADS = 4
PERTURBATION = Perturbation(channels=16)
UNAVAILABLE = 2

Checks = dict[str, Any]


def correlation(one: FloatArray, other: FloatArray) -> float:
    """Pearson's, of two maps."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def relative_error(found: Any, expected: Any) -> float:
    """|found - expected| / |expected|, Euclidean norms."""
    expected = np.asarray(expected, np.float64)
    return float(np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected))


def outputs(session: Session, expected: Session, images: FloatArray) -> Checks:
    """Relative errors of logits, activations and gradients."""
    classes = np.full(len(images), -1, np.int64)
    layers = expected.manifest.layer_names
    found, wanted = (one.run(images, classes, layers) for one in (session, expected))
    errors = {"logits": relative_error(found.logits, wanted.logits)}
    for one, other in zip(found.layers, wanted.layers, strict=True):
        errors[f"{one.name}: activations"] = relative_error(one.activations, other.activations)
        errors[f"{one.name}: gradients"] = relative_error(one.gradients, other.gradients)
    return errors


def maps(explainer: Explainer, images: FloatArray, **choices: Any) -> list[FloatArray]:
    """The saliency maps."""
    return [one.saliency_map for one in explainer.explain(images, **choices)]


def correlations(gpu: Explainer, cpu: Explainer, images: FloatArray, methods: Sequence[str]) -> Checks:
    """The lowest correlation of the images' fused maps, by method."""
    found = {}
    for method in methods:
        choices = {"base_method": method, "perturbation": PERTURBATION}
        pairs = zip(maps(gpu, images, **choices), maps(cpu, images, **choices), strict=True)
        found[method] = min(correlation(one, other) for one, other in pairs)
    return found


def one_by_one(explainer: Explainer, images: FloatArray) -> list[FloatArray]:
    """The saliency maps of images that are explained one at a time."""
    return [maps(explainer, image[None])[0] for image in images]


def largest_change(found: Sequence[FloatArray], expected: Sequence[FloatArray]) -> float:
    """How much maps differ."""
    return max(float(np.abs(one - other).max()) for one, other in zip(found, expected, strict=True))


def copies_to_the_host(explainer: Explainer, images: FloatArray, folder: Path) -> Checks:
    """What one explanation copies and how often it waits, by PyTorch's profiler, which sees the whole process."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no GPU to profile")
    for _ in range(3):  # until kernels are recorded, where they are
        [explained] = explainer.explain(images)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        explainer.explain(images)
    trace = folder / "trace.json"
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    copied = [event for event in events if event.get("cat") == "gpu_memcpy"]
    sizes = {
        way: [event["args"]["bytes"] for event in copied if way in event["name"]] for way in ("DtoH", "HtoD", "DtoD")
    }
    calls = [event["name"] for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    kernels = [event for event in events if event.get("cat") == "kernel"]
    layer_maps = explained.layer_maps.values()
    return {
        "copies": sizes,
        # The saliency map, a flag a layer, the layer maps, logits, and the class.
        "expected": [
            explained.saliency_map.nbytes,
            len(layer_maps),
            *(one.nbytes for one in layer_maps),
            4 * explainer.manifest.num_classes,
            8,
        ],
        "waits": {name: calls.count(name) for name in sorted({name for name in calls if "ynchronize" in name})},
        "kernels": len(kernels),
        "kernel microseconds": sum(event["dur"] for event in kernels),
    }


def failures(report: Checks) -> list[str]:
    """What is not as on the CPU, or should not have been copied; empty = nothing."""
    found = []
    for precision, least in LEAST_CORRELATION.items():
        checks = report[precision]
        found += [
            f"{precision}: {name} correlates by {value:.4f}"
            for name, value in checks["correlations"].items()
            if not value >= least
        ]
    fp32 = report["fp32"]
    found += [f"{name} is off by {value:.1e}" for name, value in fp32["outputs"].items() if not value <= LARGEST_ERROR]
    for name in ("batch", "classes", "graphs", "threads", "threads, recorded"):
        if not fp32[name] <= LARGEST_CHANGE:
            found.append(f"{name}: maps change by {fp32[name]:.1e}")
    if not fp32["arcc"] <= LARGEST_SCORE_ERROR:
        found.append(f"ARCC is off by {fp32['arcc']:.1e}")
    for name in HOST_COPIES:
        copied = fp32.get(name)
        if copied and (more := Counter(copied["copies"]["DtoH"]) - Counter(copied["expected"])):
            found.append(f"{name}: copies to it of {sorted(more.elements())} bytes")
    return found


def report_of(
    bundles: Mapping[str, Path],
    images: FloatArray,
    open_on_gpu: Callable[[Path], Explainer],
    open_recorded: Callable[[Path], Explainer],
    folder: Path,
) -> Checks:
    """Everything, by precision. Of fp16 only what the check at load says, and the maps."""
    report: Checks = {}
    for precision, path in bundles.items():
        gpu, cpu = open_on_gpu(path), Explainer(path)
        report[precision] = {
            "parity": asdict(gpu.parity) if gpu.parity else None,
            "correlations": correlations(gpu, cpu, images, METHODS if precision == "fp32" else GRADIENT_METHODS),
        }
        if precision == "fp32":
            report[precision] |= details(gpu, cpu, open_recorded(path), images, folder)
    return report


def details(gpu: Explainer, cpu: Explainer, recorded: Explainer, images: FloatArray, folder: Path) -> Checks:
    """Outputs, and whether maps depend on what else is explained."""
    first, classes = images[:1], [0, 3, -1, -2]
    alone = [maps(gpu, first, class_indices=[one])[0] for one in classes]
    together = maps(gpu, first, class_indices=classes)
    many = np.concatenate([images] * 4)
    explained = cpu.explain(images)
    with ThreadPoolExecutor(THREADS) as pool:
        in_threads = list(pool.map(lambda image: maps(gpu, image[None])[0], many))
        in_threads_recorded = list(pool.map(lambda image: maps(recorded, image[None])[0], many))
    checks = {
        "outputs": outputs(gpu._session, cpu._session, images),
        "batch": largest_change(maps(gpu, images), one_by_one(gpu, images)),
        "classes": largest_change(together, alone),
        "graphs": largest_change(one_by_one(recorded, images), one_by_one(gpu, images)),
        "threads": largest_change(in_threads, one_by_one(gpu, many)),
        "threads, recorded": largest_change(in_threads_recorded, one_by_one(gpu, many)),
        "arcc": float(np.abs(gpu.arcc(images, explained) - cpu.arcc(images, explained)).max()),
    }
    try:
        for name, explainer in zip(HOST_COPIES, (gpu, recorded), strict=True):
            checks[name] = copies_to_the_host(explainer, first, folder)
    except (ImportError, RuntimeError, KeyError) as error:
        checks["host: not done"] = f"{type(error).__name__}: {error}"
    return checks


def make_bundles(folder: Path) -> tuple[dict[str, Path], FloatArray]:
    """A ResNet-18 at both precisions, and images that it is well-conditioned for."""
    import camrt
    from tests.models import export_onnx, make_inputs, make_model

    images = make_inputs(3, SIZE, 1)
    source = export_onnx(make_model("resnet18", size=SIZE, images=images), folder / "source.onnx", "torchscript")
    bundles = {"fp32": folder / "fp32.onnx", "fp16": folder / "fp16.onnx"}
    camrt.export(source, bundles["fp32"])
    camrt.export(source, bundles["fp16"], precision="fp16")
    return bundles, images


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)

    def on_gpu(path: Path) -> Explainer:
        return Explainer(path, "cuda", backend="cuda")

    def recorded(path: Path) -> Explainer:
        with environment(**{GRAPHS_VARIABLE: "1"}):
            return on_gpu(path)

    with tempfile.TemporaryDirectory() as folder:
        try:
            bundles, images = make_bundles(Path(folder))
            report = report_of(bundles, images, on_gpu, recorded, Path(folder))
        except ParityError as error:
            print(f"not as on the CPU: {error}", file=sys.stderr)
            return 1
        except (ImportError, BackendUnavailableError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return UNAVAILABLE
    found = failures(report)
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps({"failures": found, **report}, indent=2) + "\n")
    for one in found:
        print(f"not as on the CPU: {one}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
