"""What the server tells about itself: Prometheus metrics, and which request a log line belongs to."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from camrt.server.errors import SettingsError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from camrt.server.models import ModelStatus

logger = logging.getLogger("camrt.server")

REQUEST_ID_HEADER = "x-request-id"
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
MODEL_STATES = ("loading", "ready", "unloading", "failed")


@dataclass(slots=True, eq=False)
class RequestScope:
    """The call that the current task answers.

    Attributes:
        request_id: of the client if it is harmless, else made here.
        method: the full gRPC method.
        model: a name of the repository, once it is known; never what a client merely sent.
    """

    request_id: str
    method: str
    model: str = ""


_scope: ContextVar[RequestScope | None] = ContextVar("camrt_request", default=None)


def current_request_id() -> str:
    """The id of the call that this task answers; empty outside of one."""
    scope = _scope.get()
    return "" if scope is None else scope.request_id


def current_method() -> str:
    """The gRPC method of the call that this task answers; empty outside of one."""
    scope = _scope.get()
    return "" if scope is None else scope.method


_message_bytes: ContextVar[int] = ContextVar("camrt_message_bytes", default=0)


def note_message(nbytes: int) -> None:
    """Says how long the message is that the current task has just got."""
    _message_bytes.set(nbytes)


def message_bytes(message: Message) -> int:
    """Bytes of the message that the current task has got last; a message that came another way is measured.

    Counting them again takes as long as parsing: hundreds of milliseconds for millions of numbers.
    """
    return _message_bytes.get() or message.ByteSize()


def note_model(name: str) -> None:
    """Says which model the current call is about; only names of the repository."""
    scope = _scope.get()
    if scope is not None:
        scope.model = name


def enter_scope(method: str, wanted_id: str | None = None) -> RequestScope:
    """The scope of a call, from now on that of the current task; gRPC gives every call a task of its own."""
    safe = wanted_id is not None and _SAFE_ID.fullmatch(wanted_id) is not None
    scope = RequestScope(wanted_id if wanted_id is not None and safe else secrets.token_hex(8), method)
    _scope.set(scope)
    return scope


class Telemetry:
    """The metrics of one server, in a registry of its own. Names and meanings are the docs of the operating guide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "camrt_requests", "Calls that were answered.", ("model", "method", "code"), registry=self.registry
        )
        self.request_seconds = Histogram(
            "camrt_request_seconds", "Time to answer a call.", ("method",), buckets=_SECONDS, registry=self.registry
        )
        self.stage_seconds = Histogram(
            "camrt_stage_seconds",
            "Time of a stage of a request: decode, queue, inference, kernels, encode, heavy.",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "camrt_batch_size", "Images that ran together.", ("model",), buckets=_BATCHES, registry=self.registry
        )
        self.executions = Counter("camrt_executions", "Runs of a model.", ("model", "kind"), registry=self.registry)
        self.rejects = Counter("camrt_rejected", "Requests that were refused.", ("reason",), registry=self.registry)
        self.dropped = Counter(
            "camrt_dropped", "Requests whose caller went away before they ran.", ("reason",), registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    def rejected(self, reason: str) -> None:
        """Counts a refusal: items, bytes, wait, heavy, draining, deadline, unauthenticated or permission."""
        self.rejects.labels(reason).inc()

    def stage(self, name: str, seconds: float) -> None:
        """Counts the time of a stage."""
        self.stage_seconds.labels(name).observe(seconds)

    def gauge(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Publishes what ``value`` returns whenever the metrics are read."""
        Gauge(name, help_text, registry=self.registry).set_function(value)

    def watch_models(self, statuses: Callable[[], Sequence[ModelStatus]]) -> None:
        """Publishes the state of every model."""
        self.registry.register(_ModelStates(statuses))

    def listen(self, host: str, port: int) -> tuple[int, Callable[[], None]]:
        """See serve_metrics."""
        return serve_metrics(self.registry, host, port)


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> tuple[int, Callable[[], None]]:
    """Serves metrics over HTTP from a thread.

    Args:
        registry: the metrics.
        host: address.
        port: 0 is any free one.

    Returns:
        The port, and what stops it.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise SettingsError(
            f"Cannot serve metrics on {host}:{port}: {error.strerror}.", "Choose another --metrics-port."
        ) from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(5)

    return int(server.server_port), stop


class _ModelStates(Collector):
    """1 for the state that a version of a model is in, 0 for the others."""

    def __init__(self, statuses: Callable[[], Sequence[ModelStatus]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client's Collector."""
        family = GaugeMetricFamily("camrt_model_state", "State of a model.", labels=("model", "version", "state"))
        for status in self._statuses():
            for state in MODEL_STATES:
                family.add_metric((status.name, status.version, state), float(status.state == state))
        yield family
