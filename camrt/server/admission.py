"""How much the server takes at a time: explanations and bytes, from before they are decoded until they are answered.

What is counted is work, not requests: an image counts once for every class that is explained, a prediction as one. A
request of many explanations gives way to short ones after every ``turn`` of them, see Engine.explain; so what comes
before a request is of every other one as much as fits into the turns that it takes itself, and not all that the other
one wants.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field

from camrt.server.errors import DrainingError, OverloadedError
from camrt.server.model_status import LoadedModel

_LEAST_RETRY_MS = 50
_MOST_RETRY_MS = 10_000


@dataclass(slots=True, eq=False)
class Ticket:
    """One admitted request.

    Attributes:
        nbytes: that it holds.
        items: explanations that it was admitted for.
        arriving: those that are not in a queue yet.
        pending: those that have not run yet, those that arrive among them.
        model: what runs them; None as long as nobody has said.
        claimed: those that the engine has been given.
        turn: held while some classes of an image wait or run, so that several images with several classes take turns.
    """

    nbytes: int
    items: int
    arriving: int
    pending: int
    model: LoadedModel | None
    claimed: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


_current: ContextVar[Ticket | None] = ContextVar("camrt_ticket", default=None)


class Admission:
    """Counts the explanations of the requests in the server. Lives on the event loop.

    Args:
        items: most explanations.
        nbytes: most bytes.
        wait_seconds: requests that would wait longer are refused.
        turn: explanations of a request that run before the others have their turn, where some want no more than that.
        seconds_each: for how long an explanation by a model holds the workers, seconds; None is a model that nobody
            has named yet.
        changed: called when an explanation no longer is about to reach the queue, and when a request leaves.
        rejected: called with the reason of every refusal.

    Attributes:
        items, nbytes: in the server now.
        arriving: explanations that are not in a queue yet.
        draining: whether everything is refused.
    """

    def __init__(
        self,
        items: int,
        nbytes: int,
        wait_seconds: float,
        turn: int,
        seconds_each: Callable[[LoadedModel | None], float],
        changed: Callable[[], None],
        rejected: Callable[[str], None],
    ) -> None:
        self._most_items, self._most_bytes, self._wait_seconds, self._turn = items, nbytes, wait_seconds, turn
        self._seconds_each, self._changed, self._rejected = seconds_each, changed, rejected
        self._tickets: set[Ticket] = set()
        self.items = 0
        self.nbytes = 0
        self.arriving = 0
        self.draining = False

    @property
    def requests(self) -> int:
        """Requests in the server now."""
        return len(self._tickets)

    @contextmanager
    def admit(self, nbytes: int, items: int, deadline: float | None, model: LoadedModel | None) -> Iterator[None]:
        """See Engine.admit."""
        self.check(nbytes, items, deadline, model)
        ticket = Ticket(nbytes, items, items, items, model)
        self._tickets.add(ticket)
        self.items += items
        self.arriving += items
        self.nbytes += nbytes
        token = _current.set(ticket)
        try:
            yield
        finally:
            _current.reset(token)
            self._tickets.discard(ticket)
            self.items -= ticket.items
            self.nbytes -= ticket.nbytes
            self.arriving -= ticket.arriving
            self._changed()

    def claim(self, items: int, deadline: float | None, model: LoadedModel) -> None:
        """This context's request has so many explanations for the engine; more than it was admitted for are added.

        Raises:
            OverloadedError: there is no room for those. As for admit, a request that is alone is not refused.
        """
        ticket = _current.get()
        if ticket is None:
            return
        ticket.model = model
        ticket.claimed += items
        more = ticket.claimed - ticket.items
        if more <= 0:
            return
        others = self._tickets - {ticket}
        if others:
            wait = self._seconds_before(1, others)
            self._check_items(more, wait)
            self._check_deadline(ticket.pending + more, deadline, model, others, wait)
        self.items += more
        self.arriving += more
        ticket.items += more
        ticket.arriving += more
        ticket.pending += more

    def arrived(self, nbytes: int, items: int) -> None:
        """Explanations of this context's request are with the engine now, and hold ``nbytes`` besides the message's."""
        ticket = _current.get()
        if ticket is None:
            return
        self.nbytes += nbytes
        ticket.nbytes += nbytes
        here = min(items, ticket.arriving)
        ticket.arriving -= here
        self.arriving -= here

    def ran(self, items: int) -> None:
        """Explanations of this context's request have run, or never will: nobody waits for a worker for them."""
        ticket = _current.get()
        if ticket is not None:
            ticket.pending -= min(items, ticket.pending)

    def turn(self) -> AbstractAsyncContextManager[object]:
        """Entered for every part of an image's classes: a request has one such part in the queue at a time."""
        ticket = _current.get()
        return nullcontext() if ticket is None else ticket.turn

    def share(self, most: int) -> int:
        """Of at most ``most`` explanations of this context's request, how many may run now before others have a turn.

        One turn's where a request is in the server that wants no more than that, else all.
        """
        mine = _current.get()
        others = (ticket.pending for ticket in self._tickets if ticket is not mine)
        return min(most, self._turn) if mine is not None and any(0 < n <= self._turn for n in others) else most

    def check(
        self, nbytes: int, items: int = 1, deadline: float | None = None, model: LoadedModel | None = None
    ) -> None:
        """What admit would raise, and counts it."""
        if self.draining:
            self._rejected("draining")
            raise DrainingError()
        others = self._tickets
        if not others:  # alone, whatever it is: a limit below it, or one slow run, must not shut it out for good
            return
        wait = self._seconds_before(1, others)
        self._check_items(items, wait)
        if self.nbytes + nbytes > self._most_bytes:
            raise self._overloaded("bytes", f"Requests of {self.nbytes} bytes are in the server.", wait)
        if wait > self._wait_seconds:
            raise self._overloaded("wait", f"A request would wait about {wait:.1f} s.", wait)
        self._check_deadline(items, deadline, model, others, wait)

    def _check_items(self, items: int, wait: float) -> None:
        if self.items + items > self._most_items:
            told = f"{self.items} explanations are in the server, and a request of {items} came."
            raise self._overloaded("items", told, wait)

    def _check_deadline(
        self, items: int, deadline: float | None, model: LoadedModel | None, others: Collection[Ticket], wait: float
    ) -> None:
        """``wait``: until the first of ``items`` has its turn, which is that of all where they fit into one."""
        if deadline is None:
            return
        before = wait if items <= self._turn else self._seconds_before(items, others)
        answer, left = before + items * self._seconds_each(model), deadline - time.monotonic()
        if answer > left:
            message = f"The answer would be there in about {answer:.2f} s, and the deadline is in {left:.2f} s."
            raise self._overloaded("too_late", message, wait)

    def _seconds_before(self, items: int, others: Collection[Ticket]) -> float:
        """How long the others hold the workers before the last of ``items`` explanations has its turn."""
        most = -(-items // self._turn) * self._turn
        waiting: dict[LoadedModel | None, int] = {}
        for ticket in others:
            if ticket.pending:
                waiting[ticket.model] = waiting.get(ticket.model, 0) + min(ticket.pending, most)
        return sum(count * self._seconds_each(model) for model, count in waiting.items())

    def _overloaded(self, reason: str, message: str, wait: float) -> OverloadedError:
        self._rejected(reason)
        retry = int(min(_MOST_RETRY_MS, max(_LEAST_RETRY_MS, 500 * wait)))
        return OverloadedError(message, f"Try again in {retry} ms.", retry)
