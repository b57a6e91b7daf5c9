"""``camrt.v1.ExplainerService``. See proto/camrt/v1/explainer.proto for what every field means."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from camrt.cam import Plan
from camrt.explanation import Explanation
from camrt.metrics.registry import check_metrics
from camrt.server.codec import (
    Decoded,
    Output,
    array_tensor,
    check_output_size,
    decode,
    given_map,
    object_mask,
    resolve_output,
)
from camrt.server.encoding import Encoder, ReplyMaps
from camrt.server.engine import Cancelled, Engine, ExplainResult, ExplainWork
from camrt.server.models import LoadedModel, ModelRepository
from camrt.server.replies import (
    check_reply,
    layer_map_bytes,
    microseconds,
    model_message,
    model_summary,
    options_message,
    prediction,
    reference,
    top_predictions,
)
from camrt.server.requests import class_count, class_of, classes_of, deadline_of, metrics_of, plan_of
from camrt.server.settings import ServerSettings
from camrt.server.statistics import RequestTimes
from camrt.server.status import Context, Edge, Status, code_number
from camrt.server.stream import Streaming
from camrt.server.telemetry import message_bytes
from camrt.server.tracing import Part
from camrt.types import BoolArray, DoubleArray, IntArray
from camrt.v1 import explainer_pb2 as pb
from camrt.v1 import explainer_pb2_grpc as pb_grpc


@dataclass(frozen=True, slots=True)
class _Job:
    """A request of Explain, checked."""

    request: pb.ExplainRequest
    model: LoadedModel
    plan: Plan
    classes: IntArray
    output: Output
    deadline: float | None


class _Stopwatch:
    """Seconds since it was made, and since the last lap."""

    def __init__(self) -> None:
        self._started = self._lap = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self._lap = self._lap, time.perf_counter()
        return self._lap - before

    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started


class ExplainerServicer(pb_grpc.ExplainerServiceServicer):
    """Answers the calls of ExplainerService. Every error becomes a status at the edge, see camrt.server.status.

    Args:
        repository: the models.
        engine: runs them.
        settings: the limits.
    """

    def __init__(self, repository: ModelRepository, engine: Engine, settings: ServerSettings) -> None:
        self._repository, self._engine, self._settings = repository, engine, settings
        self._encoder = Encoder(engine, settings.output_pixels)

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:  # noqa: N802
        """Explains one image."""
        async with Edge(context):
            return await self._explain(request, deadline_of(context))

    async def ExplainStream(  # noqa: N802
        self, requests: AsyncIterable[pb.ExplainStreamRequest], context: Context
    ) -> AsyncIterator[pb.ExplainStreamResponse]:
        """Explains image after image. Look-ahead is bounded by ServerSettings.stream_in_flight."""
        async with Edge(context) as edge:
            deadline = deadline_of(context)

            async def explain(message: pb.ExplainStreamRequest) -> pb.ExplainResponse:
                with Part("image"):
                    return await self._explain(message.request, deadline)

            streaming = Streaming(
                explain,
                lambda message, response: pb.ExplainStreamResponse(id=message.id, response=response),
                _refused,
                self._settings,
                lambda: self._engine.draining,
                edge.request_id,
            )
            async with aclosing(streaming.replies(requests)) as replies:
                async for reply in replies:
                    yield reply

    async def Evaluate(self, request: pb.EvaluateRequest, context: Context) -> pb.EvaluateResponse:  # noqa: N802
        """Measures a map, in the heavy lane."""
        async with Edge(context):
            deadline = deadline_of(context)
            model = self._model(request.model)
            with (
                self._engine.statistics.request(model) as times,
                self._engine.admit(message_bytes(request), deadline=deadline, model=model),
            ):
                return await self._evaluate(request, model, times, deadline)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: ARG002, N802
        """The models of this server."""
        async with Edge(context):
            return pb.ListModelsResponse(models=[model_summary(status) for status in self._repository.statuses()])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:  # noqa: N802
        """Everything about one model."""
        async with Edge(context):
            return model_message(
                self._model(request.model), self._repository.statuses(), self._settings.scorecam_channels
            )

    def _model(self, wanted: pb.ModelReference) -> LoadedModel:
        return self._repository.get(wanted.name, wanted.version)

    async def _explain(self, request: pb.ExplainRequest, deadline: float | None) -> pb.ExplainResponse:
        model = self._model(request.model)
        with (
            self._engine.statistics.request(model) as times,
            self._engine.admit(message_bytes(request), class_count(request, self._settings), deadline, model),
        ):
            watch = _Stopwatch()
            job = self._job(request, model, deadline)
            decoded = await self._decode(job)
            times.decode_seconds = watch.lap()
            work = ExplainWork(model, decoded.tensor, job.classes, job.plan, deadline)
            result = await self._engine.explain(work)
            scores = None
            if request.return_arcc:
                scores = await self._measure(work, result.explanations, ("arcc",), None, request.seed)
            watch.lap()
            response = await self._response(job, decoded, result)
            for message, score in zip(response.explanations, () if scores is None else scores["arcc"], strict=False):
                message.scores["arcc"] = float(score)
            _set_timings(response.timings, result, times, watch)
            check_reply(response, self._settings.message_bytes)
            return response

    def _job(self, request: pb.ExplainRequest, model: LoadedModel, deadline: float | None) -> _Job:
        settings = self._settings
        manifest = model.explainer.manifest
        return _Job(
            request,
            model,
            plan_of(manifest, request.options, settings),
            classes_of(request, manifest, settings),
            resolve_output(request.output, request.image),
            deadline,
        )

    async def _decode(self, job: _Job) -> Decoded:
        explainer, most = job.model.explainer, self._settings.image_pixels
        decoded = await self._engine.offload(partial(decode, job.request.image, explainer, most), "decode")
        limits = self._settings.output_pixels, self._settings.message_bytes
        other = 4 * explainer.manifest.num_classes * job.request.return_probabilities
        if job.request.return_layer_maps:
            other += len(job.classes) * layer_map_bytes(explainer.manifest, job.plan.layers)
        check_output_size(job.output, decoded, len(job.classes), *limits, other)
        return decoded

    async def _response(self, job: _Job, decoded: Decoded, result: ExplainResult) -> pb.ExplainResponse:
        """Maps go to the pixels that were asked for, and to bytes, in the pool."""
        request, manifest = job.request, job.model.explainer.manifest
        maps = ReplyMaps(request, job.model.explainer, job.plan, decoded, job.output, self._settings)
        explained = await self._encoder.run(maps.pieces(result.explanations), maps.pixels, job.deadline)
        return pb.ExplainResponse(
            model=reference(job.model),
            model_digest=job.model.digest,
            predictions=top_predictions(manifest, result.probabilities),
            explanations=[message for piece in explained for message in piece],
            probabilities=array_tensor(result.probabilities) if request.return_probabilities else None,
            batch_size=result.batch_size,
            options=options_message(job.plan),
        )

    async def _evaluate(
        self, request: pb.EvaluateRequest, model: LoadedModel, times: RequestTimes, deadline: float | None
    ) -> pb.EvaluateResponse:
        watch, settings = _Stopwatch(), self._settings
        manifest = model.explainer.manifest
        metrics = metrics_of(request, settings)
        check_metrics(metrics, request.HasField("object_mask"))
        plan, classes = plan_of(manifest, request.options, settings), class_of(request, manifest)
        size = manifest.input_shape[1:]
        mask = object_mask(request.object_mask, size)[None] if request.HasField("object_mask") else None
        given = given_map(request.saliency_map, size) if request.HasField("saliency_map") else None
        call = partial(decode, request.image, model.explainer, settings.image_pixels)
        decoded = await self._engine.offload(call, "decode")
        times.decode_seconds = watch.lap()
        work = ExplainWork(model, decoded.tensor, classes, plan, deadline)
        result = await self._engine.explain(work)
        explanation = result.explanations[0]
        if given is not None:
            explanation = replace(explanation, saliency_map=given, in_input_pixels=True)
        scores = await self._measure(work, [explanation], metrics, mask, request.seed)
        watch.lap()
        response = pb.EvaluateResponse(
            model=reference(model),
            model_digest=model.digest,
            prediction=prediction(manifest, explanation.class_index, explanation.probability),
            scores={name: float(values[0]) for name, values in scores.items()},
        )
        _set_timings(response.timings, result, times, watch)
        return response

    async def _measure(
        self,
        work: ExplainWork,
        explanations: Sequence[Explanation],
        metrics: Sequence[str],
        mask: BoolArray | None,
        seed: int,
    ) -> dict[str, DoubleArray]:
        """Scores of explanations of one image, computed in the heavy lane."""

        def measure(cancelled: Cancelled) -> dict[str, DoubleArray]:
            return work.model.explainer.evaluate(
                work.tensor[None],
                explanations,
                metrics,
                mask,
                seed,
                batch_size=self._engine.heavy_batch,
                checkpoint=cancelled,
                perturbation=work.plan.perturbation,
            )

        return await self._engine.run_heavy(work.tensor.nbytes, work.deadline, measure)


def _refused(request: pb.ExplainStreamRequest, status: Status) -> pb.ExplainStreamResponse:
    """The reply of a stream about an image that failed."""
    told = pb.Error(
        code=code_number(status.code),
        message=status.message,
        reason=status.reason,
        retry_after_ms=status.retry_after_ms,
    )
    return pb.ExplainStreamResponse(id=request.id, error=told)


def _set_timings(timings: pb.Timings, result: ExplainResult, times: RequestTimes, watch: _Stopwatch) -> None:
    """The stages of a request; the lap that ends here encoded the reply."""
    times.ran(result.queue_seconds, result.inference_seconds + result.kernels_seconds)
    times.encode_seconds = watch.lap()
    timings.decode_us = microseconds(times.decode_seconds)
    timings.queue_us = microseconds(result.queue_seconds)
    timings.inference_us = microseconds(result.inference_seconds)
    timings.kernels_us = microseconds(result.kernels_seconds)
    timings.encode_us = microseconds(times.encode_seconds)
    timings.total_us = microseconds(watch.total())
