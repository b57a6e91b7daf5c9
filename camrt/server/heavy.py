"""The lane of expensive requests: one thread, in chunks, that leaves the cheap lane its share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

from camrt.server.errors import DeadlineError, DrainingError, OverloadedError
from camrt.server.priority import lower_priority

T = TypeVar("T")
Cancelled: TypeAlias = Callable[[], None]

_NICENESS = 10
_RETRY_MS = 2000
_MOST_RETRY_MS = 60_000
_SMOOTHING = 0.3


class Pace:
    """How heavy work gives way to cheap work.

    After a chunk that took t seconds the heavy thread waits until the cheap lane is empty, and at most
    t (1 - share) / share: under a full cheap lane it gets its share of the time, without one it never waits.
    """

    def __init__(self, share: float) -> None:
        self._ratio = (1 - share) / share
        self._condition = threading.Condition()
        self._cheap_busy = False
        self._resumed = time.monotonic()

    def cheap_busy(self, busy: bool) -> None:
        """Says whether cheap requests run or wait."""
        if busy == self._cheap_busy:
            return
        with self._condition:
            self._cheap_busy = busy
            self._condition.notify_all()

    def start(self) -> None:
        """A heavy request starts; it waits for the cheap ones that run as after a chunk of no length."""
        self._resumed = time.monotonic()

    def give_way(self) -> None:
        """Called by the heavy thread between chunks."""
        longest = (time.monotonic() - self._resumed) * self._ratio
        with self._condition:
            self._condition.wait_for(lambda: not self._cheap_busy, longest)
        self._resumed = time.monotonic()


@dataclass(slots=True, eq=False)
class _Caller:
    """Who waits for a heavy request; written by the event loop, read by the heavy thread."""

    deadline: float | None
    gone: bool = False


class HeavyLane:
    """Runs calls one at a time in a thread of its own.

    A call is refused where there are too many, and where those before it would take longer than its deadline, at the
    pace of the last ones.

    Args:
        items: most calls that run or wait.
        nbytes: most bytes that they hold.
        pace: how the thread gives way.
    """

    def __init__(self, items: int, nbytes: int, pace: Pace) -> None:
        self._most_items, self._most_bytes, self._pace = items, nbytes, pace
        self._thread = ThreadPoolExecutor(1, "camrt-heavy", initializer=partial(lower_priority, _NICENESS))
        self._stopping = False
        self._seconds_a_call = 0.0
        self.items = 0
        self.nbytes = 0

    async def run(self, nbytes: int, deadline: float | None, call: Callable[[Cancelled], T]) -> T:
        """See Engine.run_heavy."""
        self._check_room(nbytes, deadline)
        caller = _Caller(deadline)
        self.items += 1
        self.nbytes += nbytes
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._call, caller, call)
        future.add_done_callback(partial(self._left, nbytes))
        # Shielded: a caller that goes away leaves the thread at the next chunk, and only then its bytes are free.
        try:
            return await asyncio.shield(future)
        finally:
            caller.gone = True

    def stop(self) -> None:
        """Ends what runs at its next chunk, and what waits."""
        self._stopping = True
        self._pace.cheap_busy(False)
        self._thread.shutdown(wait=False)

    def _check_room(self, nbytes: int, deadline: float | None) -> None:
        told, retry = "", _RETRY_MS
        wait = self.items * self._seconds_a_call
        if self.items >= self._most_items or (self.items and self.nbytes + nbytes > self._most_bytes):
            told = f"{self.items} expensive requests are in the server."
        elif deadline is not None and wait > deadline - time.monotonic():
            told = f"{self.items} expensive requests come first and take about {wait:.1f} s, longer than the deadline."
            retry = min(_MOST_RETRY_MS, max(_RETRY_MS, int(500 * wait)))
        if told:
            raise OverloadedError(told, f"Try again in {retry} ms.", retry)

    def _left(self, nbytes: int, future: asyncio.Future[T]) -> None:
        self.items -= 1
        self.nbytes -= nbytes
        if not future.cancelled():
            future.exception()  # looked at, so that it is not reported as lost where the caller is gone

    def _call(self, caller: _Caller, call: Callable[[Cancelled], T]) -> T:
        def cancelled() -> None:
            self._check(caller)
            self._pace.give_way()
            self._check(caller)

        self._check(caller)
        self._pace.start()
        started = time.monotonic()
        outcome = call(cancelled)
        seconds, known = time.monotonic() - started, self._seconds_a_call
        self._seconds_a_call = seconds if known == 0 else known + _SMOOTHING * (seconds - known)
        return outcome

    def _check(self, caller: _Caller) -> None:
        if self._stopping:
            raise DrainingError()
        if caller.gone or (caller.deadline is not None and time.monotonic() >= caller.deadline):
            raise DeadlineError("The deadline passed before the request was done.", "Allow more time.")
