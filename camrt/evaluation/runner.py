"""The loop: chunks of items, every explainer and metric on each, rows into the folder of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from camrt.datasets import DatasetItem, Problem, Sample, to_input
from camrt.datasets.folder import UNREADABLE_IMAGE
from camrt.errors import ImageError
from camrt.evaluation.baselines import baseline
from camrt.evaluation.explainers import ExplainerSpec
from camrt.evaluation.session import EvaluationSession
from camrt.evaluation.store import RunFolder
from camrt.explainer.scoring import probabilities
from camrt.metrics import METRICS
from camrt.types import BoolArray, DoubleArray, FloatArray, IntArray

NO_CLASS = "image without a class"
OUTSIDE_VIEW = "object outside the model's view"


@dataclass(frozen=True, slots=True)
class Batch:
    """Loaded items with the classes that are explained.

    Attributes:
        items: N of them.
        inputs: (N, C, H, W).
        object_masks: (N, H, W) in input pixels, all false where an item has none.
        class_indices: (N,) the explained classes.
        predicted: (N,) the classes of the highest logits.
        probability: (N,) of the explained classes.
    """

    items: Sequence[DatasetItem]
    inputs: FloatArray
    object_masks: BoolArray
    class_indices: IntArray
    predicted: IntArray
    probability: DoubleArray


class Progress(Protocol):
    """Hears how far a run is, in explanations: an image times an explainer."""

    def start(self, done: int, total: int) -> None:
        """Before anything is measured: what an earlier run has left, and what there will be."""
        ...

    def advance(self, explanations: int) -> None:
        """So many more are measured."""
        ...


class NoProgress:
    """Tells nobody."""

    def start(self, done: int, total: int) -> None:
        """Does nothing."""

    def advance(self, explanations: int) -> None:
        """Does nothing."""


def run(session: EvaluationSession, folder: RunFolder, progress: Progress) -> None:
    """Measures every chunk that the folder does not have yet."""
    done = folder.done()
    measured = sum(len(session.chunk(number)) for number in done)
    progress.start(measured * len(session.specs), len(session.items) * len(session.specs))
    for number in range(session.chunks):
        if number in done:
            continue
        items = session.chunk(number)
        batch, problems = load_batch(session, items)
        columns = measure_batch(session, batch, partial(progress.advance, len(items)))
        folder.write(number, columns, problems)


def load_batch(session: EvaluationSession, items: Sequence[DatasetItem]) -> tuple[Batch, list[Problem]]:
    """Loads items and predicts their classes; items that cannot be used become problems."""
    kept: list[DatasetItem] = []
    tensors: list[FloatArray] = []
    masks: list[BoolArray] = []
    problems: list[Problem] = []
    size = session.preprocessing.size
    for item in items:
        if session.config.class_choice == "label" and item.class_index is None:
            problems.append(Problem(NO_CLASS, item.item_id, "left out, since the true class is to be explained"))
            continue
        try:
            sample = item.load()
            tensor, mask = to_input(sample, session.preprocessing)
        except ImageError as error:
            problems.append(Problem(UNREADABLE_IMAGE, item.item_id, str(error)))
            continue
        problems += _mask_problems(item, sample, mask)
        kept.append(item)
        tensors.append(tensor)
        masks.append(np.zeros(size, np.bool_) if mask is None else mask)
    channels = session.explainer.manifest.input_shape[0]
    inputs = np.stack(tensors) if tensors else np.empty((0, channels, *size), np.float32)
    return _with_classes(session, kept, inputs, np.array(masks, np.bool_).reshape(-1, *size)), problems


def _mask_problems(item: DatasetItem, sample: Sample, mask: BoolArray | None) -> list[Problem]:
    if sample.problem is not None:
        return [sample.problem]
    if mask is not None and not mask.any():
        return [Problem(OUTSIDE_VIEW, item.item_id, "nothing of the object is left in the model's input")]
    return []


def _with_classes(
    session: EvaluationSession, items: Sequence[DatasetItem], inputs: FloatArray, masks: BoolArray
) -> Batch:
    if not items:
        nothing = np.empty(0, np.int64)
        return Batch(items, inputs, masks, nothing, nothing, np.empty(0))
    chances = probabilities(session.explainer.predict(inputs), session.explainer.manifest)
    predicted = chances.argmax(axis=1)
    wanted = predicted
    if session.config.class_choice == "label":
        wanted = np.array([item.class_index for item in items], np.int64)
    return Batch(items, inputs, masks, wanted, predicted, chances[np.arange(len(items)), wanted])


def measure_batch(session: EvaluationSession, batch: Batch, advance: Callable[[], None]) -> dict[str, list[Any]]:
    """The columns of store.COLUMNS for every item x explainer x metric of a batch, in this order."""
    shape = len(batch.items), len(session.specs), len(session.metrics)
    scores, degenerate = np.full(shape, np.nan), np.zeros(shape[:2], np.bool_)
    for number, spec in enumerate(session.specs):
        if len(batch.items):
            found, degenerate[:, number] = _measure(session, batch, spec)
            for place, name in enumerate(session.metrics):
                scores[:, number, place] = found[name]
        advance()
    return _columns(session, batch, scores, degenerate)


def _measure(session: EvaluationSession, batch: Batch, spec: ExplainerSpec) -> tuple[dict[str, DoubleArray], BoolArray]:
    """The scores of one explainer, and whether its maps say nothing, (N,)."""
    config = session.config
    needs_masks = any(METRICS[name].needs_object_mask for name in session.metrics)
    options: dict[str, Any] = {
        "metrics": session.metrics,
        "object_masks": batch.object_masks if needs_masks else None,
        "seed": config.seed,
        "target": config.target,
        "batch_size": config.batch_size,
    }
    if spec.is_baseline:
        make = baseline(spec.method)
        maps = make(batch.inputs, batch.class_indices, config.seed)
        scores = session.explainer.evaluate_maps(
            batch.inputs,
            maps,
            batch.class_indices,
            lambda inputs, class_indices: make(inputs, class_indices, config.seed),
            **options,
        )
        return scores, np.ptp(maps, axis=(1, 2)) == 0
    explanations = session.explainer.explain(
        batch.inputs,
        batch.class_indices,
        method=spec.method,
        base_method=spec.base_method or spec.method,
        fusion=spec.fusion or "product",
        target_layers=spec.layers,
        perturbation=session.perturbation,
    )
    empty = [bool(item.degenerate) or float(np.ptp(item.saliency_map)) == 0 for item in explanations]
    scores = session.explainer.evaluate(batch.inputs, explanations, perturbation=session.perturbation, **options)
    return scores, np.array(empty, np.bool_)


def _columns(
    session: EvaluationSession, batch: Batch, scores: DoubleArray, degenerate: BoolArray
) -> dict[str, list[Any]]:
    items, explainers, metrics = len(batch.items), len(session.specs), len(session.metrics)
    rows_an_item = explainers * metrics

    def an_item(values: Sequence[Any]) -> list[Any]:
        return [value for value in values for _ in range(rows_an_item)]

    def an_explainer(values: Sequence[Any]) -> list[Any]:
        return [value for value in values for _ in range(metrics)] * items

    specs = session.specs
    labels = [item.class_index for item in batch.items]
    correct = [None if label is None else label == guess for label, guess in zip(labels, batch.predicted, strict=True)]
    rows = items * rows_an_item
    return {
        "item": an_item([item.item_id for item in batch.items]),
        "group": an_item([item.group for item in batch.items]),
        "method": an_explainer([spec.method for spec in specs]),
        "base_method": an_explainer([spec.base_method for spec in specs]),
        "fusion": an_explainer([spec.fusion for spec in specs]),
        "layers": an_explainer([",".join(spec.layers) or None for spec in specs]),
        "metric": list(session.metrics) * (items * explainers),
        "score": scores.ravel().tolist(),
        "class_index": an_item(batch.class_indices.tolist()),
        "predicted": an_item(batch.predicted.tolist()),
        "probability": an_item(batch.probability.tolist()),
        "correct": an_item([None if value is None else bool(value) for value in correct]),
        "degenerate": np.repeat(degenerate.ravel(), metrics).tolist(),
        "seed": [session.config.seed] * rows,
        "bundle": [session.bundle_sha256] * rows,
    }
