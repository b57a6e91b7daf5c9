"""The graphs of one bundle that an engine has open: few of them, since each holds weights of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

EngineT = TypeVar("EngineT")


@dataclass(slots=True, eq=False)
class _Open(Generic[EngineT]):
    """An open graph, and how many threads use it."""

    engine: EngineT
    users: int


class OpenGraphs(Generic[EngineT]):
    """Engines by key, opened when first needed; where there are too many, the least recently used one is closed.

    Safe for threads. One graph is opened at a time; who uses others that are open does not wait for it.

    Args:
        kept: keys that are never closed, and not counted.
        most: others that are open at a time. None is closed while it is used, so for as long there may be more.
    """

    def __init__(self, kept: Collection[Hashable], most: int) -> None:
        self._kept, self._most = frozenset(kept), most
        self._opened: dict[Hashable, _Open[EngineT]] = {}  # the least recently used first
        self._lock = threading.Lock()
        self._opening = threading.Lock()

    @contextmanager
    def use(self, key: Hashable, open_one: Callable[[], EngineT]) -> Iterator[EngineT]:
        """The engine of ``key``, which stays open at least as long as the context; ``open_one`` makes it if need be."""
        entry = self._take(key)
        if entry is None:
            with self._opening:
                entry = self._take(key)
                if entry is None:
                    entry = self._open(key, open_one)
        try:
            yield entry.engine
        finally:
            with self._lock:
                entry.users -= 1
            self._close_down_to(self._most)

    def _take(self, key: Hashable) -> _Open[EngineT] | None:
        """The entry, one user more and the most recently used now; None where it is not open."""
        with self._lock:
            entry = self._opened.pop(key, None)
            if entry is not None:
                entry.users += 1
                self._opened[key] = entry
            return entry

    def _open(self, key: Hashable, open_one: Callable[[], EngineT]) -> _Open[EngineT]:
        if key not in self._kept:
            self._close_down_to(self._most - 1)  # before, so that memory never holds one more
        entry = _Open(open_one(), users=1)
        with self._lock:
            self._opened[key] = entry
        return entry

    def _close_down_to(self, most: int) -> None:
        """Closes what is not used until ``most`` are left, beside those that are kept."""
        with self._lock:
            counted = [key for key in self._opened if key not in self._kept]
            idle = [key for key in counted if not self._opened[key].users]
            closed = [self._opened.pop(key) for key in idle[: max(0, len(counted) - most)]]
        closed.clear()  # freeing an engine takes time, which nobody who looks one up should wait for
