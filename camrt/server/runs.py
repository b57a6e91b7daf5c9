"""What a worker thread does with a batch. The model and the kernels release the GIL."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from camrt.bundle import MAX_RANK
from camrt.cam import Plan
from camrt.errors import CamrtError, ClassIndexError, InvalidInputError
from camrt.explainer import BatchResult
from camrt.explainer.scoring import probabilities
from camrt.explanation import Explanation
from camrt.server import tracing
from camrt.server.batcher import Item
from camrt.server.models import LoadedModel
from camrt.types import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class ExplainWork:
    """One image to explain.

    Attributes:
        model: from ModelRepository.get.
        tensor: (C, H, W) float32, as the model takes it.
        class_indices: (M,) int64; -r is the class with the r-th highest logit.
        plan: from camrt.cam.make_plan.
        deadline: time.monotonic() seconds, or None.
    """

    model: LoadedModel
    tensor: FloatArray
    class_indices: IntArray
    plan: Plan
    deadline: float | None = None

    @property
    def explanations(self) -> int:
        """How many explanations it asks for: M."""
        return len(self.class_indices)

    def part(self, start: int, most: int) -> ExplainWork:
        """The same work for at most ``most`` of its classes, from the class at ``start`` on."""
        return replace(self, class_indices=self.class_indices[start : start + most])


@dataclass(frozen=True, slots=True, eq=False)
class ExplainResult:
    """What became of it.

    Attributes:
        explanations: M, their maps at the model's input size.
        logits: (K,) float32.
        probabilities: (K,) float32.
        batch_size: how many images ran together.
        queue_seconds: from the call to the start of the run; of classes that ran one part after another, the sum.
        inference_seconds: of the whole batch; of parts the sum.
        kernels_seconds: of the whole batch; of parts the sum.
    """

    explanations: list[Explanation]
    logits: FloatArray
    probabilities: FloatArray
    batch_size: int
    queue_seconds: float
    inference_seconds: float
    kernels_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class PredictWork:
    """One image to predict. Attributes as of ExplainWork."""

    model: LoadedModel
    tensor: FloatArray
    deadline: float | None = None

    @property
    def explanations(self) -> int:
        """What it counts as."""
        return 1


@dataclass(frozen=True, slots=True, eq=False)
class PredictResult:
    """Logits (K,) float32, and what ExplainResult has."""

    logits: FloatArray
    batch_size: int
    queue_seconds: float
    inference_seconds: float


Work: TypeAlias = ExplainWork | PredictWork
Result: TypeAlias = ExplainResult | PredictResult


def run_batch(batch: Sequence[Item[Work]]) -> list[Result | CamrtError]:
    """The outcome of every request of a batch, all of one key.

    A batch that fails as a whole is run again request by request, so that one bad image harms no other.

    Args:
        batch: requests whose callers are there.
    """
    try:
        return list(_run(batch))
    except CamrtError as error:
        if len(batch) == 1:
            return [error]
    outcomes: list[Result | CamrtError] = []
    for item in batch:
        try:
            outcomes.extend(_run([item]))
        except CamrtError as error:
            outcomes.append(error)
    return outcomes


def run_expensive(work: ExplainWork, queued: float, checkpoint: Callable[[], None]) -> ExplainResult:
    """One image with a method that runs the model often.

    Args:
        work: the image.
        queued: when it came, time.monotonic() seconds.
        checkpoint: called before every run of the model; what it raises ends the work.
    """
    waited = time.monotonic() - queued
    checkpoint()
    result = work.model.explainer.explain_batch(work.tensor[None], work.class_indices, work.plan, checkpoint)
    return _explained(work, result.explanations, result.logits[0], waited, 1, result)


def joined(parts: Sequence[ExplainResult]) -> ExplainResult:
    """The result of work that ran in parts, see ExplainWork.part."""
    return replace(
        parts[0],
        explanations=[explanation for part in parts for explanation in part.explanations],
        queue_seconds=sum(part.queue_seconds for part in parts),
        inference_seconds=sum(part.inference_seconds for part in parts),
        kernels_seconds=sum(part.kernels_seconds for part in parts),
    )


def _run(batch: Sequence[Item[Work]]) -> Sequence[Result]:
    works = [item.work for item in batch]
    started = time.monotonic()
    waited = [started - item.queued for item in batch]
    explains = [work for work in works if isinstance(work, ExplainWork)]
    if not explains:
        return _predict(works, waited)
    classes = np.concatenate([work.class_indices for work in explains])
    result = explains[0].model.explainer.explain_batch(_stack(explains), classes, explains[0].plan)
    if batch[0].alone:
        return [_explained(explains[0], result.explanations, result.logits[0], waited[0], 1, result)]
    return [
        _explained(work, result.explanations[n : n + 1], result.logits[n], waited[n], len(batch), result)
        for n, work in enumerate(explains)
    ]


def _predict(works: Sequence[Work], waited: Sequence[float]) -> list[Result]:
    started = time.perf_counter()
    logits = works[0].model.explainer.predict(_stack(works))
    seconds = time.perf_counter() - started
    return [PredictResult(logits[n], len(works), waited[n], seconds) for n in range(len(works))]


def _explained(
    work: ExplainWork,
    explanations: list[Explanation],
    logits: FloatArray,
    waited: float,
    batch_size: int,
    result: BatchResult,
) -> ExplainResult:
    chances = probabilities(logits[None], work.model.explainer.manifest)[0].astype(np.float32)
    return ExplainResult(
        explanations, logits, chances, batch_size, waited, result.inference_seconds, result.kernels_seconds
    )


def _stack(works: Sequence[Work]) -> FloatArray:
    """(N, C, H, W)."""
    return np.stack([work.tensor for work in works]) if len(works) > 1 else works[0].tensor[None]


def trace_run(queued: float, result: Result) -> None:
    """The stages of a run as spans of the current request, which was in its batch and came at ``queued``."""
    started = queued + result.queue_seconds
    tracing.stage("queue", queued, started)
    ended = started + result.inference_seconds
    tracing.stage("inference", started, ended, batch_size=result.batch_size)
    if isinstance(result, ExplainResult):
        tracing.stage("kernels", ended, ended + result.kernels_seconds)


def check_tensor(model: LoadedModel, tensor: FloatArray) -> None:
    """InvalidInputError where an array is not (C, H, W) float32 of the model's input."""
    wanted = model.explainer.manifest.input_shape
    if not isinstance(tensor, np.ndarray) or tensor.shape != wanted or tensor.dtype != np.float32:
        told = f"{getattr(tensor, 'shape', type(tensor).__name__)} {getattr(tensor, 'dtype', '')}".strip()
        raise InvalidInputError(f"The image is an array {told}.", f"Model {model.name!r} takes float32 {wanted}.")


def check_classes(work: ExplainWork) -> None:
    """ClassIndexError where an index is out of range: told to its own request, before it can harm a batch."""
    known, indices = work.model.explainer.manifest.num_classes, work.class_indices
    ranks = min(known, MAX_RANK)
    if not len(indices) or indices.min() < -ranks or indices.max() >= known:
        raise ClassIndexError(
            f"Class indices {indices[:32].tolist()} do not fit a model of {known} classes.",
            f"Use 0 to {known - 1}, or -1 to -{ranks} for ranks.",
        )
