"""How much the server takes at a time: images and bytes, from before they are decoded until they are answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from camrt.server.errors import DrainingError, OverloadedError

_LEAST_RETRY_MS = 50
_MOST_RETRY_MS = 10_000


@dataclass(slots=True, eq=False)
class Ticket:
    """One admitted request: its bytes, its images that are not in a queue yet, and those that have not run yet."""

    nbytes: int
    arriving: int
    pending: int


_current: ContextVar[Ticket | None] = ContextVar("camrt_ticket", default=None)


class Admission:
    """Counts the images of the requests in the server. Lives on the event loop.

    Args:
        items: most images.
        nbytes: most bytes.
        wait_seconds: requests that would wait longer are refused.
        expected_wait: how long it takes until ``n`` images have run, seconds.
        changed: called when an image no longer is about to reach the queue, and when a request leaves.
        rejected: called with the reason of every refusal.

    Attributes:
        requests, items, nbytes: in the server now.
        arriving: images that are not in a queue yet.
        pending: images that have not run yet, those that arrive among them.
        draining: whether everything is refused.
    """

    def __init__(
        self,
        items: int,
        nbytes: int,
        wait_seconds: float,
        expected_wait: Callable[[int], float],
        changed: Callable[[], None],
        rejected: Callable[[str], None],
    ) -> None:
        self._most_items, self._most_bytes, self._wait_seconds = items, nbytes, wait_seconds
        self._expected_wait, self._changed, self._rejected = expected_wait, changed, rejected
        self.requests = 0
        self.items = 0
        self.nbytes = 0
        self.arriving = 0
        self.pending = 0
        self.draining = False

    @contextmanager
    def admit(self, nbytes: int, items: int, deadline: float | None) -> Iterator[None]:
        """See Engine.admit."""
        self.check(nbytes, items, deadline)
        ticket = Ticket(nbytes, items, items)
        self.requests += 1
        self.items += items
        self.arriving += items
        self.pending += items
        self.nbytes += nbytes
        token = _current.set(ticket)
        try:
            yield
        finally:
            _current.reset(token)
            self.requests -= 1
            self.items -= items
            self.nbytes -= ticket.nbytes
            self.arriving -= ticket.arriving
            self.pending -= ticket.pending
            self._changed()

    def arrived(self, nbytes: int) -> None:
        """An image of this context's request is in a queue now, and holds ``nbytes`` besides those of the message."""
        ticket = _current.get()
        if ticket is None:
            return
        self.nbytes += nbytes
        ticket.nbytes += nbytes
        if ticket.arriving:
            ticket.arriving -= 1
            self.arriving -= 1

    def ran(self) -> None:
        """An image of this context's request has run, or never will: nobody waits for a worker because of it."""
        ticket = _current.get()
        if ticket is not None and ticket.pending:
            ticket.pending -= 1
            self.pending -= 1

    def check(self, nbytes: int, items: int = 1, deadline: float | None = None) -> None:
        """What admit would raise, and counts it."""
        if self.draining:
            self._rejected("draining")
            raise DrainingError("The server is stopping.", "Send the request to another one.")
        if not self.items:  # alone, whatever it is: a limit below it, or one slow run, must not shut it out for good
            return
        wait = self._expected_wait(self.pending)
        if self.items + items > self._most_items:
            raise self._overloaded("items", f"{self.items} images are in the server.", wait)
        if self.nbytes + nbytes > self._most_bytes:
            raise self._overloaded("bytes", f"Requests of {self.nbytes} bytes are in the server.", wait)
        if wait > self._wait_seconds:
            raise self._overloaded("wait", f"A request would wait about {wait:.1f} s.", wait)
        answer, left = self._expected_wait(self.pending + items), _left(deadline)
        if answer > left:
            message = f"The answer would be there in about {answer:.2f} s, and the deadline is in {left:.2f} s."
            raise self._overloaded("too_late", message, wait)

    def _overloaded(self, reason: str, message: str, wait: float) -> OverloadedError:
        self._rejected(reason)
        retry = int(min(_MOST_RETRY_MS, max(_LEAST_RETRY_MS, 500 * wait)))
        return OverloadedError(message, f"Try again in {retry} ms.", retry)


def _left(deadline: float | None) -> float:
    """Seconds until a time.monotonic() deadline."""
    return float("inf") if deadline is None else deadline - time.monotonic()
