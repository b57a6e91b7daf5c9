"""How long the stages of an explanation take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Clock:
    """Seconds spent in named stages."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what runs inside."""
        started = time.perf_counter()
        yield
        self._seconds[name] = time.perf_counter() - started

    def shared(self, count: int) -> Mapping[str, float]:
        """The stages' times, divided evenly among the explanations of a run."""
        return {name: seconds / count for name, seconds in self._seconds.items()}
