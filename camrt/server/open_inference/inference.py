"""Carries out what requests.read_request made of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from camrt.cam import resolve_ranks
from camrt.explainer.assembly import check_logits
from camrt.server.engine import Cancelled, Engine, ExplainResult, ExplainWork
from camrt.server.models import LoadedModel
from camrt.server.open_inference.requests import (
    ACTIVATIONS,
    CLASS_INDEX,
    GRADIENTS,
    LOGITS,
    SALIENCY_MAP,
    Inference,
)
from camrt.server.statistics import RequestTimes
from camrt.types import AnyArray, FloatArray, IntArray, SessionOutputs

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What an inference computes.

    Attributes:
        arrays: output name to array, in the order asked for.
        degenerate_maps: how many maps have a layer that says nothing; 0 where no maps were asked for.
    """

    arrays: dict[str, AnyArray]
    degenerate_maps: int


async def run(
    engine: Engine, model: LoadedModel, inference: Inference, times: RequestTimes, deadline: float | None
) -> Callable[[], Outcome]:
    """Computes the outputs, and nothing that is not asked for: without a map, no backward pass.

    Activations and gradients are not part of a batch with other requests: they run in the heavy lane, image by image.

    Args:
        engine: where it runs.
        model: the model.
        inference: what is asked for.
        times: gets how long the images waited and ran.
        deadline: time.monotonic() seconds, or None.

    Returns:
        What puts the outcome together; it is slow, and belongs into the pool.

    Raises:
        DeadlineError, CamrtError: as Engine.explain.
        InvalidInputError: as check_logits.
    """
    results: Sequence[ExplainResult] = ()
    if inference.explains:
        works = [
            ExplainWork(model, tensor, classes, inference.plan, deadline)
            for tensor, classes in zip(inference.tensors, inference.class_indices, strict=True)
        ]
        results = await gather([engine.explain(work) for work in works])
        for result in results:
            times.ran(result.queue_seconds, result.inference_seconds + result.kernels_seconds)
        logits = np.stack([result.logits for result in results])
    else:
        predicted = await gather([engine.predict(model, tensor, deadline) for tensor in inference.tensors])
        for prediction in predicted:
            times.ran(prediction.queue_seconds, prediction.inference_seconds)
        logits = np.stack([prediction.logits for prediction in predicted])
        check_logits(logits)
    chosen = _explained(results) if results else resolve_ranks(logits, inference.class_indices)
    layers = await _layer_arrays(engine, model, inference, chosen, deadline)
    return partial(_collect, model, inference, results, logits, chosen, layers)


async def gather(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of calls that run together; the first failure ends the others, and is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        tasks.clear()  # a failed task knows this frame: what it holds would stay until the next garbage collection


def _explained(results: Sequence[ExplainResult]) -> IntArray:
    """(N, M): the classes that were explained."""
    return np.array([[item.class_index for item in result.explanations] for result in results], np.int64)


async def _layer_arrays(
    engine: Engine, model: LoadedModel, inference: Inference, chosen: IntArray, deadline: float | None
) -> list[SessionOutputs]:
    """The arrays of the layers asked for, one entry an image."""
    layers = inference.array_layers
    if not layers:
        return []

    def call(checkpoint: Cancelled) -> list[SessionOutputs]:
        outputs = []
        for tensor, classes in zip(inference.tensors, chosen, strict=True):
            checkpoint()
            outputs.append(model.explainer.layer_outputs(tensor[None], classes, layers))
        return outputs

    return await engine.run_heavy(sum(tensor.nbytes for tensor in inference.tensors), deadline, call)


def _collect(
    model: LoadedModel,
    inference: Inference,
    results: Sequence[ExplainResult],
    logits: FloatArray,
    chosen: IntArray,
    layers: Sequence[SessionOutputs],
) -> Outcome:
    arrays: dict[str, AnyArray] = {LOGITS: logits, CLASS_INDEX: chosen}
    degenerate = 0
    if results:
        arrays[SALIENCY_MAP] = np.stack([_maps(model, inference, results, n) for n in range(len(results))])
        degenerate = sum(bool(item.degenerate) for result in results for item in result.explanations)
    for index, name in enumerate(inference.array_layers):
        own = [outputs.layers[index] for outputs in layers]
        arrays[ACTIVATIONS + name] = np.concatenate([layer.activations for layer in own])
        arrays[GRADIENTS + name] = np.stack([layer.gradients for layer in own])
    return Outcome({name: arrays[name] for name in inference.outputs}, degenerate)


def _maps(model: LoadedModel, inference: Inference, results: Sequence[ExplainResult], index: int) -> FloatArray:
    """The maps (M, H, W) of one image, in the pixels asked for."""
    explainer, size = model.explainer, inference.output_size
    explanations = results[index].explanations
    if isinstance(size, tuple):
        explanations = [explainer.to_size(item, inference.plan, size) for item in explanations]
    elif size == "original":
        picture = inference.pictures[index]
        explanations = [explainer.to_original(item, picture.affine, picture.size) for item in explanations]
    return np.stack([item.saliency_map for item in explanations])
