"""Which requests run together, and when: queues by key, oldest first.

The policy. A worker that is free takes the key whose oldest request has waited longest, and of it as many requests as
a batch may hold. It waits for more only while all of this holds: the batch is not full, other requests are in the
server that have not reached the queue yet (they are being decoded), and the oldest one has waited less than max_delay.
So a request that is alone never waits, and under load batches fill up, while a worker is busy or from what is about to
arrive.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Work = TypeVar("Work")


@dataclass(slots=True, eq=False)
class Item(Generic[Work]):
    """One request in the queue.

    Attributes:
        key: requests of one key may run together.
        work: the request.
        future: of its outcome.
        queued: when it came, seconds.
        deadline: when it is too late, seconds; None is never.
        alone: it runs by itself, whatever its key.
    """

    key: Hashable
    work: Work
    future: asyncio.Future[Any]
    queued: float
    deadline: float | None = None
    alone: bool = False

    def gone(self, now: float) -> bool:
        """Whether nobody waits for it any more. May be asked from any thread."""
        return self.future.done() or (self.deadline is not None and now >= self.deadline)


@dataclass(slots=True)
class Batcher(Generic[Work]):
    """Requests that wait. Not safe for threads: it lives on the event loop.

    Attributes:
        max_batch: most requests of a batch.
        max_delay: seconds that a free worker waits for requests that are about to arrive.
    """

    max_batch: int
    max_delay: float
    _queues: dict[Hashable, deque[Item[Work]]] = field(default_factory=dict)
    _waiting: int = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, item: Item[Work]) -> None:
        """Puts a request at the end of its queue."""
        self._queues.setdefault(self._key(item), deque()).append(item)
        self._waiting += 1

    def discard(self, item: Item[Work]) -> None:
        """Takes a request out, if it still waits."""
        queue = self._queues.get(self._key(item))
        if queue is not None and item in queue:
            queue.remove(item)
            self._shrank(self._key(item), 1)

    def oldest(self) -> float | None:
        """When the request came that waits longest; None if none waits."""
        return min((queue[0].queued for queue in self._queues.values()), default=None)

    def take(self, now: float, arriving: int) -> list[Item[Work]]:
        """The next batch; empty where there is none, or where waiting may fill it.

        Args:
            now: seconds.
            arriving: requests in the server that will reach the queue soon.
        """
        self._drop_gone(now)
        for key, queue in sorted(self._queues.items(), key=lambda pair: pair[1][0].queued):
            first = queue[0]
            full = len(queue) >= self.max_batch or first.alone
            if full or arriving == 0 or now - first.queued >= self.max_delay:
                return self._pop(key, queue)
        return []

    def due(self) -> float | None:
        """When the oldest request has waited long enough for any batch; None if none waits."""
        oldest = self.oldest()
        return None if oldest is None else oldest + self.max_delay

    @staticmethod
    def _key(item: Item[Work]) -> Hashable:
        return item if item.alone else item.key

    def _pop(self, key: Hashable, queue: deque[Item[Work]]) -> list[Item[Work]]:
        batch = [queue.popleft() for _ in range(min(self.max_batch, len(queue)))]
        self._shrank(key, len(batch))
        return batch

    def _drop_gone(self, now: float) -> None:
        for key, queue in list(self._queues.items()):
            gone = [item for item in queue if item.gone(now)]
            for item in gone:
                queue.remove(item)
            self._shrank(key, len(gone))

    def _shrank(self, key: Hashable, count: int) -> None:
        self._waiting -= count
        if not self._queues[key]:
            del self._queues[key]
