"""The CUDA kernels and RefineCAM on a GPU: ``python -m benchmarks.bench_gpu --json results.json``.

Kernels: the bytes that a kernel cannot do without (each input read once, each output written once), divided by its
time, against a copy on the same device in the same run. RefineCAM: ResNet-50 with random weights, images and maps on
the host, the predicted class; contenders take turns, times are medians. A line that cannot run here says why.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from camrt.errors import BackendUnavailableError, CamrtError
from camrt.kernels import get_backend
from camrt.kernels.cuda.backend import CudaBackend
from camrt.kernels.cuda.device import Device
from camrt.kernels.perturbation import REMOVAL_FRACTIONS

# (C, h = w) of ResNet-50's four stages at 224 x 224.
LAYERS = [(2048, 7), (1024, 14), (512, 28), (256, 56)]
SIZE = 224
BATCHES = (1, 32)
COPY_BYTES = 1 << 28
NO_GPU = 2

Timer = Callable[[Callable[[], Any]], float]
"""Seconds of one call."""


def cuda_timer(repeats: int) -> Timer:
    """Times calls between two events on the current stream, so that the host's part counts only where it is longer."""
    import cupy

    def measure(call: Callable[[], Any]) -> float:
        for _ in range(3):
            call()
        seconds = []
        for _ in range(5):
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            for _ in range(repeats):
                call()
            end.record()
            end.synchronize()
            seconds.append(cupy.cuda.get_elapsed_time(start, end) / 1000 / repeats)
        return statistics.median(seconds)

    return measure


def kernel_calls(backend: CudaBackend, device: Device, batch: int, layers: Sequence[tuple[int, int]], size: int) -> Any:
    """Name -> (call, bytes it cannot do without). All arrays lie on the device."""
    rng = np.random.default_rng(0)

    def put(*shape: int) -> Any:
        return device.to_device(rng.random(shape, dtype=np.float32))

    pairs = [(put(batch, c, side, side), put(batch, c, side, side)) for c, side in layers]
    activations, gradients = [a for a, _ in pairs], [g for _, g in pairs]
    read = sum(a.nbytes for a in activations)
    weights = [put(batch, c) for c, _ in layers]
    maps = [put(batch, side, side) for _, side in layers]
    map_bytes = sum(one.nbytes for one in maps)
    images, saliency = put(batch, 3, size, size), put(batch, size, size)
    masks = 2 * len(REMOVAL_FRACTIONS)
    return {
        "channel_weights gradcam++, four layers": (
            lambda: [backend.channel_weights(a, g, "gradcam++") for a, g in pairs],
            2 * read,
        ),
        "weighted_sum, four layers": (
            lambda: [backend.weighted_sum(a, w) for a, w in zip(activations, weights, strict=True)],
            read + map_bytes,
        ),
        "layer_maps gradcam++": (lambda: backend.layer_maps(activations, gradients, "gradcam++"), 2 * read + map_bytes),
        "layer_maps layercam": (lambda: backend.layer_maps(activations, gradients, "layercam"), 2 * read + map_bytes),
        "fuse_layers product": (lambda: backend.fuse_layers(maps, (size, size)), map_bytes + saliency.nbytes),
        "masked_images": (lambda: backend.masked_images(images, saliency), 2 * images.nbytes + saliency.nbytes),
        "keep_masks": (
            lambda: backend.keep_masks(saliency, REMOVAL_FRACTIONS),
            saliency.nbytes + masks * saliency.size,
        ),
        "perturbation_batch": (
            lambda: backend.perturbation_batch(images, saliency),
            images.nbytes * (1 + masks) + saliency.nbytes,
        ),
    }


def bench_kernels(
    backend: CudaBackend,
    device: Device,
    timer: Timer,
    batches: Sequence[int] = BATCHES,
    layers: Sequence[tuple[int, int]] = LAYERS,
    size: int = SIZE,
    copy_bytes: int = COPY_BYTES,
) -> list[dict[str, Any]]:
    """One row a kernel and batch; ``share`` is that of the copy's bytes a second."""
    source, target = device.zeros((copy_bytes,), np.uint8), device.zeros((copy_bytes,), np.uint8)

    def copy_all() -> None:
        target[...] = source

    copied = 2 * copy_bytes / timer(copy_all)
    rows = [
        {"kernel": "copy", "batch": 0, "seconds": 2 * copy_bytes / copied, "bytes_per_second": copied, "share": 1.0}
    ]
    for batch in batches:
        for name, (call, moved) in kernel_calls(backend, device, batch, layers, size).items():
            seconds = timer(call)
            rate = moved / seconds
            rows.append(
                {"kernel": name, "batch": batch, "seconds": seconds, "bytes_per_second": rate, "share": rate / copied}
            )
    return rows


def _camrt(case: Any) -> Callable[[], Any]:
    import camrt

    explainer = camrt.Explainer(case.bundle, "cuda", backend="cuda")
    return lambda: np.stack([one.saliency_map for one in explainer.explain(case.images)])


def _torch_and_kernels(case: Any) -> Callable[[], Any]:
    """PyTorch's passes and camrt's kernels: activations and gradients go over by DLPack."""
    import torch

    backend = get_backend("cuda")
    module, kept = case.module(), {}
    layers = [module.get_submodule(name) for name in case.target_layers]
    case.start_graph_at(layers[-1])
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda _module, _inputs, output, number=number: kept.update({number: output}))

    def run() -> Any:
        logits = module(torch.from_numpy(case.images).cuda())
        activations = [kept[number] for number in range(len(layers))]
        chosen = logits.gather(1, logits.argmax(1, keepdim=True)).sum()
        gradients = torch.autograd.grad(chosen, activations)
        stream = torch.cuda.current_stream().cuda_stream
        with backend.on_stream(stream):
            maps = backend.layer_maps([a.detach() for a in activations], list(gradients), "gradcam++")
            fused, _ = backend.fuse_layers(maps, case.images.shape[2:])
            return fused.get()

    return run


def _pytorch_grad_cam(case: Any) -> Callable[[], Any]:
    import torch

    from tests.oracles import pytorch_grad_cam

    module = case.module()
    layers = [module.get_submodule(name) for name in case.target_layers]
    case.start_graph_at(layers[-1])
    cam = pytorch_grad_cam.RefineCAM(module, layers, base_method=pytorch_grad_cam.GradCAMPlusPlus)
    return lambda: cam(input_tensor=torch.from_numpy(case.images).cuda(), targets=None)


def _torchcam(case: Any) -> Callable[[], Any]:
    import torch

    from tests.oracles import torchcam

    module = case.module()
    case.start_graph_at(module.get_submodule(case.target_layers[-1]))
    cam = torchcam.methods.RefineCAM(module, list(case.target_layers), base_method=torchcam.methods.GradCAMpp)

    def run() -> Any:
        scores = module(torch.from_numpy(case.images).cuda())
        refined = cam(class_idx=scores.argmax(1).tolist(), scores=scores)[0][:, None]
        return torch.nn.functional.interpolate(refined, case.images.shape[2:], mode="bilinear")[:, 0].cpu().numpy()

    return run


def _prediction(case: Any) -> Callable[[], Any]:
    import torch

    module = case.module()

    def run() -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(case.images).cuda()).cpu().numpy()

    return run


CONTENDERS: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "plain prediction, torch": _prediction,
    "camrt RefineCAM, ONNX Runtime CUDA and the cuda kernels": _camrt,
    "torch passes and camrt's cuda kernels": _torch_and_kernels,
    "pytorch-grad-cam RefineCAM, gradients off and cut": _pytorch_grad_cam,
    "torch-cam RefineCAM, gradients off and cut": _torchcam,
}


class Case:
    """ResNet-50, its bundle, and images."""

    def __init__(self, folder: Path, batch: int) -> None:
        from tests.models import make_inputs, make_model

        self._model = make_model("resnet50", size=SIZE)
        self.target_layers = self._model.target_layers
        self.images = make_inputs(batch, SIZE, 1)
        self._folder = folder

    def module(self) -> Any:
        """The network on the GPU, parameters without gradients."""
        return copy.deepcopy(self._model.module).requires_grad_(False).cuda()

    @staticmethod
    def start_graph_at(layer: Any) -> None:
        """Makes a layer's output the leaf of the autograd graph."""
        layer.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_(True))

    @property
    def bundle(self) -> Path:
        """The exported bundle, made at first use."""
        import camrt
        from tests.models import export_onnx

        path = self._folder / "bundle.onnx"
        if not path.exists():
            camrt.export(export_onnx(self._model, self._folder / "source.onnx", "torchscript"), path)
        return path


def bench_refinecam(rounds: int, batches: Sequence[int] = BATCHES) -> list[dict[str, Any]]:
    """One row a contender and batch: median seconds, or why there is none."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for batch in batches:
            case = Case(Path(folder), batch)
            runs, reasons = {}, {}
            for name, start in CONTENDERS.items():
                try:
                    runs[name] = start(case)
                    runs[name]()
                except (ImportError, CamrtError, RuntimeError, OSError) as error:
                    runs.pop(name, None)
                    reasons[name] = f"{type(error).__name__}: {error}"
            times: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(rounds):
                for name, run in runs.items():
                    started = time.perf_counter()
                    run()
                    times[name].append(time.perf_counter() - started)
            for name in CONTENDERS:
                seconds = statistics.median(times[name]) if name in times else None
                rows.append({"contender": name, "batch": batch, "seconds": seconds, "skipped": reasons.get(name)})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs both parts; 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=50, help="calls between two time stamps")
    parser.add_argument("--rounds", type=int, default=30, help="rounds of RefineCAM")
    options = parser.parse_args(arguments)
    try:
        backend = get_backend("cuda")
    except BackendUnavailableError as error:
        print(f"The GPU benchmark cannot run here. {error}", file=sys.stderr)
        return NO_GPU
    assert isinstance(backend, CudaBackend)
    report = {
        "device": backend.description,
        "kernels": bench_kernels(backend, backend.device, cuda_timer(options.repeats)),
        "refinecam": bench_refinecam(options.rounds),
    }
    for row in report["kernels"]:
        print(f"{row['kernel']:45} batch {row['batch']:3} {1e6 * row['seconds']:10.1f} us {100 * row['share']:6.1f} %")
    for row in report["refinecam"]:
        result = row["skipped"] or f"{1e3 * row['seconds']:.2f} ms"
        print(f"{row['contender']:60} batch {row['batch']:3} {result}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
