"""Native kernels against the same arithmetic in PyTorch and in the NumPy reference, in one run.

    python benchmarks/bench_kernels.py [--repeats 200] [--threads 1 2] [--json results.json]

The contenders take turns in blocks of ten repetitions, so that a busy machine slows all of them; between blocks they
rest until idle threads have stopped spinning. Times are medians; the last column compares the fastest repetitions,
which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from camrt.kernels import get_backend
from camrt.types import FloatArray

# (C, h = w) of the four layers at 224 x 224.
MODELS = {
    "resnet18": [(64, 56), (128, 28), (256, 14), (512, 7)],
    "mobilenet_v3_small": [(16, 56), (24, 28), (48, 14), (576, 7)],
}
OUTPUT_SIZE = (224, 224)
BLOCK = 10
Layers = list[tuple[FloatArray, FloatArray]]


def min_max(maps: torch.Tensor) -> torch.Tensor:
    lowest = maps.amin(dim=(1, 2), keepdim=True)
    return (maps - lowest) / (maps.amax(dim=(1, 2), keepdim=True) - lowest + 1e-7)


def torch_layer_maps(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    maps = []
    for activations, gradients in layers:
        square = gradients * gradients
        total = activations.sum(dim=(2, 3), keepdim=True)
        alpha = square / (2 * square + total * square * gradients + 1e-6)
        weights = (torch.relu(gradients) * alpha).sum(dim=(2, 3), keepdim=True)
        maps.append(min_max(torch.relu((weights * activations).sum(dim=1))))
    return maps


def torch_fuse(maps: list[torch.Tensor]) -> torch.Tensor:
    fused = None
    for layer_map in maps:
        resized = torch.nn.functional.interpolate(min_max(layer_map)[:, None], OUTPUT_SIZE, mode="bilinear")[:, 0]
        normalized = min_max(resized)
        fused = normalized if fused is None else fused * normalized
    assert fused is not None
    return min_max(fused)


def contenders(layers: Layers, threads: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Kernel -> contender -> call."""
    native, reference = get_backend("native", threads), get_backend("reference")
    activations, gradients = [a for a, _ in layers], [g for _, g in layers]
    tensors = [(torch.from_numpy(a), torch.from_numpy(g)) for a, g in layers]
    maps = reference.layer_maps(activations, gradients, "gradcam++")
    map_tensors = [torch.from_numpy(m) for m in maps]

    def both(backend: Any) -> Any:
        return backend.fuse_layers(backend.layer_maps(activations, gradients, "gradcam++"), OUTPUT_SIZE)

    return {
        "layer_maps gradcam++": {
            "native": lambda: native.layer_maps(activations, gradients, "gradcam++"),
            "torch": lambda: torch_layer_maps(tensors),
            "reference": lambda: reference.layer_maps(activations, gradients, "gradcam++"),
        },
        "fuse_layers product": {
            "native": lambda: native.fuse_layers(maps, OUTPUT_SIZE),
            "torch": lambda: torch_fuse(map_tensors),
            "reference": lambda: reference.fuse_layers(maps, OUTPUT_SIZE),
        },
        "both": {
            "native": lambda: both(native),
            "torch": lambda: torch_fuse(torch_layer_maps(tensors)),
            "reference": lambda: both(reference),
        },
    }


def measure_calls(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Median and smallest microseconds of every call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(max(1, repeats // BLOCK)):
        for name, call in calls.items():
            time.sleep(0.005)
            call()
            for _ in range(BLOCK):
                begin = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - begin) * 1e6)
    return {
        "median": {name: statistics.median(values) for name, values in times.items()},
        "fastest": {name: min(values) for name, values in times.items()},
    }


def measure(threads: int, repeats: int) -> list[dict[str, Any]]:
    rows = []
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    for model, shapes in MODELS.items():
        layers: Layers = []
        for channels, size in shapes:
            activations = np.maximum(rng.standard_normal((1, channels, size, size), dtype=np.float32), 0)
            layers.append((activations, rng.standard_normal(activations.shape, dtype=np.float32)))
        expected = torch_fuse(torch_layer_maps([(torch.from_numpy(a), torch.from_numpy(g)) for a, g in layers])).numpy()
        for kernel, calls in contenders(layers, threads).items():
            if kernel == "both":
                np.testing.assert_allclose(calls["native"]()[0], expected, atol=1e-4)
            row = {"model": model, "threads": threads, "kernel": kernel}
            rows.append(row | measure_calls(calls, repeats))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    rows = [row for threads in arguments.threads for row in measure(threads, arguments.repeats)]
    description = get_backend("native").description
    print(f"native: {description}; torch {torch.__version__}; one image; medians of {arguments.repeats}, microseconds")
    columns = ("native", "torch", "reference", "torch / native", "of fastest")
    print(f"{'model':<20}{'threads':>8}  {'kernel':<22}" + "".join(f"{column:>16}" for column in columns))
    for row in rows:
        times, fastest = row["median"], row["fastest"]
        ratios = [times["torch"] / times["native"], fastest["torch"] / fastest["native"]]
        numbers = [times["native"], times["torch"], times["reference"], *ratios]
        cells = "".join(f"{number:>16.1f}" for number in numbers)
        print(f"{row['model']:<20}{row['threads']:>8}  {row['kernel']:<22}{cells}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"native": description, "torch": torch.__version__, "rows": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
