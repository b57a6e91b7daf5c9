"""The CUDA kernels and RefineCAM on a GPU: ``python -m benchmarks.bench_gpu --json results.json``.

Kernels: the bytes that a kernel cannot do without (each input read once, each output written once), divided by its
time, against a copy on the same device in the same run. RefineCAM: ResNet-50 with random weights, images and maps on
the host, the predicted class; contenders take turns, times are medians. A line that cannot run here says why.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from camrt.errors import BackendUnavailableError, CamrtError
from camrt.kernels import get_backend
from camrt.kernels.cuda.backend import CudaBackend
from camrt.kernels.cuda.device import Device
from camrt.kernels.perturbation import REMOVAL_FRACTIONS
from camrt.runtime.engine_options import GRAPHS_VARIABLE

# (C, h = w) of ResNet-50's four stages at 224 x 224.
LAYERS = [(2048, 7), (1024, 14), (512, 28), (256, 56)]
SIZE = 224
BATCHES = (1, 32)
MANY_MAPS = 1024
COPY_BYTES = 1 << 28
WARM_UP = 2
FEWEST_ROUNDS, SECONDS_OF_A_BATCH = 5, 10
SECONDS_OF_A_ROW, MOST_CALLS = 0.05, 50
NO_GPU = 2

Timer = Callable[[Callable[[], Any]], float | None]
"""Seconds of one call; None where it cannot be timed so."""


def cuda_timer() -> Timer:
    """Times calls between two events on the current stream, so that the host's part counts only where it is longer."""
    import cupy

    def measure(call: Callable[[], Any]) -> float:
        for _ in range(WARM_UP):
            call()
        return median_time(call, cupy.cuda.get_current_stream())

    return measure


def replay_timer() -> Timer:
    """Times replays of a CUDA graph of the call: what the kernels take, without the Python that starts them.

    None for a call that cannot be recorded, as one that copies from the host.
    """
    import cupy

    def measure(call: Callable[[], Any]) -> float | None:
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            for _ in range(WARM_UP):
                call()
            stream.synchronize()
            stream.begin_capture()
            try:
                kept = call()
            except Exception:  # noqa: BLE001 - whatever CUDA says to a call that cannot be recorded
                kept = None
            try:
                graph = stream.end_capture()
            except cupy.cuda.runtime.CUDARuntimeError:
                return None
            return None if kept is None else median_time(lambda: graph.launch(stream), stream)

    return measure


def median_time(call: Callable[[], Any], stream: Any) -> float:
    """Seconds of one of many calls in a row, the median of five such rows."""

    def row(calls: int) -> float:
        import cupy

        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record(stream)
        for _ in range(calls):
            call()
        end.record(stream)
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(start, end)) / 1000 / calls

    calls = min(max(int(SECONDS_OF_A_ROW / row(1)), 1), MOST_CALLS)
    return statistics.median(row(calls) for _ in range(5))


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
    replay: Timer,
    batches: Sequence[int] = BATCHES,
    layers: Sequence[tuple[int, int]] = LAYERS,
    size: int = SIZE,
    copy_bytes: int = COPY_BYTES,
    many: int = MANY_MAPS,
) -> list[dict[str, Any]]:
    """One row a kernel and batch, timed as Python calls it and as a recording.

    ``share`` is the share of the copy's bytes a second; batch 1 mostly lies in the cache, so its share can exceed 1.
    """
    source, target = device.zeros((copy_bytes,), np.uint8), device.zeros((copy_bytes,), np.uint8)

    def copy_all() -> None:
        target[...] = source

    copy_seconds = timer(copy_all)
    assert copy_seconds
    copied = 2 * copy_bytes / copy_seconds

    def row(kernel: str, batch: int, moved: int, call: Callable[[], Any]) -> dict[str, Any]:
        called, replayed = timer(call), replay(call)
        best = replayed or called
        assert called
        assert best
        return {
            "kernel": kernel,
            "batch": batch,
            "bytes": moved,
            "seconds": called,
            "replay_seconds": replayed,
            "bytes_per_second": moved / best,
            "share": moved / best / copied,
        }

    rows = [{"kernel": "copy", "batch": 0, "bytes": 2 * copy_bytes, "seconds": copy_seconds, "replay_seconds": None}]
    rows[0] |= {"bytes_per_second": copied, "share": 1.0}
    for batch in batches:
        for name, (call, moved) in kernel_calls(backend, device, batch, layers, size).items():
            rows.append(row(name, batch, moved, call))
    # So many maps that the fused pass moves more than launches take.
    maps = [device.to_device(np.random.default_rng(1).random((many, side, side), np.float32)) for _, side in layers]
    moved = sum(one.nbytes for one in maps) + 4 * many * size * size
    rows.append(row("fuse_layers product", many, moved, lambda: backend.fuse_layers(maps, (size, size))))
    return rows


def _explaining(case: Any, precision: str = "fp32", recorded: bool = False) -> Callable[[], Any]:
    explainer = case.explainer(precision, recorded)
    return lambda: explainer.explain(case.images)


def _camrt_passes(case: Any) -> Callable[[], Any]:
    """Only the passes: outputs of every layer left on the device, and a wait."""
    session = case.explainer()._session
    classes = np.full(len(case.images), -1, np.int64)

    def run() -> Any:
        with session.outputs_on_device(case.images, classes, session.manifest.layer_names) as found:
            return found.logits.numpy()

    return run


def _camrt_prediction(case: Any) -> Callable[[], Any]:
    session = case.explainer()._session
    return lambda: session.predict(case.images)


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


def _at_its_fastest(start: Callable[[Any], Callable[[], Any]]) -> Callable[[Any], Callable[[], Any]]:
    """A contender on PyTorch with TF32, which rounds to 10 bits, and channels last."""

    def started(case: Any) -> Callable[[], Any]:
        import torch

        fast = copy.copy(case)
        fast.channels_last = True
        run = start(fast)

        def timed() -> Any:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
            try:
                return run()
            finally:
                torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

        return timed

    return started


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
    "plain prediction, camrt on ONNX Runtime CUDA": _camrt_prediction,
    "camrt's passes alone, ONNX Runtime CUDA": _camrt_passes,
    "camrt RefineCAM, ONNX Runtime CUDA and the cuda kernels": _explaining,
    "the same with CUDA graphs": partial(_explaining, recorded=True),
    "the same of the fp16 bundle, with CUDA graphs": partial(_explaining, precision="fp16", recorded=True),
    "torch passes and camrt's cuda kernels": _torch_and_kernels,
    "pytorch-grad-cam RefineCAM, gradients off and cut": _pytorch_grad_cam,
    "torch-cam RefineCAM, gradients off and cut": _torchcam,
    "plain prediction, torch, TF32 and channels last": _at_its_fastest(_prediction),
    "pytorch-grad-cam RefineCAM, TF32 and channels last": _at_its_fastest(_pytorch_grad_cam),
    "torch-cam RefineCAM, TF32 and channels last": _at_its_fastest(_torchcam),
}


class Case:
    """ResNet-50, its bundles, and images.

    Attributes:
        images: (N, 3, 224, 224).
        target_layers: module paths.
        channels_last: whether PyTorch's module is to be laid out so.
    """

    def __init__(self, folder: Path) -> None:
        from tests.models import make_model

        self._model = make_model("resnet50", size=SIZE)
        self.target_layers = self._model.target_layers
        self.images = np.zeros((0, 3, SIZE, SIZE), np.float32)
        self.channels_last = False
        self._folder = folder
        self._explainers: dict[tuple[str, bool], Any] = {}

    def module(self) -> Any:
        """The network on the GPU, parameters without gradients."""
        import torch

        module = copy.deepcopy(self._model.module).requires_grad_(False).cuda()
        return module.to(memory_format=torch.channels_last) if self.channels_last else module

    @staticmethod
    def start_graph_at(layer: Any) -> None:
        """Makes a layer's output the leaf of the autograd graph."""
        layer.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_(True))

    def explainer(self, precision: str = "fp32", recorded: bool = False) -> Any:
        """On ONNX Runtime's CUDA provider and the cuda kernels; opened at first use."""
        if (precision, recorded) not in self._explainers:
            import camrt

            path = self._bundle(precision)
            with environment(**({GRAPHS_VARIABLE: "1"} if recorded else {})):
                self._explainers[precision, recorded] = camrt.Explainer(path, "cuda", backend="cuda")
        return self._explainers[precision, recorded]

    def _bundle(self, precision: str) -> Path:
        import camrt
        from tests.models import export_onnx

        source, path = self._folder / "source.onnx", self._folder / f"{precision}.onnx"
        if not source.exists():
            export_onnx(self._model, source, "torchscript")
        if not path.exists():
            camrt.export(source, path, precision=precision)
        return path


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Within it, these environment variables are set."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def stages(result: Any) -> dict[str, float]:
    """Seconds of each stage of one call, where the result says."""
    shares = [one.timings for one in result] if isinstance(result, list) else []
    return {name: sum(share[name] for share in shares) for name in shares[0]} if shares else {}


def bench_refinecam(case: Case, batch: int, rounds: int) -> list[dict[str, Any]]:
    """One row a contender: median seconds, or why there is none.

    float32 is float32 but where a row says otherwise, and cuDNN chooses its algorithms by measuring.
    """
    import torch

    from tests.models import make_inputs

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    case.images = make_inputs(batch, SIZE, 1)
    runs, reasons = {}, {}
    for name, start in CONTENDERS.items():
        try:
            runs[name] = start(case)
            for _ in range(WARM_UP):
                runs[name]()
        except (ImportError, CamrtError, RuntimeError, OSError) as error:
            runs.pop(name, None)
            reasons[name] = f"{type(error).__name__}: {error}"
    times: dict[str, list[float]] = {name: [] for name in runs}
    ends = time.monotonic() + SECONDS_OF_A_BATCH
    for done in range(rounds):
        if done >= FEWEST_ROUNDS and time.monotonic() > ends:
            break
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return [
        {
            "contender": name,
            "batch": batch,
            "seconds": statistics.median(times[name]) if name in times else None,
            "rounds": len(times.get(name, ())),
            "stages": stages(runs[name]()) if name in runs else {},
            "skipped": reasons.get(name),
        }
        for name in CONTENDERS
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs both parts; 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=30, help="most rounds of RefineCAM")
    options = parser.parse_args(arguments)
    try:
        backend = get_backend("cuda")
    except BackendUnavailableError as error:
        print(f"The GPU benchmark cannot run here. {error}", file=sys.stderr)
        return NO_GPU
    assert isinstance(backend, CudaBackend)
    report: dict[str, Any] = {"device": backend.description, "kernels": [], "refinecam": []}

    def add(part: str, rows: list[dict[str, Any]]) -> None:
        """What was measured is kept, whatever comes after."""
        report[part] += rows
        if options.json:
            options.json.write_text(json.dumps(report, indent=2) + "\n")

    add("kernels", bench_kernels(backend, backend.device, cuda_timer(), replay_timer()))
    with tempfile.TemporaryDirectory() as folder:
        case = Case(Path(folder))
        for batch in BATCHES:
            add("refinecam", bench_refinecam(case, batch, options.rounds))
    for row in report["kernels"]:
        replayed = "" if row["replay_seconds"] is None else f"{1e6 * row['replay_seconds']:10.1f} us"
        called = f"{1e6 * row['seconds']:10.1f} us"
        print(f"{row['kernel']:45} batch {row['batch']:3} {called} recorded {replayed:13} {100 * row['share']:6.1f} %")
    for row in report["refinecam"]:
        result = row["skipped"] or f"{1e3 * row['seconds']:.2f} ms"
        print(f"{row['contender']:60} batch {row['batch']:3} {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
