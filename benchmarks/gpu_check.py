"""Proves the CUDA kernels on a real GPU: ``python -m benchmarks.gpu_check --json benchmarks/results/gpu-NAME.json``.

Agreement of every kernel with the reference (the backend tests), compute-sanitizer over small cases, and bench_gpu.
Needs no network. The report lists every step as passed, failed or not done, with the reason, and is complete only where
all passed; the last line says what is still unproven. Exit code 0: nothing failed; 1: something did, the agreement was
not looked at, or with --strict any step was not done; 2: there is no usable GPU.
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
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_outcomes import Outcome, Report, Step
from camrt.errors import BackendUnavailableError
from camrt.kernels import KernelBackend, as_numpy, get_backend
from camrt.kernels.backend import CHANNEL_RULES, FUSIONS, ORDERS, PIXEL_RULES
from camrt.kernels.cuda.backend import CudaBackend

ROOT = Path(__file__).parent.parent
AGREEMENT = ("test_backends_agree.py", "test_perturbation.py", "test_imputation.py")
PACKAGES = ("camrt", "cupy-cuda13x", "cupy-cuda12x", "numba", "numba-cuda", "torch", "onnxruntime-gpu", "numpy")
SANITIZERS = ("memcheck", "racecheck", "synccheck")
UNAVAILABLE = ("ImportError", "ModuleNotFoundError", "BackendUnavailableError")
NO_GPU = 2
TIMEOUT = 1800.0
timeout = TIMEOUT  # of a step, in seconds


def run_small_cases(backend: KernelBackend) -> int:
    """Every kernel on small arrays, compared with the reference; how many comparisons were made."""
    rng, reference, checked = np.random.default_rng(0), get_backend("reference"), 0

    def same(result: Any, expected: Any, tolerance: float = 1e-5) -> None:
        nonlocal checked
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)
        checked += 1

    for shape in ((2, 5, 7, 9), (1, 70, 3, 3), (1, 2, 20, 20), (1, 2, 40, 33), (1, 1, 70, 61)):
        activations = np.maximum(rng.standard_normal(shape, dtype=np.float32), 0)
        gradients = rng.standard_normal(shape, dtype=np.float32)
        for rule in CHANNEL_RULES + PIXEL_RULES:
            same(backend.layer_map(activations, gradients, rule), reference.layer_map(activations, gradients, rule))
        weights = backend.channel_weights(activations, gradients, "gradcam++")
        same(weights, reference.channel_weights(activations, gradients, "gradcam++"))
        same(backend.weighted_sum(activations, weights), reference.weighted_sum(activations, weights))
        pixelwise = backend.pixel_weights(activations, gradients, "layercam")
        same(backend.weighted_sum(activations, pixelwise), reference.weighted_sum(activations, pixelwise))
    if isinstance(backend, CudaBackend):
        halves = [rng.random((2, 70, 9, 8)).astype(np.float16) for _ in "ag"]
        on_device = [backend.device.to_device(array) for array in halves]
        for rule in ("gradcam", "gradcam++", "layercam"):
            expected = reference.layer_map(*(array.astype(np.float32) for array in halves), rule)
            for _ in range(3):  # run, recorded, replayed
                maps = backend.replayed(rule, lambda rule=rule: backend.layer_map(*on_device, rule))
                same(as_numpy(maps), expected)
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


def check_agreement() -> Outcome:
    """The tests that compare backends, for the one on the GPU."""
    missing = [name for name in ("pytest", "pytest_timeout", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        return Outcome("not done", f"not installed: {', '.join(missing)}")
    tests = [str(ROOT / "tests" / "kernels" / name) for name in AGREEMENT]
    # Packages of other versions may warn of what these do not.
    choices = ["-q", "-rs", "-p", "no:cacheprovider", "-W", "default", "-k", "cuda"]
    if importlib.util.find_spec("xdist") is not None:
        choices += ["-n", "auto", "--maxprocesses", "8"]
    done = _run([sys.executable, "-m", "pytest", *choices, *tests])
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    if done.returncode != 0 or counts.get("passed", 0) == 0:
        return Outcome("failed", (done.stdout + done.stderr)[-2000:], counts)
    reasons = "; ".join(re.findall(r"^SKIPPED \[\d+\] (.*)$", done.stdout, re.MULTILINE))
    skipped = {"skipped tests": Outcome("not done", reasons)} if counts.get("skipped") else {}
    return Outcome("passed", "", counts, skipped)


def check_sessions() -> Outcome:
    """gpu_sessions in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "sessions.json"
        done = _run([sys.executable, "-m", "benchmarks.gpu_sessions", "--json", str(output)])
        if done.returncode == NO_GPU:
            return Outcome("not done", (done.stderr.strip().splitlines() or ["no reason was given"])[-1])
        figures = json.loads(output.read_text()) if output.exists() else {}
    if done.returncode != 0 or not figures:
        return Outcome("failed", done.stderr[-2000:], figures)
    reason = figures["fp32"].get("host: not done")
    return Outcome("passed", "", figures, {"copies to the host": Outcome("not done", reason)} if reason else {})


def check_sanitizer(tool: str) -> Outcome:
    """One of compute-sanitizer's tools over the small cases."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return Outcome("not done", "compute-sanitizer is not installed; it comes with the CUDA toolkit")
    cases = [sys.executable, "-m", "benchmarks.gpu_check", "--small-cases"]
    # CUDA's own refusals are left out: libraries ask for what a driver may not have.
    options = ["--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]
    done = _run([program, *options, *cases])
    compared = re.search(r"(\d+) comparisons on", done.stdout)
    if done.returncode != 0 or compared is None:
        found = Counter(re.findall(r"^========= (\S.*)$", done.stdout, re.MULTILINE))
        said = "; ".join(f"{count} x {line}" for line, count in found.most_common(20))
        return Outcome("failed", f"{said} {done.stderr[-1000:]}".strip())
    return Outcome("passed", "", {"comparisons": int(compared[1])})


def benchmark() -> Outcome:
    """bench_gpu in a process of its own; a contender that could not run is a part that was not done, or failed."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "bench.json"
        done = _run([sys.executable, "-m", "benchmarks.bench_gpu", "--json", str(output)])
        figures = json.loads(output.read_text()) if output.exists() else {}
    if done.returncode != 0 or not figures:
        return Outcome("failed", done.stderr[-2000:], figures)
    parts = {
        f"{row['contender']}, batch {row['batch']}": Outcome(
            "not done" if row["skipped"].startswith(UNAVAILABLE) else "failed", row["skipped"]
        )
        for row in figures["refinecam"]
        if row["skipped"]
    }
    return Outcome("passed", "", figures, parts)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A process of its own, its output as text; one that takes too long has failed."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"It took longer than {timeout:g} s.")


BENCHMARK = "benchmark"
STEPS: dict[str, Step] = {
    "agreement": check_agreement,
    "sessions": check_sessions,
    **{tool: partial(check_sanitizer, tool) for tool in SANITIZERS},
    BENCHMARK: benchmark,
}


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


def _tell(report: Report, name: str, outcome: Outcome) -> None:
    report.add(name, outcome)
    print(f"{name}: {outcome.status}{outcome.reason and f': {outcome.reason}'}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """All steps, and the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the report goes")
    parser.add_argument("--strict", action="store_true", help="fail where a step was not done")
    parser.add_argument("--small-cases", action="store_true", help="only the small cases, for compute-sanitizer")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="the most seconds of a step")
    parser.add_argument("--steps", nargs="+", choices=tuple(STEPS), default=tuple(STEPS), help="only these")
    options = parser.parse_args(arguments)
    global timeout
    timeout = options.timeout
    try:
        backend = get_backend("cuda")
    except BackendUnavailableError as error:
        print(f"There is nothing to check here: the cuda kernels need a GPU. {error}", file=sys.stderr)
        return NO_GPU
    if options.small_cases:
        return small_cases_only()
    report = Report(environment(backend), STEPS, options.json)
    # The benchmark has the machine to itself; the others time nothing.
    together = [name for name in options.steps if name != BENCHMARK]
    with ThreadPoolExecutor(len(STEPS)) as pool:
        running = {pool.submit(STEPS[name]): name for name in together}
        for done in as_completed(running):
            _tell(report, running[done], done.result())
    if BENCHMARK in options.steps:
        _tell(report, BENCHMARK, STEPS[BENCHMARK]())
    if options.json:
        print(f"written: {options.json}")
    print(report.verdict())
    return report.exit_code(options.strict, required=("agreement",))


if __name__ == "__main__":
    sys.exit(main())
