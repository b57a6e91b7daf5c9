"""The lane of ordinary requests: they wait in queues and run in batches, on worker threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeAlias
from weakref import WeakKeyDictionary

from camrt.errors import CamrtError
from camrt.server.batcher import Batcher, Item
from camrt.server.heavy import Pace
from camrt.server.models import LoadedModel
from camrt.server.runs import ExplainWork, Result, Work, run_batch, trace_run
from camrt.server.settings import ServerSettings

Ran: TypeAlias = Callable[[Sequence[Item[Work]], Sequence[Result | BaseException]], None]

_SMOOTHING = 0.2


class CheapLane:
    """Runs explanations and predictions in batches, see camrt.server.batcher for which and when.

    Lives on the event loop, so nothing here needs a lock.

    Args:
        settings: batches and workers.
        pace: told whether cheap requests run or wait.
        arriving: how many more will be here soon.
        ran: called with every batch and what became of its items.
    """

    def __init__(self, settings: ServerSettings, pace: Pace, arriving: Callable[[], int], ran: Ran) -> None:
        self._loop = asyncio.get_running_loop()
        self._batcher: Batcher[Work] = Batcher(settings.max_batch, settings.max_delay_ms / 1000)
        self._workers = ThreadPoolExecutor(settings.concurrent_batches, "camrt-worker")
        self._number_of_workers = self._idle = settings.concurrent_batches
        self._pace, self._arriving, self._ran = pace, arriving, ran
        self._seconds: WeakKeyDictionary[LoadedModel, float] = WeakKeyDictionary()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Requests that wait for a worker."""
        return len(self._batcher)

    def age(self) -> float:
        """How long the oldest of them has waited, seconds; 0 where none waits."""
        oldest = self._batcher.oldest()
        return 0.0 if oldest is None else time.monotonic() - oldest

    def seconds_each(self, model: LoadedModel | None) -> float:
        """For how long an explanation holds the workers at the pace of the last batches, seconds.

        0 for a model that has not run yet, and the quickest one's for None: who is not known is not refused for it.
        """
        seconds = min(self._seconds.values(), default=0.0) if model is None else self._seconds.get(model, 0.0)
        return seconds / self._number_of_workers

    async def run(self, work: Work) -> Result:
        """The outcome of one request. A caller that is cancelled leaves the queue at once.

        Raises:
            CamrtError: what the explainer raises.
        """
        plan = work.plan if isinstance(work, ExplainWork) else None
        alone = work.explanations > 1
        future: asyncio.Future[Result] = self._loop.create_future()
        item: Item[Work] = Item((work.model, plan), work, future, time.monotonic(), work.deadline, alone)
        self._batcher.add(item)
        self.dispatch()
        try:
            result = await future
            trace_run(item.queued, result)
            return result
        finally:
            future.cancel()
            self._batcher.discard(item)
            self._show_load()

    def dispatch(self) -> None:
        """Gives idle workers what may run now, and comes back when the oldest request has waited long enough."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle and (batch := self._batcher.take(time.monotonic(), self._arriving())):
            self._idle -= 1
            run = self._loop.run_in_executor(self._workers, run_batch, batch)
            run.add_done_callback(partial(self._finished, batch, time.monotonic()))
        if self._idle and (due := self._batcher.due()) is not None:
            self._timer = self._loop.call_later(max(0.0, due - time.monotonic()), self.dispatch)
        self._show_load()

    def stop(self) -> None:
        """Cancels what waits. The threads end by themselves."""
        if self._timer is not None:
            self._timer.cancel()
        self._workers.shutdown(wait=False, cancel_futures=True)

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
        self._note_pace(batch, time.monotonic() - started)
        self._ran(batch, outcomes)
        for item, outcome in zip(batch, outcomes, strict=True):
            if item.future.done():
                continue
            if isinstance(outcome, BaseException):
                item.future.set_exception(outcome)
            else:
                item.future.set_result(outcome)
        batch.clear()  # the traceback of an error holds this list, and its items would hold the error
        self.dispatch()

    def _note_pace(self, batch: Sequence[Item[Work]], seconds: float) -> None:
        model = batch[0].work.model
        each = seconds / sum(item.work.explanations for item in batch)
        known = self._seconds.get(model, each)
        self._seconds[model] = known + _SMOOTHING * (each - known)
