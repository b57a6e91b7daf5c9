"""Imputation and ARCC in camrt against pytorch-grad-cam: ``python -m benchmarks.bench_evaluation``.

One run, the same images, maps, masks and threads. Imputation: the 8 masks that ARCC needs of one image, without noise;
the sparse LU of pytorch-grad-cam's NoisyLinearImputer tells the error. ARCC: one image, RefineCAM over four layers; the
scores are compared before anything is timed. The passes are the network runs that ARCC cannot do without: 8 changed
images forward, and one image forward and backward for coherency. Its stages are timed one by one, so that the table of
shares tells where the time goes. Contenders take turns; times are medians, ratios medians over the rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import camrt
from benchmarks.peers import start_graph_at
from camrt.bench.turns import Contender, Measured, take_turns
from camrt.cam import REFINECAM, make_plan
from camrt.datasets import SyntheticShapes
from camrt.errors import BackendUnavailableError
from camrt.kernels import get_backend
from camrt.kernels.perturbation import REMOVAL_FRACTIONS
from camrt.metrics import Measurement, measure
from camrt.runtime.onnxruntime import OnnxRuntimeModel
from camrt.types import FloatArray
from tests.models import TestModel, export_onnx, make_inputs, make_model
from tests.oracles import pytorch_grad_cam  # declares what torchvision lacks, before the packages below need it

from pytorch_grad_cam.metrics.arcc import ARCC  # isort: skip
from pytorch_grad_cam.metrics.road import NoisyLinearImputer  # isort: skip
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # isort: skip

MODELS = ("resnet18", "resnet50")
SIZE = 224
MASKS = 2 * len(REMOVAL_FRACTIONS)
GOALS = {"imputation_ms": 40.0, "imputation_ratio": 40.0, "imputation_error": 1e-3, "arcc_ratio": 20.0, "cost": 1.25}
PACKAGES = ("camrt", "torch", "grad-cam", "onnxruntime", "openvino", "numpy", "scipy")
SCORE_TOLERANCE = 1e-3
PEERS = ("pytorch_grad_cam", "pytorch_grad_cam_frozen")
STAGES = {
    "predictions": "8 changed images, forward",
    "explanation": "masked image, forward and backward",
    "maps": "layer maps and fusion",
    "removal": "masks and 8 imputations",
    "statistics": "masked image, complexity, correlation",
}
OTHER_WAYS = {
    "onnxruntime": "the 8 images, ONNX Runtime on the source model",
    "predictions_by_4": "the 8 images, 4 a run",
    "predictions_by_1": "the 8 images, one a run",
    "openvino": "ARCC, provider openvino",
    "openvino_bf16": "ARCC, provider openvino-bf16",
}


def measure_calls(
    calls: Mapping[str, Callable[[], Any]], rounds: int, slow: Sequence[str], slow_rounds: int
) -> dict[str, Measured]:
    """Every call, in turns, relative to the first one; the slow ones only in the first ``slow_rounds`` rounds."""
    lines = [
        Contender({"name": name}, call, rounds=slow_rounds if name in slow else None) for name, call in calls.items()
    ]
    return {str(line.labels["name"]): line for line in take_turns(lines, rounds, warmup=1)}


def milliseconds(measured: Mapping[str, Measured]) -> dict[str, float]:
    """Medians."""
    return {name: 1e3 * line.median for name, line in measured.items()}


def ratio(line: Measured) -> float:
    """Its time / that of the first contender."""
    if line.ratio is None:
        raise ValueError(f"{dict(line.labels)} was not timed beside a baseline")
    return line.ratio


def picture() -> FloatArray:
    """(1, 3, H, W): an image with edges, gradients and grain, normalised."""
    item = SyntheticShapes("test", 3, SIZE).item(2)
    return np.ascontiguousarray(((item.image / 255 - 0.45) / 0.225).astype(np.float32).transpose(2, 0, 1)[None])


def bench_imputation(name: str, saliency: FloatArray, image: FloatArray, rounds: int) -> dict[str, Any]:
    """One core, the 8 masks of one map (1, H, W)."""
    torch.set_num_threads(1)
    backend = get_backend("native", 1)
    masks = backend.keep_masks(saliency, REMOVAL_FRACTIONS)
    oracle, tensor = NoisyLinearImputer(noise=0.0), torch.from_numpy(image[0])
    kept = [torch.from_numpy(mask.astype(np.float32)) for mask in masks[0] if mask.any()]
    ours = backend.impute(image, np.ascontiguousarray(masks[:, masks[0].any(axis=(1, 2))]))[0]
    theirs = np.stack([oracle(tensor, mask).numpy() for mask in kept])
    calls = {
        "camrt": lambda: backend.perturbation_batch(image, saliency),
        "pytorch_grad_cam": lambda: [oracle(tensor, mask) for mask in kept],
    }
    measured = measure_calls(calls, rounds, ["pytorch_grad_cam"], 3)
    return {
        "map": name,
        "masks": MASKS,
        "masks_that_keep_something": len(kept),
        "milliseconds": milliseconds(measured),
        "ratio": ratio(measured["pytorch_grad_cam"]),
        "error_in_deviations": float((np.abs(ours - theirs).max(axis=(0, 2, 3)) / image[0].std(axis=(1, 2))).max()),
    }


def peer_arcc(
    model: TestModel, image: FloatArray, saliency: FloatArray, class_index: int, frozen: bool
) -> tuple[ARCC, Callable[[], float]]:
    """pytorch-grad-cam's ARCC with RefineCAM as base, and a call that scores the map (1, H, W).

    ``frozen`` is its fastest form: no parameter gradients, the graph cut off below the finest layer by a hook, and
    channels-last memory.
    """
    module = copy.deepcopy(model.module).requires_grad_(not frozen)
    layers = [module.get_submodule(layer) for layer in model.target_layers]
    if frozen:
        module = module.to(memory_format=torch.channels_last)
        start_graph_at(layers[-1])
    metric = ARCC(pytorch_grad_cam.RefineCAM(module, layers, base_method=pytorch_grad_cam.GradCAMPlusPlus))
    targets = [ClassifierOutputTarget(class_index)]
    return metric, lambda: float(metric(torch.from_numpy(image), saliency, targets, module)[0])


def without_noise(metric: ARCC) -> None:
    """Sets the noise of the metric's imputers to 0, so that scores can be compared."""
    for averager in (metric.road.morf_averager, metric.road.lerf_averager):
        make = averager.imputer

        def silent(percentile: int, make: Callable[[int], Any] = make) -> Any:
            perturbed = make(percentile)
            perturbed.perturbation.imputer.noise = 0.0
            return perturbed

        averager.imputer = silent


def quiet_camrt_arcc(explainer: camrt.Explainer, image: FloatArray, saliency: FloatArray, class_index: int) -> float:
    """camrt's ARCC without noise, of the logit."""
    measurement = Measurement(
        image,
        saliency,
        np.array([class_index]),
        lambda inputs: explainer.predict(inputs).astype(np.float64),
        lambda inputs, classes: np.stack([one.saliency_map for one in explainer.explain(inputs, classes)]),
        get_backend("native"),
        noise_scale=0.0,
    )
    return float(measure(("arcc",), measurement)["arcc"][0])


def arcc_stages(
    explainer: camrt.Explainer, image: FloatArray, saliency: FloatArray, index: int, threads: int
) -> dict[str, Callable[[], Any]]:
    """What ``Explainer.arcc`` does, stage by stage; see STAGES."""
    backend, plan = (
        get_backend("native", threads),
        make_plan(explainer.manifest, REFINECAM, "gradcam++", "product", None, "normalize_twice"),
    )
    noise = np.float32(0.01) * np.random.default_rng(0).standard_normal(image.shape[1:], np.float32)
    changed = backend.perturbation_batch(image, saliency, noise=noise)[0]
    masked, classes = backend.masked_images(image, saliency), np.array([index])
    outputs = explainer.layer_outputs(masked, classes, plan.layers)
    return {
        "predictions": lambda: explainer.predict(changed),
        "explanation": lambda: explainer.layer_outputs(masked, classes, plan.layers),
        "maps": lambda: backend.fuse_layers(plan.base.maps(backend, outputs), (SIZE, SIZE), plan.fusion, plan.order),
        "removal": lambda: backend.perturbation_batch(image, saliency, noise=noise),
        "statistics": lambda: (
            backend.masked_images(image, saliency),
            backend.mean_absolute(saliency),
            backend.pearson(saliency, saliency),
        ),
    }


def other_ways(
    explainer: camrt.Explainer, source: Path, bundle: Path, image: FloatArray, threads: int
) -> dict[str, Callable[[], Any]]:
    """The same work on other engines and in other batches; see OTHER_WAYS. Providers that are not here are left out."""
    changed, plain = np.repeat(image, MASKS, axis=0), OnnxRuntimeModel(source, threads)
    feeds = dict.fromkeys(plain.input_names, changed)
    calls: dict[str, Callable[[], Any]] = {
        "onnxruntime": lambda: plain.run(feeds),
        "predictions_by_4": lambda: [explainer.predict(changed[k : k + 4]) for k in range(0, MASKS, 4)],
        "predictions_by_1": lambda: [explainer.predict(changed[k : k + 1]) for k in range(MASKS)],
    }
    for provider in ("openvino", "openvino-bf16"):
        try:
            other = camrt.Explainer(bundle, provider, threads)
        except BackendUnavailableError:
            continue
        explanations = other.explain(image)
        calls[provider.replace("-", "_")] = partial(other.arcc, image, explanations)
    return calls


def bench_arcc(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One image, ``options.threads`` threads."""
    torch.set_num_threads(options.threads)
    image = make_inputs(1, SIZE, 101)
    model = make_model(name, 0, SIZE, images=image)
    source = export_onnx(model, folder / f"{name}.onnx", "torchscript")
    bundle = camrt.export(source, folder / f"{name}.bundle.onnx", list(model.target_layers), image_size=(SIZE, SIZE))
    explainer = camrt.Explainer(bundle.path, threads=options.threads)
    explanations = explainer.explain(image)
    saliency, index = explanations[0].saliency_map[None], explanations[0].class_index
    quiet, quiet_score = peer_arcc(model, image, saliency, index, frozen=True)
    without_noise(quiet)
    ours = quiet_camrt_arcc(explainer, image, saliency, index)
    theirs = quiet_score()
    if abs(ours - theirs) > SCORE_TOLERANCE:
        raise SystemExit(f"{name}: scores differ, so times would not compare: {ours} and {theirs}")
    changed = np.repeat(image, MASKS, axis=0)
    calls: dict[str, Callable[[], Any]] = {
        "camrt": lambda: explainer.arcc(image, explanations),
        "passes": lambda: (explainer.predict(changed), explainer.explain(image, index)),
        "prediction": lambda: explainer.predict(image),
        PEERS[0]: peer_arcc(model, image, saliency, index, frozen=False)[1],
        PEERS[1]: peer_arcc(model, image, saliency, index, frozen=True)[1],
        **arcc_stages(explainer, image, saliency, index, options.threads),
        **other_ways(explainer, source, bundle.path, image, options.threads),
    }
    measured = measure_calls(calls, options.rounds, PEERS, options.peer_rounds)
    shares = {stage: ratio(measured[stage]) for stage in STAGES}
    return {
        "model": name,
        "score": {"camrt": ours, "pytorch_grad_cam": theirs},
        "milliseconds": milliseconds(measured),
        "ratio": {key: ratio(measured[key]) for key in PEERS},
        "ratio_if_only_the_passes_took_time": {
            key: ratio(measured[key]) / (shares["predictions"] + shares["explanation"]) for key in PEERS
        },
        "cost": 1 / ratio(measured["passes"]),
        "shares": {**shares, "rest": 1 - sum(shares.values())},
        "other_ways": {way: ratio(measured[way]) for way in OTHER_WAYS if way in measured},
    }


def example_maps(explainer: camrt.Explainer, image: FloatArray) -> dict[str, FloatArray]:
    """A smooth map of one layer and a refined one."""
    single = explainer.explain(image, method="gradcam++")[0]
    refined = explainer.explain(image)[0]
    return {
        "Grad-CAM++, coarsest layer": single.saliency_map[None],
        "RefineCAM, all layers": refined.saliency_map[None],
    }


def print_results(console: Console, report: dict[str, Any]) -> None:
    """Imputation, ARCC, its stages, and the same work in other ways."""
    table = Table(
        "map", "camrt ms", "pytorch-grad-cam ms", "ratio", "error / deviation", title="8 imputations, one core"
    )
    for row in report["imputation"]:
        times = row["milliseconds"]
        cells = (f"{times['camrt']:.1f}", f"{times['pytorch_grad_cam']:.0f}", f"{row['ratio']:.0f}")
        table.add_row(row["map"], *cells, f"{row['error_in_deviations']:.1e}")
    console.print(table)
    names = ("camrt", "passes", "prediction", "pytorch_grad_cam", "pytorch_grad_cam_frozen")
    table = Table("model", *names, "cost", "x README", "x frozen", title="ARCC of one image, ms")
    for row in report["arcc"]:
        times = [f"{row['milliseconds'][name]:.0f}" for name in names]
        ratios = [f"{row['ratio'][name]:.1f}" for name in ("pytorch_grad_cam", "pytorch_grad_cam_frozen")]
        table.add_row(row["model"], *times, f"{row['cost']:.2f}", *ratios)
    console.print(table)
    models = [row["model"] for row in report["arcc"]]
    for title, told, key in (
        ("stages of ARCC, shares of its time", {**STAGES, "rest": "calls, checks, softmax"}, "shares"),
        ("other ways, time / that of ARCC", OTHER_WAYS, "other_ways"),
    ):
        table = Table("what", *models, title=title)
        for name, words in told.items():
            table.add_row(words, *(f"{row[key][name]:.3f}" if name in row[key] else "-" for row in report["arcc"]))
        console.print(table)
    console.print(f"goals: {GOALS}")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--peer-rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    explainer, image = camrt.Explainer(threads=options.threads), picture()
    maps = example_maps(explainer, image)
    imputation = [bench_imputation(name, saliency, image, options.rounds) for name, saliency in maps.items()]
    with tempfile.TemporaryDirectory() as folder:
        arcc = [bench_arcc(name, options, Path(folder)) for name in options.models]
    report = {
        "machine": {"processor": platform.machine(), "system": platform.system(), "python": platform.python_version()},
        "kernels": get_backend("native", 1).description,
        "versions": {package: version(package) for package in PACKAGES},
        "settings": {"threads": options.threads, "rounds": options.rounds, "peer_rounds": options.peer_rounds},
        "goals": GOALS,
        "imputation": imputation,
        "arcc": arcc,
    }
    print_results(console, report)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        console.print(f"written: {options.json}")


if __name__ == "__main__":
    main()
