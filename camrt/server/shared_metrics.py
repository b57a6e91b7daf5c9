"""Metrics of several server processes on one port: each writes to files of a folder, the parent reads them all.

prometheus_client counts in files where PROMETHEUS_MULTIPROC_DIR is set when it is imported; the parent sets it for its
children. Counters and histograms are sums over all processes, those that have died too. Gauges are sums over those that
live, but for ages, which are the largest. A state of a model is the number of processes in which it has that state.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from camrt.server.telemetry import MODEL_STATES, Telemetry

if TYPE_CHECKING:
    from camrt.server.models import ModelStatus

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_PUBLISH_SECONDS = 0.5
_Mode: TypeAlias = Literal["livesum", "livemax"]


class SharedTelemetry(Telemetry):
    """The metrics of one of several processes. What is a function elsewhere is written twice a second here."""

    def __init__(self) -> None:
        super().__init__()
        self._gauges: list[tuple[Gauge, Callable[[], float]]] = []
        self._statuses: Callable[[], Sequence[ModelStatus]] = list
        self._states = _gauge(
            "camrt_model_state", "State of a model.", self.registry, ("model", "version", "state"), "livesum"
        )
        self._known: set[tuple[str, str]] = set()

    def gauge(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """See Telemetry; an age of several processes is that of the oldest."""
        mode: _Mode = "livemax" if name.endswith("_age_seconds") else "livesum"
        self._gauges.append((_gauge(name, help_text, self.registry, (), mode), value))

    def watch_models(self, statuses: Callable[[], Sequence[ModelStatus]]) -> None:
        """See Telemetry."""
        self._statuses = statuses

    def publish(self) -> None:
        """Writes every gauge as it is now."""
        for gauge, value in self._gauges:
            gauge.set(value())
        rows = {(status.name, status.version): status.state for status in self._statuses()}
        self._known |= set(rows)
        for name, version in self._known:
            for state in MODEL_STATES:
                self._states.labels(name, version, state).set(float(rows.get((name, version)) == state))

    async def keep_publishing(self) -> None:
        """Publishes until it is cancelled."""
        while True:
            self.publish()
            await asyncio.sleep(_PUBLISH_SECONDS)


class WorkersMetrics:
    """What the parent serves: the sums, the memory and time of each process, and how the workers are.

    Args:
        folder: where the workers write.
        processes: process ids by number of a worker, those that live.

    Attributes:
        registry: all of it.
        ready: workers that serve.
        restarts: workers that were started again.
    """

    def __init__(self, folder: Path, processes: Callable[[], Mapping[int, int]]) -> None:
        self._folder = folder
        self.registry = CollectorRegistry()
        MultiProcessCollector(self.registry, str(folder))  # type: ignore[no-untyped-call]
        self.registry.register(_Processes(processes))
        self.ready = Gauge("camrt_workers_ready", "Workers that serve.", registry=self.registry)
        self.restarts = Counter(
            "camrt_worker_restarts", "Workers that ended and were replaced.", registry=self.registry
        )

    def ended(self, process: int) -> None:
        """A worker is gone, and its gauges with it; what it counted stays."""
        mark_process_dead(process, str(self._folder))  # type: ignore[no-untyped-call]


class _Processes(Collector):
    """process_* of the parent and of every worker, apart by the label worker."""

    def __init__(self, processes: Callable[[], Mapping[int, int]]) -> None:
        self._processes = processes

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client's Collector."""
        families: dict[str, Metric] = {}
        for worker, process in [("supervisor", os.getpid()), *self._processes().items()]:
            for metric in ProcessCollector(pid=partial(str, process), registry=None).collect():
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    family.add_sample(sample.name, {**sample.labels, "worker": str(worker)}, sample.value)
        return families.values()


def _gauge(name: str, text: str, registry: CollectorRegistry, labels: Sequence[str], mode: _Mode) -> Gauge:
    return Gauge(name, text, labels, registry=registry, multiprocess_mode=mode)
