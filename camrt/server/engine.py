"""Where requests wait and run: admission, the cheap lane with its batches, the heavy lane, the pool that decodes.

A request is admitted at the edge (``admit``), decoded in a pool (``offload``), queued and run in a batch (``explain``,
``predict``) or in the heavy lane (``run_heavy``), and encoded in the pool. Everything but the work itself happens on
the event loop, so nothing here needs a lock. A caller that is cancelled or whose deadline passes leaves the queue at
once; what already runs ends at its next chunk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary

from camrt.cam import Plan
from camrt.errors import CamrtError
from camrt.server import tracing
from camrt.server.admission import Admission
from camrt.server.batcher import Batcher, Item
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
    run_batch,
    run_expensive,
    trace_run,
)
from camrt.server.settings import ServerSettings
from camrt.server.statistics import Statistics
from camrt.server.telemetry import Telemetry
from camrt.types import FloatArray

__all__ = ["Cancelled", "Engine", "ExplainResult", "ExplainWork"]

T = TypeVar("T")

_SMOOTHING = 0.2


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
        self._batcher: Batcher[Work] = Batcher(settings.max_batch, settings.max_delay_ms / 1000)
        self._workers = ThreadPoolExecutor(settings.concurrent_batches, "camrt-worker")
        self._pool = ThreadPoolExecutor(settings.decoding_threads, "camrt-io")
        self._number_of_workers = self._idle = settings.concurrent_batches
        self._pace = Pace(settings.heavy_share)
        self._heavy = HeavyLane(settings.heavy_items, settings.queue_bytes, self._pace)
        self._seconds_an_item = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._prepared: WeakKeyDictionary[LoadedModel, set[tuple[str, ...]]] = WeakKeyDictionary()
        self._admission = Admission(
            settings.queue_items,
            settings.queue_bytes,
            settings.queue_ms / 1000,
            self._expected_wait,
            self._dispatch,
            self._telemetry.rejected,
        )
        self.statistics = Statistics()
        self.heavy_batch = settings.heavy_batch
        self._publish()

    async def explain(self, work: ExplainWork) -> ExplainResult:
        """Explains one image in a batch with others of the same model and plan, each for its own class.

        Several classes of one image run by themselves: one forward pass, a backward pass a class. Methods that run the
        model once a channel have their place in the heavy lane.

        Raises:
            DeadlineError: the deadline passed.
            OverloadedError: too much heavy work.
            InvalidInputError, ClassIndexError: the tensor or a class does not fit the model.
            CamrtError: what the explainer raises.
        """
        check_tensor(work.model, work.tensor)
        check_classes(work)
        self._check_deadline(work.deadline)
        await self._prepare(work.model, work.plan)
        if work.plan.base.expensive:
            return await self._explain_alone(work)
        result = await self._queue(work)
        assert isinstance(result, ExplainResult)
        return result

    async def predict(self, model: LoadedModel, tensor: FloatArray, deadline: float | None) -> PredictResult:
        """Predicts one image (C, H, W), in a batch with other predictions of the model. Raises as explain."""
        check_tensor(model, tensor)
        self._check_deadline(deadline)
        result = await self._queue(PredictWork(model, tensor, deadline))
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

    def admit(self, nbytes: int, items: int = 1, deadline: float | None = None) -> AbstractContextManager[None]:
        """Entered before anything is decoded, left when the answer is ready: bounds images and bytes in the server.

        Args:
            nbytes: of the request message.
            items: images in it.
            deadline: time.monotonic() seconds, or None.

        Raises:
            OverloadedError: too many images or bytes, the wait would be too long, or the answer would come after the
                deadline, as far as the last runs can tell. A request is never refused for it where it is alone.
            DrainingError: the server is stopping.
        """
        return self._admission.admit(nbytes, items, deadline)

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
        if self._timer is not None:
            self._timer.cancel()
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _prepare(self, model: LoadedModel, plan: Plan) -> None:
        """Opens the part of the model for a plan's layers outside of the workers, where it would hold up others."""
        prepared = self._prepared.setdefault(model, set())
        if plan.layers not in prepared:
            await self.offload(partial(model.explainer.prepare, plan))
            prepared.add(plan.layers)

    async def _explain_alone(self, work: ExplainWork) -> ExplainResult:
        self._admission.arrived(work.tensor.nbytes)
        self._admission.ran()
        self._dispatch()
        nbytes = work.tensor.nbytes + work.plan.perturbation.memory_bytes
        result = await self.run_heavy(nbytes, work.deadline, partial(run_expensive, work, time.monotonic()))
        self._count_run(work.model, "explain")
        return result

    async def _queue(self, work: Work) -> Result:
        plan = work.plan if isinstance(work, ExplainWork) else None
        alone = isinstance(work, ExplainWork) and len(work.class_indices) > 1
        future: asyncio.Future[Result] = self._loop.create_future()
        item: Item[Work] = Item((work.model, plan), work, future, time.monotonic(), work.deadline, alone)
        self._batcher.add(item)
        self._admission.arrived(work.tensor.nbytes)
        self._dispatch()
        try:
            result = await self._in_time(future, work.deadline)
            trace_run(item.queued, result)
            return result
        finally:
            future.cancel()
            self._batcher.discard(item)
            self._admission.ran()
            self._show_load()

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

    def _dispatch(self) -> None:
        """Gives idle workers what may run now, and comes back when the oldest request has waited long enough."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle and (batch := self._batcher.take(time.monotonic(), self._admission.arriving)):
            self._idle -= 1
            run = self._loop.run_in_executor(self._workers, run_batch, batch, self._batcher.max_batch)
            run.add_done_callback(partial(self._finished, batch, time.monotonic()))
        if self._idle and (due := self._batcher.due()) is not None:
            self._timer = self._loop.call_later(max(0.0, due - time.monotonic()), self._dispatch)
        self._show_load()

    def _show_load(self) -> None:
        self._pace.cheap_busy(bool(len(self._batcher)) or self._idle < self._number_of_workers)

    def _finished(
        self,
        batch: list[Item[Work]],
        started: float,
        run: asyncio.Future[list[Result | CamrtError]],
    ) -> None:
        self._idle += 1
        if run.cancelled():
            for item in batch:
                item.future.cancel()
            return
        error = run.exception()
        outcomes: list[Result | BaseException] = [error] * len(batch) if error else list(run.result())
        self._count(batch, outcomes, time.monotonic() - started)
        for item, outcome in zip(batch, outcomes, strict=True):
            if item.future.done():
                continue
            if isinstance(outcome, BaseException):
                item.future.set_exception(outcome)
            else:
                item.future.set_result(outcome)
        batch.clear()  # the traceback of an error holds this list, and its items would hold the error
        self._dispatch()

    def _count(self, batch: list[Item[Work]], outcomes: list[Result | BaseException], seconds: float) -> None:
        model = batch[0].work.model
        each = seconds / len(batch)
        known = self._seconds_an_item
        self._seconds_an_item = each if known == 0 else known + _SMOOTHING * (each - known)
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

    def _expected_wait(self, items: int) -> float:
        """Seconds until ``items`` images have run, at the pace of the last batches."""
        return items * self._seconds_an_item / self._number_of_workers

    def _publish(self) -> None:
        def age() -> float:
            oldest = self._batcher.oldest()
            return 0.0 if oldest is None else time.monotonic() - oldest

        gauge = self._telemetry.gauge
        gauge("camrt_requests_in_server", "Requests between admission and answer.", lambda: self._admission.requests)
        gauge("camrt_images_in_server", "Their images.", lambda: self._admission.items)
        gauge("camrt_request_bytes_in_server", "Bytes that they hold.", lambda: self._admission.nbytes)
        gauge("camrt_queue_length", "Requests that wait for a worker.", lambda: len(self._batcher))
        gauge("camrt_queue_age_seconds", "How long the oldest of them has waited.", age)
        gauge("camrt_heavy_requests", "Expensive requests that run or wait.", lambda: self._heavy.items)


def _too_late() -> DeadlineError:
    return DeadlineError("The deadline passed before the request was done.", "Allow more time.")
