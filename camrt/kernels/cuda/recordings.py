"""Launches that are recorded once and replayed: a CUDA graph in place of a call of Python for every kernel."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

MOST_RECORDINGS = 32
"""More are run without. A recording keeps the memory that its kernels write to."""


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
        self._known: dict[Hashable, Recording | None] = {}
        self._refused = False
        self._lock = threading.Lock()

    def run(self, key: Hashable, work: Callable[[], ResultT]) -> ResultT:
        """What ``work`` returns.

        Args:
            key: stands for everything that ``work`` depends on: addresses, shapes and choices, not values. Calls with
                the same key must not overlap, and results hold until the next of them.
            work: starts kernels and waits for nothing.
        """
        with self._lock:
            known, recording = key in self._known, self._known.get(key)
            if not known and len(self._known) < MOST_RECORDINGS:
                self._known[key] = None
        if recording is None:
            recording = self._recorded(key, work) if known else None
        if recording is None:
            return work()
        recording.launch()
        result: ResultT = recording.result
        return result

    def _recorded(self, key: Hashable, work: Callable[[], Any]) -> Recording | None:
        """A new recording; None, from then on, where the device refused one."""
        if self._refused:
            return None
        try:
            recording = self._record(work)
        except Exception as error:  # noqa: BLE001 - whatever CUDA says, the work can run without
            self._refused = True
            logger.warning("The kernels cannot be recorded, and are started one by one: %s", error)
            return None
        with self._lock:
            self._known[key] = recording
        return recording
