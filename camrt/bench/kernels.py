"""The kernels by themselves, on arrays of a bundle's layers: native against reference, and against a memory copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from camrt.bench.environment import pinned
from camrt.bench.latency import Progress
from camrt.bench.report import Row, Table
from camrt.bench.turns import Contender, noise_notes, take_turns
from camrt.bench.workload import Workload
from camrt.kernels import KernelBackend, get_backend
from camrt.kernels.backend import CHANNEL_RULES, PIXEL_RULES, ChannelRule, PixelRule
from camrt.kernels.perturbation import REMOVAL_FRACTIONS
from camrt.types import FloatArray, LayerOutputs

_REFERENCE_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class _Kernel:
    """One call on any backend, the images it works on, and the bytes that it must move at least."""

    name: str
    batch: int
    run: Callable[[KernelBackend], object]
    moved: int


def bench_kernels(
    work: Workload, threads: int, batch: int, rounds: int, limits: dict[str, float], progress: Progress
) -> tuple[list[Table], list[str]]:
    """A table of kernels, and notes. ``gbytes_per_second`` counts what must be read and written, no temporaries.

    Raises:
        InvalidInputError: more threads than cores.
    """
    with work.explainer("cpu", threads) as explainer:
        inputs = work.inputs(explainer, batch)
        outputs = explainer.layer_outputs(inputs, np.full(batch, -1), explainer.manifest.layer_names)
        saliency = np.stack([one.saliency_map for one in explainer.explain(inputs)])
    rows: list[Row] = []
    notes: list[str] = []
    with pinned(threads):
        native, reference = get_backend("native", threads), get_backend("reference")
        for kernel in _kernels(outputs.layers, inputs, saliency):
            progress(kernel.name)
            labels: dict[str, str | int] = {"kernel": kernel.name, "batch": kernel.batch}
            lines = [
                Contender(
                    {**labels, "backend": "native", "threads": threads}, partial(kernel.run, native), kernel.batch
                ),
                Contender(
                    {**labels, "backend": "reference", "threads": 1},
                    partial(kernel.run, reference),
                    kernel.batch,
                    rounds=_REFERENCE_ROUNDS,
                ),
            ]
            measured = take_turns(lines, rounds)
            notes += [f"{kernel.name}: {note}" for note in noise_notes(measured[:1])]
            for line in measured:
                gbytes = 1e-9 * kernel.moved / line.median
                share = {"share_of_copy": gbytes / limits["copy_gbytes"]} if limits else {}
                rows.append({**line.to_row(), "gbytes_per_second": gbytes, **share})
    return [Table("Kernels", rows, "native")], notes


def _kernels(layers: tuple[LayerOutputs, ...], inputs: FloatArray, saliency: FloatArray) -> Iterator[_Kernel]:
    """Layer maps by every rule, the fusion, and the perturbation batch of one image."""
    activations, gradients = [layer.activations for layer in layers], [layer.gradients for layer in layers]
    read = sum(array.nbytes for array in (*activations, *gradients))
    maps = get_backend("native").layer_maps(activations, gradients, "gradcam++")
    map_bytes = sum(one.nbytes for one in maps)
    batch, height, width = len(inputs), int(inputs.shape[2]), int(inputs.shape[3])
    rules: tuple[ChannelRule | PixelRule, ...] = (*CHANNEL_RULES, *PIXEL_RULES)
    for rule in rules:

        def layer_maps(backend: KernelBackend, rule: ChannelRule | PixelRule = rule) -> object:
            return backend.layer_maps(activations, gradients, rule)

        yield _Kernel(f"layer_maps {rule}", batch, layer_maps, read + map_bytes)
    yield _Kernel(
        "fuse_layers product",
        batch,
        lambda backend: backend.fuse_layers(maps, (height, width)),
        map_bytes + saliency.itemsize * len(saliency) * height * width,
    )
    images = 2 * len(REMOVAL_FRACTIONS)
    yield _Kernel(
        "perturbation_batch",
        1,
        lambda backend: backend.perturbation_batch(inputs[:1], saliency[:1]),
        (1 + images) * inputs[:1].nbytes,
    )
