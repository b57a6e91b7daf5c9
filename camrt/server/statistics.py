"""What was done for every version of a model: requests, and the batches that they ran in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from camrt.server.models import LoadedModel


@dataclass(slots=True)
class RequestTimes:
    """What one request took so far, seconds; of several images the longest counts, since they run together.

    Attributes:
        items: images.
        decode_seconds, encode_seconds: to and from arrays.
        queue_seconds: until a worker took it.
        run_seconds: of its batch: model and kernels.
    """

    items: int = 1
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0

    def ran(self, queue_seconds: float, run_seconds: float) -> None:
        """An image of it has run."""
        self.queue_seconds = max(self.queue_seconds, queue_seconds)
        self.run_seconds = max(self.run_seconds, run_seconds)


@dataclass(slots=True)
class ModelStatistics:
    """One version of a model. Everything but executions and failed_items counts requests, of every service.

    Attributes:
        successes: requests that were answered.
        failures: requests that were not: refused, wrong, too late or cancelled.
        success_seconds, failure_seconds: how long they took.
        items: images of the requests that were answered.
        decode_seconds, queue_seconds, run_seconds, encode_seconds: of the requests that were answered.
        executions: batches that ran.
        failed_items: images whose run ended in an error.
        last_inference: time.time() of the last batch, 0 before the first.
    """

    successes: int = 0
    failures: int = 0
    success_seconds: float = 0.0
    failure_seconds: float = 0.0
    items: int = 0
    decode_seconds: float = 0.0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0
    encode_seconds: float = 0.0
    executions: int = 0
    failed_items: int = 0
    last_inference: float = 0.0

    def answered(self, times: RequestTimes, seconds: float) -> None:
        """A request was answered."""
        self.successes += 1
        self.success_seconds += seconds
        self.items += times.items
        self.decode_seconds += times.decode_seconds
        self.queue_seconds += times.queue_seconds
        self.run_seconds += times.run_seconds
        self.encode_seconds += times.encode_seconds

    def failed(self, seconds: float) -> None:
        """A request was not."""
        self.failures += 1
        self.failure_seconds += seconds


@dataclass(slots=True)
class Statistics:
    """Of all models of a server. Lives on the event loop."""

    _rows: dict[tuple[str, str], ModelStatistics] = field(default_factory=dict)

    def of(self, name: str, version: str) -> ModelStatistics:
        """The row of a version of a model."""
        return self._rows.setdefault((name, version), ModelStatistics())

    @contextmanager
    def request(self, model: LoadedModel) -> Iterator[RequestTimes]:
        """Around the answer to a request: counts it, and what is written into the times."""
        times, row, started = RequestTimes(), self.of(model.name, model.version), time.monotonic()
        answered = False
        try:
            yield times
            answered = True
        finally:
            seconds = time.monotonic() - started
            if answered:
                row.answered(times, seconds)
            else:
                row.failed(seconds)
