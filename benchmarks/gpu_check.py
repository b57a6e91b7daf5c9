"""Proves the CUDA kernels on a real GPU: ``python -m benchmarks.gpu_check --json benchmarks/results/gpu-NAME.json``.

Agreement of every kernel with the reference (the backend tests), compute-sanitizer over small cases, and bench_gpu.
Needs no network. Exit code 0: all passed; 1: something failed; 2: there is no usable GPU. A step whose tool is missing
is named in the report and counts as not done, never as passed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from camrt.errors import BackendUnavailableError
from camrt.kernels import KernelBackend, get_backend
from camrt.kernels.backend import CHANNEL_RULES, FUSIONS, ORDERS, PIXEL_RULES

ROOT = Path(__file__).parent.parent
AGREEMENT = ("test_backends_agree.py", "test_perturbation.py", "test_imputation.py")
PACKAGES = ("camrt", "cupy-cuda13x", "cupy-cuda12x", "numba", "numba-cuda", "torch", "onnxruntime-gpu", "numpy")
SANITIZERS = ("memcheck", "racecheck", "synccheck")
NO_GPU = 2
TIMEOUT = 1800


def run_small_cases(backend: KernelBackend) -> int:
    """Every kernel on small arrays, compared with the reference; how many comparisons were made."""
    rng, reference, checked = np.random.default_rng(0), get_backend("reference"), 0

    def same(result: Any, expected: Any, tolerance: float = 1e-5) -> None:
        nonlocal checked
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)
        checked += 1

    for shape in ((2, 5, 7, 9), (1, 70, 3, 3), (1, 2, 40, 33)):
        activations = np.maximum(rng.standard_normal(shape, dtype=np.float32), 0)
        gradients = rng.standard_normal(shape, dtype=np.float32)
        for rule in CHANNEL_RULES + PIXEL_RULES:
            same(backend.layer_map(activations, gradients, rule), reference.layer_map(activations, gradients, rule))
        weights = backend.channel_weights(activations, gradients, "gradcam++")
        same(weights, reference.channel_weights(activations, gradients, "gradcam++"))
        same(backend.weighted_sum(activations, weights), reference.weighted_sum(activations, weights))
        pixelwise = backend.pixel_weights(activations, gradients, "layercam")
        same(backend.weighted_sum(activations, pixelwise), reference.weighted_sum(activations, pixelwise))
    maps = [rng.random((2, side, side + 1), dtype=np.float32) for side in (3, 8, 1)]
    for fusion in FUSIONS:
        for order in ORDERS:
            result = backend.fuse_layers(maps, (19, 37), fusion, order)
            same(result[0], reference.fuse_layers(maps, (19, 37), fusion, order)[0])
    same(backend.normalize(maps[1]), reference.normalize(maps[1]))
    same(backend.resize(maps[1], (33, 5)), reference.resize(maps[1], (33, 5)))
    matrix = np.float32([[0.3, 0.1, 1], [-0.1, 0.2, 2]])
    same(backend.warp_affine(maps[1], matrix, (20, 21)), reference.warp_affine(maps[1], matrix, (20, 21)))
    images, saliency = rng.standard_normal((2, 3, 13, 11), dtype=np.float32), rng.random((2, 13, 11), dtype=np.float32)
    noise = rng.standard_normal((3, 13, 11), dtype=np.float32)
    same(backend.keep_masks(saliency, [0.2, 0.7]), reference.keep_masks(saliency, [0.2, 0.7]), 0)
    batch = backend.perturbation_batch(images, saliency, [0.2, 0.7], noise)
    same(batch, reference.perturbation_batch(images, saliency, [0.2, 0.7], noise), 1e-3)
    same(backend.masked_images(images, saliency), reference.masked_images(images, saliency))
    same(backend.pearson(saliency, saliency[::-1]), reference.pearson(saliency, saliency[::-1]))
    same(backend.mean_absolute(saliency), reference.mean_absolute(saliency))
    return checked


def check_agreement() -> dict[str, Any]:
    """The tests that compare backends, for the one on the GPU."""
    missing = [name for name in ("pytest", "pytest_timeout", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        return {"done": False, "reason": f"not installed: {', '.join(missing)}"}
    tests = [str(ROOT / "tests" / "kernels" / name) for name in AGREEMENT]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cuda", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    passed = done.returncode == 0 and counts.get("passed", 0) > 0
    return {"done": True, "passed": passed, "counts": counts, "end": done.stdout[-2000:] if not passed else ""}


def check_sanitizer() -> dict[str, Any]:
    """compute-sanitizer's tools over the small cases."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"done": False, "reason": "compute-sanitizer is not installed; it comes with the CUDA toolkit"}
    results: dict[str, Any] = {"done": True, "passed": True, "tools": {}}
    for tool in SANITIZERS:
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu_check"]
        done = subprocess.run(
            [*command, "--small-cases"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT
        )
        results["tools"][tool] = "passed" if done.returncode == 0 else (done.stdout + done.stderr)[-2000:]
        results["passed"] = results["passed"] and done.returncode == 0
    return results


def benchmark() -> dict[str, Any]:
    """bench_gpu in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "bench.json"
        command = [sys.executable, "-m", "benchmarks.bench_gpu", "--json", str(output)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT)
        if done.returncode != 0 or not output.exists():
            return {"done": True, "passed": False, "end": done.stderr[-2000:]}
        return {"done": True, "passed": True, **json.loads(output.read_text())}


def environment(backend: KernelBackend) -> dict[str, Any]:
    """What the figures belong to."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
    program = shutil.which(query[0])
    smi = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() if program else "not found"
    return {
        "device": backend.description,
        "nvidia-smi": smi,
        "python": platform.python_version(),
        "packages": packages,
    }


def small_cases_only() -> int:
    """For compute-sanitizer: without CuPy's memory pool, so that every array has bounds of its own."""
    backend = get_backend("cuda")
    import cupy

    cupy.cuda.set_allocator(None)
    print(f"{run_small_cases(backend)} comparisons on {backend.description}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """All steps, and the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the report goes")
    parser.add_argument("--small-cases", action="store_true", help="only the small cases, for compute-sanitizer")
    options = parser.parse_args(arguments)
    try:
        backend = get_backend("cuda")
    except BackendUnavailableError as error:
        print(f"There is nothing to check here: the cuda kernels need a GPU. {error}", file=sys.stderr)
        return NO_GPU
    if options.small_cases:
        return small_cases_only()
    report: dict[str, Any] = {"environment": environment(backend)}
    for name, step in {"agreement": check_agreement, "sanitizer": check_sanitizer, "benchmark": benchmark}.items():
        report[name] = step()
        outcome = "passed" if report[name].get("passed") else report[name].get("reason", "failed")
        print(f"{name}: {outcome}", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        print(f"written: {options.json}")
    steps = [report[name] for name in ("agreement", "sanitizer", "benchmark")]
    return 1 if any(step["done"] and not step["passed"] for step in steps) or not report["agreement"]["done"] else 0


if __name__ == "__main__":
    sys.exit(main())
