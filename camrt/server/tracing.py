"""OpenTelemetry traces: a span a request, continued from the client's ``traceparent``, and a child a stage of it.

On only where asked for, by the setting otlp_endpoint or by OTEL_EXPORTER_OTLP_ENDPOINT (or its _TRACES_ variant). The
other OTEL_* variables mean what they always do: sampler, headers, resource, batching. Off, nothing of OpenTelemetry is
imported, and a stage costs the look at one context variable.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import camrt
from camrt.errors import BackendUnavailableError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span, Tracer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_FLUSH_SECONDS = 3
# Those that are the server's own fault, by OpenTelemetry's conventions for RPC: UNKNOWN, DEADLINE_EXCEEDED,
# UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
_SERVER_FAULTS = frozenset({2, 4, 12, 13, 14, 15})


@dataclass(frozen=True, slots=True)
class _Traced:
    """A span that is open, and what its children need."""

    tracer: Tracer
    span: Span
    context: Context


_current: ContextVar[_Traced | None] = ContextVar("camrt_span", default=None)


class Tracing:
    """The traces of one server.

    Args:
        processor: gets every span that has ended.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        own = Resource({SERVICE_NAME: "camrt", SERVICE_VERSION: camrt.__version__})
        named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        given = Resource.create()
        resource = own.merge(given) if named else given.merge(own)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("camrt.server", camrt.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def start(self, method: str, metadata: Mapping[str, str], request_id: str) -> None:
        """Opens the span of the call that the current task answers, as a child of the client's where there is one.

        Args:
            method: "/package.Service/Method".
            metadata: of the call; ``traceparent`` and ``tracestate`` are read.
            request_id: goes to the attribute ``camrt.request_id``.
        """
        from opentelemetry.trace import SpanKind

        service, _, name = method.lstrip("/").partition("/")
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": name,
            "camrt.request_id": request_id,
        }
        parent = self._propagator.extract(metadata)
        span = self._tracer.start_span(f"{service}/{name}", parent, SpanKind.SERVER, attributes)
        _current.set(_traced(self._tracer, span))

    def end(self, code: int, model: str) -> None:
        """Closes that span.

        Args:
            code: a gRPC code.
            model: a name of the repository, or empty.
        """
        from opentelemetry.trace import StatusCode

        traced = _current.get()
        if traced is None:
            return
        traced.span.set_attribute("rpc.grpc.status_code", code)
        if model:
            traced.span.set_attribute("camrt.model", model)
        if code in _SERVER_FAULTS:
            traced.span.set_status(StatusCode.ERROR)
        traced.span.end()

    def close(self) -> None:
        """Sends what is left, and ends; a collector that does not answer is waited for 3 s."""
        sending = threading.Thread(target=self._provider.shutdown, name="camrt-traces", daemon=True)
        sending.start()
        sending.join(_FLUSH_SECONDS)


def start_tracing(otlp_endpoint: str | None) -> Tracing | None:
    """The traces of a server; None where they are off.

    Args:
        otlp_endpoint: "http://HOST:PORT" of an OTLP collector that speaks gRPC, https for TLS. None: as OTEL_* says.

    Raises:
        BackendUnavailableError: they are asked for, and OpenTelemetry is not installed.
    """
    if otlp_endpoint is None and not _asked_by_environment():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"Traces are asked for and need {error.name}, which is not installed.",
            "Run: pip install 'camrt[otel]'; or unset otlp_endpoint and OTEL_EXPORTER_OTLP_ENDPOINT.",
        ) from error
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(otlp_endpoint)))


def stage(name: str, started: float, ended: float, **attributes: int) -> None:
    """A stage of the current request, as a child of its span; nothing where traces are off.

    Args:
        name: decode, queue, inference, kernels, encode or heavy.
        started: time.monotonic() seconds.
        ended: the same.
        attributes: of the span; ``camrt.`` goes before their names.
    """
    traced = _current.get()
    if traced is None or not traced.span.is_recording():
        return
    offset = time.time_ns() - time.monotonic_ns()
    told = {f"camrt.{key}": value for key, value in attributes.items()}
    span = traced.tracer.start_span(name, traced.context, attributes=told, start_time=offset + round(1e9 * started))
    span.end(offset + round(1e9 * ended))


def failed(error: BaseException, reason: str) -> None:
    """The current request ends with an error: an event of its span, with the text and the traceback."""
    traced = _current.get()
    if traced is not None and traced.span.is_recording():
        traced.span.set_attribute("error.type", reason)
        traced.span.record_exception(error)


class Part:
    """``with Part(name):`` is one of several things that a call does, for example an image of a stream.

    Stages inside are its children, and an error that leaves it is its event.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._child: _Traced | None = None
        self._token: Token[_Traced | None] | None = None

    def __enter__(self) -> None:
        traced = _current.get()
        if traced is not None:
            self._child = _traced(traced.tracer, traced.tracer.start_span(self._name, traced.context))
            self._token = _current.set(self._child)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._child is None or self._token is None:
            return
        if isinstance(error, Exception):
            failed(error, type(error).__name__)
        _current.reset(self._token)
        self._child.span.end()


def _traced(tracer: Tracer, span: Span) -> _Traced:
    from opentelemetry.trace import set_span_in_context

    return _Traced(tracer, span, set_span_in_context(span))


def _asked_by_environment() -> bool:
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    return not off and any(os.environ.get(name) for name in _ENDPOINTS)
