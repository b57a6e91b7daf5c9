"""Latency of explanations beside plain predictions, where the time goes, and how it grows."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from camrt.bench.report import Row, Table
from camrt.bench.turns import Contender, Measured, noise_notes, take_turns
from camrt.bench.workload import Workload
from camrt.cam import REFINECAM, check_method
from camrt.errors import InvalidInputError
from camrt.explainer import Explainer
from camrt.runtime import multiply_adds
from camrt.types import FloatArray

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What varies.

    Attributes:
        providers, threads: every pair opens an explainer of its own.
        methods: CAM methods, batch 1 upwards.
        batches: images a call.
        classes: explained classes of one image, beside 1.
        layers: numbers of target layers, coarse to fine, beside all of them.
        rounds, warmup: of every line.
    """

    providers: Sequence[str] = ("cpu",)
    threads: Sequence[int] = (1,)
    methods: Sequence[str] = (REFINECAM,)
    batches: Sequence[int] = (1,)
    classes: Sequence[int] = ()
    layers: Sequence[int] = ()
    rounds: int = 30
    warmup: int = 3

    def check(self) -> None:
        """Refuses what can be told without a bundle, before anything is measured.

        Raises:
            InvalidInputError: no provider, no threads or no method.
            MethodNotFoundError: an unknown method.
        """
        for name, values in (("provider", self.providers), ("threads", self.threads), ("method", self.methods)):
            if not values:
                raise InvalidInputError(f"--{name} names nothing.", "Name one, or leave it out.")
        for method in self.methods:
            check_method(method)


def bench_latency(
    work: Workload, sweep: Sweep, limits: dict[str, float], progress: Progress
) -> tuple[list[Table], list[str]]:
    """Tables of latency, of stages and of shares of the machine's limits, and notes.

    Args:
        work: bundle and image.
        sweep: what varies.
        limits: from machine_limits with the most threads of the sweep; {} leaves the shares out.
        progress: told what is being timed.

    Raises:
        InvalidInputError: more threads than cores, more classes or layers than there are, or as in Sweep.check.
        BackendUnavailableError: a provider cannot be used here.
    """
    sweep.check()
    latencies, stages, shares, notes = [], [], [], []
    for provider in sweep.providers:
        for threads in sweep.threads:
            progress(f"{provider}, {threads} threads")
            with work.explainer(provider, threads) as explainer:
                measured = take_turns(
                    list(_contenders(work, explainer, provider, threads, sweep)), sweep.rounds, sweep.warmup
                )
                if explainer.preprocessing is None:
                    notes.append("No stages: the bundle does not say how images become tensors; try --preprocess.")
                else:
                    stages += _stages(work, explainer, {"provider": provider, "threads": threads}, sweep.rounds)
            latencies += measured
            notes += [f"{provider}, {threads} threads: {note}" for note in noise_notes(measured)]
            if limits and provider == "cpu" and threads == max(sweep.threads):
                shares = _shares(work, explainer, measured, limits)
    tables = [
        Table(
            "Latency",
            [line.to_row() for line in latencies],
            "the prediction of as many images",
            ("batch", "classes", "layers"),
        ),
        Table("Stages of one explanation, milliseconds", stages),
        Table("Share of the machine's limits", shares),
    ]
    return [table for table in tables if table.rows], notes


def _contenders(work: Workload, explainer: Explainer, provider: str, threads: int, sweep: Sweep) -> Iterator[Contender]:
    """Predictions of every batch first, then the explanations that are compared with them."""
    common: dict[str, str | int] = {"provider": provider, "threads": threads}
    names = explainer.manifest.layer_names
    batches = [1, *(batch for batch in sorted(set(sweep.batches)) if batch != 1)]
    tensors = {batch: work.inputs(explainer, batch) for batch in batches}

    def line(method: str, batch: int, classes: int, layers: int) -> Contender:
        labels: dict[str, str | int] = {
            **common,
            "method": method,
            "batch": batch,
            "classes": classes,
            "layers": layers,
        }
        place, tensor = batches.index(batch), tensors[batch]
        if method == "prediction":
            return Contender(labels, lambda: explainer.predict(tensor), batch, relative_to=place)
        ranks = None if classes == 1 else -np.arange(1, classes + 1)
        chosen = list(names[:layers])
        return Contender(
            labels,
            lambda: explainer.explain(tensor, ranks, method, target_layers=chosen),
            batch,
            relative_to=place,
        )

    for what, numbers, most in (
        ("layers", sweep.layers, len(names)),
        ("classes", sweep.classes, explainer.manifest.num_classes),
    ):
        for number in numbers:
            if not 1 <= number <= most:
                raise InvalidInputError(f"{number} {what} of {most}.", f"Give 1 to {most}.")
    yield from (line("prediction", batch, 1, 0) for batch in batches)
    for method in sweep.methods:
        layers = len(names) if method == REFINECAM else 1
        yield from (line(method, batch, 1, layers) for batch in batches)
        yield from (line(method, 1, number, layers) for number in sorted(set(sweep.classes)) if number != 1)
        if method == REFINECAM:
            yield from (line(method, 1, 1, number) for number in sorted(set(sweep.layers)) if number != layers)


def _stages(work: Workload, explainer: Explainer, labels: dict[str, str | int], rounds: int) -> list[Row]:
    """Medians of the stages of explain_images on a JPEG file; the forward part is what a prediction takes."""
    jpeg, tensor = work.jpeg(), work.inputs(explainer, 1)
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        forward = _seconds(lambda: explainer.predict(tensor))
        explanation = explainer.explain_images(jpeg, output_size="input")[0]
        encode = _seconds(partial(_png, explanation.saliency_map))
        timings = explanation.timings
        found = {
            "decode": timings["decode"],
            "preprocess": timings["preprocess"],
            "forward": forward,
            "backward": max(0.0, timings["inference"] - forward),
            "kernels": timings["kernels"],
            "encode": encode,
        }
        for name, value in found.items():
            seconds.setdefault(name, []).append(value)
    return [{**labels, **{name: 1e3 * statistics.median(values) for name, values in seconds.items()}}]


def _png(saliency_map: FloatArray) -> bytes:
    """A map as a grayscale PNG file."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.rint(255 * saliency_map).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _shares(work: Workload, explainer: Explainer, measured: Sequence[Measured], limits: dict[str, float]) -> list[Row]:
    """Arithmetic of prediction and RefineCAM against the GEMM peak, at every batch."""
    manifest = explainer.manifest
    terms = {"prediction": multiply_adds(work.bundle, ()), REFINECAM: multiply_adds(work.bundle, manifest.layer_names)}
    rows: list[Row] = []
    for line in measured:
        method, batch = str(line.labels["method"]), int(line.labels["batch"])
        whole = line.labels["layers"] in (0, len(manifest.layer_names)) and line.labels["classes"] == 1
        if method in terms and whole:
            gflops = 2e-9 * terms[method] * batch / line.median
            row: Row = {"method": method, "batch": batch, "gflop_per_image": 2e-9 * terms[method], "gflops": gflops}
            rows.append({**row, "share_of_gemm_peak": gflops / limits["gemm_gflops"]})
    return rows
