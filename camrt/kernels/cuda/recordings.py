"""Launches that are recorded once and replayed: a CUDA graph in place of a call of Python for every kernel."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

MOST_RECORDINGS = 32
"""The least recently used goes for a new one. A recording keeps the memory that its kernels write to."""
MOST_KEYS = 1024
MOST_REFUSALS = 8


class Recording(Protocol):
    """What a device recorded.

    Attributes:
        result: what the recorded work returned; every launch writes it anew.
    """

    result: Any

    def launch(self) -> None:
        """Runs it on the current stream."""
        ...


class Recordings:
    """Recordings by key.

    The first call with a key runs the work, which compiles and allocates; the second records it; later ones replay.

    Args:
        record: records what a function starts, without running it.
    """

    def __init__(self, record: Callable[[Callable[[], Any]], Recording]) -> None:
        self._record = record
        self._kept: OrderedDict[Hashable, Recording] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()  # every key that was asked for
        self._refused: set[Hashable] = set()
        self._lock = threading.Lock()

    def run(self, key: Hashable, work: Callable[[], ResultT]) -> ResultT:
        """What ``work`` returns.

        Args:
            key: stands for everything that ``work`` depends on: addresses, shapes and choices, not values. Calls with
                the same key must not overlap, and results hold until the next of them.
            work: starts kernels and waits for nothing.
        """
        recording = self._of(key, work)
        if recording is None:
            return work()
        recording.launch()
        result: ResultT = recording.result
        return result

    def _of(self, key: Hashable, work: Callable[[], Any]) -> Recording | None:
        """The recording of a key, made at its second call; None where the work is to be run."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            again = key in self._seen
            self._seen[key] = None
            self._seen.move_to_end(key)
            while len(self._seen) > MOST_KEYS:
                self._refused.discard(self._seen.popitem(last=False)[0])
            if not again or key in self._refused or len(self._refused) >= MOST_REFUSALS:
                return None
        try:
            recording = self._record(work)
        except (RuntimeError, MemoryError, ValueError) as error:  # CUDA's, and CuPy's; the work can run without
            logger.warning("Kernels cannot be recorded, and are started one by one: %s", error)
            with self._lock:
                self._refused.add(key)
            return None
        with self._lock:
            self._kept[key] = recording
            if len(self._kept) > MOST_RECORDINGS:
                self._kept.popitem(last=False)
        return recording
