"""Trains the embedded default model on Synthetic Shapes and writes it as an ordinary ONNX classifier.

Run from the repository root: ``python training/train_shapes.py --out DIR``. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from shapes_net import NETWORKS
from torch import Tensor, nn

from camrt.datasets.synthetic_shapes import CLASS_NAMES, REFERENCE_SIZE, SIZE_RANGES, SyntheticShapes

MEAN, STD = 0.5, 0.5
OPSET = 17
RESIZE_PROBABILITY = 0.35
RESIZED_SIDES = (196, 260)
RENDER_CHUNK = 90

CROP = 160

Images = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]


class Rendered(NamedTuple):
    """Rendered items: (n, 224, 224, 3) uint8 images, (n,) classes and (n, 4) boxes of the shapes.

    A box is (first row, row after the last, first column, column after the last).
    """

    images: Images
    labels: Integers
    boxes: Integers


def main() -> None:
    """Renders, trains, exports and measures."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    data = render(options.out, "train", options.images, options.workers)
    started = time.perf_counter()
    network = train(NETWORKS[options.network](len(CLASS_NAMES)), data, options)
    seconds = time.perf_counter() - started
    model_file = options.out / f"{options.network}.onnx"
    export(network, model_file)
    metrics = {
        "model": model_file.name,
        "sha256": hashlib.sha256(model_file.read_bytes()).hexdigest(),
        "bytes": model_file.stat().st_size,
        "parameters": sum(p.numel() for p in network.parameters()),
        "classes": list(CLASS_NAMES),
        "preprocessing": {
            "resize": [REFERENCE_SIZE, REFERENCE_SIZE],
            "resize_mode": "squash",
            "interpolation": "bilinear",
            "color": "RGB",
            "scale": 1 / 255,
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
        },
        "training": {
            "seed": options.seed,
            "images": options.images,
            "crop_epochs": options.crop_epochs,
            "full_epochs": options.full_epochs,
            "batch": options.batch,
            "learning_rate": options.learning_rate,
            "autocast": "bfloat16" if options.bfloat16 else "none",
            "threads": options.threads,
            "torch": torch.__version__,
            "minutes": round(seconds / 60, 1),
        },
        "test": measure(model_file, options.test_images),
    }
    text = json.dumps(metrics, indent=2)
    (options.out / "metrics.json").write_text(text + "\n")
    print(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the model, metrics.json and rendered images"
    )
    parser.add_argument("--network", choices=NETWORKS, default="shapes_cnn", help="of shapes_net.NETWORKS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=14400, help="training images")
    parser.add_argument("--test-images", type=int, default=3600)
    parser.add_argument("--crop-epochs", type=int, default=6, help="epochs on crops around the shape")
    parser.add_argument("--full-epochs", type=int, default=5, help="epochs on whole images, after those on crops")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="peak of the one-cycle schedule")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True, help="train under autocast")
    return parser.parse_args()


def _box(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _render_chunk(split: str, first: int, count: int) -> Rendered:
    data = SyntheticShapes(split, first + count)
    items = [data.item(i) for i in range(first, first + count)]
    return Rendered(
        np.stack([item.image for item in items]),
        np.array([item.class_index for item in items], dtype=np.int64),
        np.array([_box(item.object_mask) for item in items], dtype=np.int64),
    )


def render(folder: Path, split: str, count: int, processes: int) -> Rendered:
    """Renders the first ``count`` items of a split, the images into a memory-mapped file in ``folder``."""
    shape = (count, REFERENCE_SIZE, REFERENCE_SIZE, 3)
    images = np.lib.format.open_memmap(folder / f"{split}.npy", mode="w+", dtype=np.uint8, shape=shape)
    labels = np.empty(count, dtype=np.int64)
    boxes = np.empty((count, 4), dtype=np.int64)
    starts = range(0, count, RENDER_CHUNK)
    counts = [min(RENDER_CHUNK, count - first) for first in starts]
    with ProcessPoolExecutor(processes) as pool:
        chunks = pool.map(_render_chunk, [split] * len(counts), starts, counts)
        for first, chunk in zip(starts, chunks, strict=True):
            images[first : first + RENDER_CHUNK] = chunk.images
            labels[first : first + RENDER_CHUNK] = chunk.labels
            boxes[first : first + RENDER_CHUNK] = chunk.boxes
    return Rendered(images, labels, boxes)


def normalise(images: Images) -> Tensor:
    """(N, H, W, 3) uint8 to the network's (N, 3, H, W) float32 input, stored channels-last."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().mul_(1 / 255).sub_(MEAN).mul_(1 / STD)


def _augmented(data: Rendered, chosen: Integers, side: int, rng: np.random.Generator) -> Tensor:
    """A batch of the chosen images, cropped at random around the shape to ``side`` px.

    Every image is flipped or turned by a multiple of 90 degrees, and its channels get random gains and offsets.
    """
    batch = np.empty((len(chosen), side, side, 3), dtype=np.uint8)
    for k, i in enumerate(chosen):
        top, bottom, left, right = data.boxes[i]
        y = rng.integers(max(0, bottom - side), min(top, REFERENCE_SIZE - side) + 1)
        x = rng.integers(max(0, right - side), min(left, REFERENCE_SIZE - side) + 1)
        crop = data.images[i, y : y + side, x : x + side]
        batch[k] = np.rot90(crop[:: rng.choice((-1, 1))], int(rng.integers(4)))
    gain = torch.from_numpy(rng.uniform(0.8, 1.2, (len(chosen), 3, 1, 1)).astype(np.float32))
    offset = torch.from_numpy(rng.uniform(-0.15, 0.15, (len(chosen), 1, 1, 1)).astype(np.float32))
    return normalise(batch).mul_(gain).add_(offset)


def _epoch(data: Rendered, size: int, cropped: bool, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of augmented batches in random order; the incomplete last batch is left out.

    A third of the full-size batches is resized to another height and width, so that squashed pictures are recognised.
    """
    order = rng.permutation(len(data.images))
    for first in range(0, len(order) - size + 1, size):
        chosen = order[first : first + size]
        x = _augmented(data, chosen, CROP if cropped else REFERENCE_SIZE, rng)
        if not cropped and rng.random() < RESIZE_PROBABILITY:
            height, width = rng.integers(*RESIZED_SIDES, size=2)
            x = nn.functional.interpolate(x, size=(int(height), int(width)), mode="bilinear", antialias=False)
        yield x, torch.from_numpy(data.labels[chosen])


def train(network: nn.Module, data: Rendered, options: argparse.Namespace) -> nn.Module:
    """Trains with AdamW and a one-cycle learning rate; returns the network in evaluation mode.

    The first epochs see crops around the shape, which cost half as much; the last ones see whole images.
    """
    network = network.to(memory_format=torch.channels_last).train()
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=options.learning_rate)
    epochs = options.crop_epochs + options.full_epochs
    steps = epochs * (len(data.images) // options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.learning_rate, total_steps=steps, pct_start=0.2)
    rng = np.random.default_rng(options.seed)
    started = time.perf_counter()
    for epoch in range(epochs):
        loss_sum, correct, seen = 0.0, 0, 0
        for x, target in _epoch(data, options.batch, epoch < options.crop_epochs, rng):
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
                logits = network(x)
            loss = nn.functional.cross_entropy(logits.float(), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            loss_sum += loss.item() * len(target)
            correct += int((logits.argmax(1) == target).sum())
            seen += len(target)
        minutes = (time.perf_counter() - started) / 60
        print(
            f"epoch {epoch + 1} loss {loss_sum / seen:.4f} accuracy {correct / seen:.4f} {minutes:.1f} min", flush=True
        )
    return network.eval()


def export(network: nn.Module, path: Path) -> None:
    """Writes the network as ONNX with inputs ``image`` (N, 3, 224, 224) and outputs ``logits`` (N, 6).

    The TorchScript exporter is used because it names nodes after modules (/stage1/block/Conv) and folds batch
    normalisation into the convolutions.
    """
    torch.onnx.export(
        network.to(memory_format=torch.contiguous_format),
        (torch.zeros(1, 3, REFERENCE_SIZE, REFERENCE_SIZE),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        opset_version=OPSET,
        dynamo=False,
    )


def measure(model_file: Path, count: int) -> dict[str, object]:
    """Accuracy of the exported file on the first ``count`` test items: all, per size range and per class."""
    one_thread = onnxruntime.SessionOptions()
    one_thread.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model_file), one_thread, providers=["CPUExecutionProvider"])
    data = SyntheticShapes("test", count)
    groups: dict[str, list[bool]] = {name: [] for name in ("all", *SIZE_RANGES, *CLASS_NAMES)}
    confusion = np.zeros((len(CLASS_NAMES), len(CLASS_NAMES)), dtype=np.int64)
    for item in data:
        (logits,) = session.run(["logits"], {"image": normalise(item.image[None]).contiguous().numpy()})
        predicted = int(np.argmax(logits))
        confusion[item.class_index, predicted] += 1
        for name in ("all", item.size_range, item.class_name):
            groups[name].append(predicted == item.class_index)
    accuracy = {name: round(sum(hits) / len(hits), 4) for name, hits in groups.items()}
    return {"items": count, "accuracy": accuracy, "confusion": confusion.tolist()}


if __name__ == "__main__":
    main()
