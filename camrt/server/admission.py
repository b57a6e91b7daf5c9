"""How much the server takes at a time: requests and bytes, from before they are decoded until they are answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from camrt.server.errors import DrainingError, OverloadedError

_LEAST_RETRY_MS = 50
_MOST_RETRY_MS = 10_000


@dataclass(slots=True, eq=False)
class Ticket:
    """One admitted request."""

    nbytes: int
    arriving: bool = True


_current: ContextVar[Ticket | None] = ContextVar("camrt_ticket", default=None)


class Admission:
    """Counts the requests in the server. Lives on the event loop.

    Args:
        items: most requests.
        nbytes: most bytes.
        wait_seconds: requests that would wait longer are refused.
        expected_wait: how long a request that comes after ``n`` others would wait, seconds.
        changed: called when a request no longer is about to reach the queue, and when one leaves.
        rejected: called with the reason of every refusal.

    Attributes:
        items, nbytes: in the server now.
        arriving: requests that are not in a queue yet.
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
        self.items = 0
        self.nbytes = 0
        self.arriving = 0
        self.draining = False

    @contextmanager
    def admit(self, nbytes: int) -> Iterator[None]:
        """See Engine.admit."""
        self._check(nbytes)
        ticket = Ticket(nbytes)
        self.items += 1
        self.arriving += 1
        self.nbytes += nbytes
        token = _current.set(ticket)
        try:
            yield
        finally:
            _current.reset(token)
            self.items -= 1
            self.nbytes -= ticket.nbytes
            if ticket.arriving:
                self.arriving -= 1
            self._changed()

    def arrived(self, nbytes: int) -> None:
        """The request of this context is in a queue now, and holds ``nbytes``."""
        ticket = _current.get()
        if ticket is None:
            return
        self.nbytes += max(0, nbytes - ticket.nbytes)
        ticket.nbytes = max(ticket.nbytes, nbytes)
        if ticket.arriving:
            ticket.arriving = False
            self.arriving -= 1

    def _check(self, nbytes: int) -> None:
        if self.draining:
            self._rejected("draining")
            raise DrainingError("The server is stopping.", "Send the request to another one.")
        wait = self._expected_wait(self.items)
        retry = int(min(_MOST_RETRY_MS, max(_LEAST_RETRY_MS, 500 * wait)))
        if self.items >= self._most_items:
            raise self._overloaded("items", f"{self.items} requests are in the server.", retry)
        if self.items and self.nbytes + nbytes > self._most_bytes:
            raise self._overloaded("bytes", f"Requests of {self.nbytes} bytes are in the server.", retry)
        if wait > self._wait_seconds:
            raise self._overloaded("wait", f"A request would wait about {wait:.1f} s.", retry)

    def _overloaded(self, reason: str, message: str, retry: int) -> OverloadedError:
        self._rejected(reason)
        return OverloadedError(message, f"Try again in {retry} ms.", retry)
