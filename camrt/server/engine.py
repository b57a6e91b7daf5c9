"""What a request goes through: admission, the pool that decodes, the lane of ordinary or that of heavy requests.

A request is admitted at the edge (``admit``), decoded in a pool (``offload``), queued and run in a batch (``explain``,
``predict``) or in the heavy lane (``run_heavy``), and encoded in the pool. Everything but the work itself happens on
the event loop, so nothing here needs a lock. A caller that is cancelled or whose deadline passes leaves the queue at
once; what already runs ends at its next chunk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeVar

from camrt.server import tracing
from camrt.server.admission import Admission
from camrt.server.batcher import Item
from camrt.server.cheap import CheapLane
from camrt.server.errors import DeadlineError, OverloadedError
from camrt.server.heavy import Cancelled, HeavyLane, Pace
from camrt.server.models import LoadedModel
from camrt.server.runs import (
    ExplainResult,
    ExplainWork,
    PredictResult,
    PredictWork,
    Result,
    Work,
    check_classes,
    check_tensor,
    joined,
    run_expensive,
)
from camrt.server.settings import ServerSettings
from camrt.server.statistics import Statistics
from camrt.server.telemetry import Telemetry
from camrt.types import FloatArray

__all__ = ["Cancelled", "Engine", "ExplainResult", "ExplainWork"]

T = TypeVar("T")

_TURNS_A_BATCH = 4
"""A request of many classes runs max_batch of them at a time, but only so small a part of it while short requests wait.

Each part repeats the forward pass, so the parts are not smaller still.
"""


class Engine:
    """Runs what the servicers ask for. Made and called on one event loop.

    Args:
        settings: batching, queues and lanes.
        telemetry: where it counts; None counts nowhere that can be seen.

    Attributes:
        statistics: of every version of a model.
        heavy_batch: images that a chunk of heavy work should hold; pass it as ``batch_size`` to Explainer.evaluate.
    """

    def __init__(self, settings: ServerSettings, telemetry: Telemetry | None = None) -> None:
        self._telemetry = telemetry or Telemetry()
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(settings.decoding_threads, "camrt-io")
        self._opener = ThreadPoolExecutor(1, "camrt-open")
        self._max_batch = settings.max_batch
        pace = Pace(settings.heavy_share)
        self._heavy = HeavyLane(settings.heavy_items, settings.queue_bytes, pace)
        self._cheap = CheapLane(settings, pace, lambda: self._admission.arriving, self._count)
        self._admission = Admission(
            settings.queue_items,
            settings.queue_bytes,
            settings.queue_ms / 1000,
            max(1, settings.max_batch // _TURNS_A_BATCH),
            self._cheap.seconds_each,
            self._cheap.dispatch,
            self._telemetry.rejected,
        )
        self.statistics = Statistics()
        self.heavy_batch = settings.heavy_batch
        self._publish()

    async def explain(self, work: ExplainWork) -> ExplainResult:
        """Explains one image in a batch with others of the same model and plan, each for its own class.

        Several classes of one image run by themselves, max_batch of them at a time, or fewer where short requests wait:
        one forward pass, a backward pass a class. After each such turn the requests that wait have theirs. Methods that
        run the model once a channel have their place in the heavy lane.

        Raises:
            DeadlineError: the deadline passed.
            OverloadedError: too much heavy work, or no room for so many classes.
            InvalidInputError, ClassIndexError: the tensor or a class does not fit the model.
            CamrtError: what the explainer raises.
        """
        check_tensor(work.model, work.tensor)
        check_classes(work)
        self._check_deadline(work.deadline)
        self._admission.claim(work.explanations, work.deadline, work.model)
        await self._prepare(work)
        self._admission.arrived(work.tensor.nbytes, work.explanations)
        if work.plan.base.expensive:
            return await self._explain_heavily(work)
        turn = self._admission.turn() if work.explanations > 1 else nullcontext()
        results: list[ExplainResult] = []
        done = 0
        while done < work.explanations:
            async with turn:
                part = work.part(done, self._admission.share(self._max_batch))
                result = await self._run(part)
            assert isinstance(result, ExplainResult)
            results.append(result)
            done += part.explanations
        return joined(results)

    async def predict(self, model: LoadedModel, tensor: FloatArray, deadline: float | None) -> PredictResult:
        """Predicts one image (C, H, W), in a batch with other predictions of the model. Raises as explain."""
        check_tensor(model, tensor)
        self._check_deadline(deadline)
        work = PredictWork(model, tensor, deadline)
        self._admission.claim(work.explanations, deadline, model)
        self._admission.arrived(tensor.nbytes, work.explanations)
        result = await self._run(work)
        assert isinstance(result, PredictResult)
        return result

    async def run_heavy(self, nbytes: int, deadline: float | None, call: Callable[[Cancelled], T]) -> T:
        """Runs ``call`` in the heavy lane, one at a time.

        Args:
            nbytes: what it holds in memory, about.
            deadline: time.monotonic() seconds, or None.
            call: gets a function to call between chunks, for example as ``checkpoint`` of Explainer.evaluate. That
                function raises when the caller is gone, and waits while cheap requests have the first claim.

        Raises:
            OverloadedError: too much heavy work.
            DeadlineError: the deadline passed.
        """
        self._check_deadline(deadline)
        started = time.monotonic()
        try:
            return await self._in_time(self._heavy.run(nbytes, deadline, call), deadline)
        except OverloadedError:
            self._telemetry.rejected("heavy")
            raise
        finally:
            self._stage("heavy", started)

    async def offload(self, call: Callable[[], T], stage: str = "") -> T:
        """Runs ``call`` in the pool for decoding, preprocessing and encoding.

        Args:
            call: releases the GIL where it is slow.
            stage: "decode" or "encode" names it in the histograms; an empty one is not recorded.
        """
        started = time.monotonic()
        try:
            return await self._loop.run_in_executor(self._pool, call)
        finally:
            if stage:
                self._stage(stage, started)

    def admit(
        self, nbytes: int, items: int = 1, deadline: float | None = None, model: LoadedModel | None = None
    ) -> AbstractContextManager[None]:
        """Entered before anything is decoded, left when the answer is ready: bounds work and bytes in the server.

        Args:
            nbytes: of the request message.
            items: explanations that it asks for: images, each as often as it has classes, or predictions. Those that
                turn up later are counted, and may be refused, when explain gets them.
            deadline: time.monotonic() seconds, or None.
            model: what will run, if that is known.

        Raises:
            OverloadedError: too many explanations or bytes, the wait would be too long, or the answer would come after
                the deadline, as far as the last runs of the models can tell. A request is never refused for it where
                it is alone.
            DrainingError: the server is stopping.
        """
        return self._admission.admit(nbytes, items, deadline, model)

    def check_room(self, nbytes: int) -> None:
        """Raises, and counts, what ``admit`` would for a message of so many bytes, before it is even parsed."""
        self._admission.check(nbytes)

    @property
    def draining(self) -> bool:
        """Whether new requests are refused. Streams end when they see it."""
        return self._admission.draining

    @property
    def in_flight(self) -> int:
        """Requests that were admitted and are not answered."""
        return self._admission.requests

    def drain(self) -> None:
        """From now on nothing is admitted; what was goes on."""
        self._admission.draining = True

    def close(self) -> None:
        """Ends everything: what waits is cancelled, what runs ends at its next chunk. The threads end by themselves."""
        self.drain()
        self._heavy.stop()
        self._cheap.stop()
        for pool in (self._pool, self._opener):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _prepare(self, work: ExplainWork) -> None:
        """Opens what a plan needs, in a thread of its own: neither the workers nor the pool wait for it.

        A session closes what has not been used for a time, so it is asked each time. Only what the warm-up opened stays
        open, see BundleSession: for that nobody has to wait while something else is being opened.
        """
        plan, explainer = work.plan, work.model.explainer
        if plan.layers == explainer.manifest.layer_names and plan.base.derivatives == 1:
            return
        opening = self._loop.run_in_executor(self._opener, explainer.prepare, plan)
        await self._in_time(opening, work.deadline)

    async def _explain_heavily(self, work: ExplainWork) -> ExplainResult:
        self._admission.ran(work.explanations)
        self._cheap.dispatch()
        nbytes = work.tensor.nbytes + work.plan.perturbation.memory_bytes
        result = await self.run_heavy(nbytes, work.deadline, partial(run_expensive, work, time.monotonic()))
        self._count_run(work.model, "explain")
        return result

    async def _run(self, work: Work) -> Result:
        try:
            return await self._in_time(self._cheap.run(work), work.deadline)
        finally:
            self._admission.ran(work.explanations)

    def _stage(self, name: str, started: float) -> None:
        """A stage of the current request ends, answered or not."""
        ended = time.monotonic()
        self._telemetry.stage(name, ended - started)
        tracing.stage(name, started, ended)

    async def _in_time(self, outcome: Awaitable[T], deadline: float | None) -> T:
        if deadline is None:
            return await outcome
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await outcome
        except TimeoutError as error:
            self._telemetry.dropped.labels("deadline").inc()
            raise _too_late() from error

    def _check_deadline(self, deadline: float | None) -> None:
        if deadline is not None and time.monotonic() >= deadline:
            self._telemetry.rejected("deadline")
            raise _too_late()

    def _count(self, batch: Sequence[Item[Work]], outcomes: Sequence[Result | BaseException]) -> None:
        model = batch[0].work.model
        results = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        self._count_run(model, "explain" if isinstance(batch[0].work, ExplainWork) else "predict")
        self.statistics.of(model.name, model.version).failed_items += len(outcomes) - len(results)
        self._telemetry.batch_size.labels(model.name).observe(len(batch))
        for result in results:
            self._telemetry.stage("queue", result.queue_seconds)
        if results:
            self._telemetry.stage("inference", results[0].inference_seconds)
            if isinstance(results[0], ExplainResult):
                self._telemetry.stage("kernels", results[0].kernels_seconds)

    def _count_run(self, model: LoadedModel, kind: str) -> None:
        row = self.statistics.of(model.name, model.version)
        row.executions += 1
        row.last_inference = time.time()
        self._telemetry.executions.labels(model.name, kind).inc()

    def _publish(self) -> None:
        gauge, admission, cheap = self._telemetry.gauge, self._admission, self._cheap
        gauge("camrt_requests_in_server", "Requests between admission and answer.", lambda: admission.requests)
        gauge("camrt_images_in_server", "Their images, each as often as it has classes.", lambda: admission.items)
        gauge("camrt_request_bytes_in_server", "Bytes that they hold.", lambda: admission.nbytes)
        gauge("camrt_queue_length", "Requests that wait for a worker.", lambda: len(cheap))
        gauge("camrt_queue_age_seconds", "How long the oldest of them has waited.", cheap.age)
        gauge("camrt_heavy_requests", "Expensive requests that run or wait.", lambda: self._heavy.items)


def _too_late() -> DeadlineError:
    return DeadlineError("The deadline passed before the request was done.", "Allow more time.")
