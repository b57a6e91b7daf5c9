"""The server as a whole: its parts put together, started, drained and stopped."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence

import grpc
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server as add_health

import camrt
from camrt.server import exits
from camrt.server.calls import CallInterceptor
from camrt.server.collector import settle
from camrt.server.engine import Engine
from camrt.server.errors import SettingsError
from camrt.server.health import SERVICE_NAME as HEALTH
from camrt.server.health import Health
from camrt.server.models import ModelRepository
from camrt.server.open_inference import SERVICE_NAME as OPEN_INFERENCE
from camrt.server.open_inference import OpenInferenceServicer
from camrt.server.open_inference import add_to_server as add_open_inference
from camrt.server.polling import Poller
from camrt.server.reflection import add_reflection
from camrt.server.security import Access, Certificates
from camrt.server.servicer import ExplainerServicer
from camrt.server.settings import ServerSettings
from camrt.server.telemetry import Telemetry
from camrt.server.tracing import start_tracing
from camrt.v1.explainer_pb2_grpc import add_ExplainerServiceServicer_to_server as add_explainer

EXPLAINER = "camrt.v1.ExplainerService"

_POLL_SECONDS = 0.01
_QUIET_POLLS = 10
_IDLE_POLLS = 100
_AGE_GRACE_MS = 60_000
_PROBE_ANSWER_MS = 20_000
_LEAST_PING_MS = 10_000
logger = logging.getLogger(__name__)


class Server:
    """A server on one port. Made and used on one event loop.

    Args:
        settings: everything about it. Of several workers this is one: it shares the port.
        telemetry: where it counts; default in a registry of its own.

    Attributes:
        port: where it listens, once it has started.
        metrics_port: where its metrics are, or None. One of several processes has none of its own.
        repository, engine, health, telemetry: its parts.

    Raises:
        SettingsError: files that the settings name cannot be used.
    """

    def __init__(self, settings: ServerSettings, telemetry: Telemetry | None = None) -> None:
        self.settings = settings
        self.port = settings.port
        self.metrics_port: int | None = None
        self.telemetry = telemetry or Telemetry()
        self.health = Health((EXPLAINER, OPEN_INFERENCE))
        self.repository = ModelRepository(settings, self._models_changed)
        self.engine = Engine(settings, self.telemetry)
        self._tracing = start_tracing(settings.otlp_endpoint)
        self._calls = CallInterceptor(
            Access(settings), self.telemetry, settings.log_requests, self._tracing, self.engine.check_room
        )
        self._certificates = Certificates(settings) if settings.uses_tls else None
        self._server = grpc.aio.server(interceptors=(self._calls,), options=_options(settings), compression=None)
        self._stop_metrics: Callable[[], None] = lambda: None
        self._polling: asyncio.Task[None] | None = None
        self._add_services()
        self.telemetry.watch_models(self.repository.statuses)

    async def start(self) -> None:
        """Listens, loads the models, and says that it serves.

        Health answers from the first moment, NOT_SERVING until every model is warm. One of several workers loads
        before it listens, since the others can answer meanwhile.

        Raises:
            SettingsError: the address cannot be listened on.
            ModelError, BundleError: see ModelRepository.start.
        """
        settings = self.settings
        if settings.workers > 1:
            await self._load()
            self.port = self._listen()
            await self._server.start()
        else:
            self.port = self._listen()
            if settings.metrics_port is not None:
                self.metrics_port, self._stop_metrics = self.telemetry.listen(
                    settings.metrics_host, settings.metrics_port
                )
            await self._server.start()
            await self._load()
        self.health.started()
        logger.info("serving", extra={"host": self.settings.host, "port": self.port, "metrics": self.metrics_port})

    async def stop(self, grace: float | None = None) -> int:
        """Drains and stops.

        Health says NOT_SERVING; requests are taken for drain_delay more; then no more are, and those that were taken
        have ``grace`` seconds to be answered.

        Args:
            grace: default drain_timeout. 0 ends everything at once.

        Returns:
            Accepted requests that were cut off. Each is logged as a call with code CANCELLED.
        """
        if self._polling is not None:
            self._polling.cancel()
        self.health.drain()
        if grace is None or grace > 0:
            await asyncio.sleep(self.settings.drain_delay)
        cut_off = await self._drain(self.settings.drain_timeout if grace is None else grace)
        self.engine.close()
        await asyncio.to_thread(self._stop_metrics)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        logger.info("stopped")
        return cut_off

    async def _load(self) -> None:
        seconds = self.settings.poll_seconds
        poller = Poller(self.repository, seconds)
        if seconds > 0:
            await poller.begin()
        await self.repository.start()
        if seconds > 0:
            self._polling = asyncio.create_task(poller.run())

    async def _drain(self, grace: float) -> int:
        """Refuses what is new with UNAVAILABLE, waits for what was taken, and only then closes the port.

        gRPC cancels calls that have arrived and were not handed over when it stops, so it is stopped when none has come
        for a while, or where clients do not cease to call, a moment after the last accepted request was answered.
        """
        self.engine.drain()
        end = asyncio.get_running_loop().time() + grace
        quiet = idle = 0
        while asyncio.get_running_loop().time() < end and quiet < _QUIET_POLLS and idle < _IDLE_POLLS:
            await asyncio.sleep(_POLL_SECONDS)
            quiet = 0 if self._calls.in_flight else quiet + 1
            idle = 0 if self.engine.in_flight else idle + 1
        cut_off = self.engine.in_flight
        if cut_off:
            logger.error(
                "%d accepted requests were cut off after %g seconds", cut_off, grace, extra={"cut_off": cut_off}
            )
        await self._server.stop(None)
        return cut_off

    def _listen(self) -> int:
        address = f"{_bracketed(self.settings.host)}:{self.settings.port}"
        try:
            if self._certificates is not None:
                return self._server.add_secure_port(address, self._certificates.credentials())
            return self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise SettingsError(f"Cannot listen on {address}.", "Is the port in use? Choose another --port.") from error

    def _add_services(self) -> None:
        register: Callable[..., None] = add_explainer  # generated code has no types
        register(ExplainerServicer(self.repository, self.engine, self.settings), self._server)
        open_inference = OpenInferenceServicer(self.repository, self.engine, self.settings, camrt.__version__)
        add_open_inference(open_inference, self._server)
        add_health(self.health, self._server)
        if self.settings.uses_reflection:
            add_reflection(self._server, (EXPLAINER, OPEN_INFERENCE, HEALTH))

    def _models_changed(self) -> None:
        self.health.models_changed(self.repository.statuses())


async def serve(
    settings: ServerSettings, started: Callable[[Server], None] = lambda _: None, telemetry: Telemetry | None = None
) -> int:
    """Runs a server until SIGTERM or SIGINT, drains it, and returns the exit code.

    SIGHUP loads the models of the repository again. A second SIGTERM or SIGINT stops at once.

    Args:
        settings: everything about it.
        started: called when it serves.
        telemetry: as of Server.

    Returns:
        0; 1 where a second signal stopped it at once; 3 where accepted requests took longer than drain_timeout.

    Raises:
        CamrtError: as Server.start.
    """
    server = Server(settings, telemetry)
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, signals.put_nowait, number)
    starting = asyncio.create_task(server.start())
    stopped = asyncio.create_task(_stop_signal(signals, server))
    await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
    elif starting.exception() is not None:
        stopped.cancel()
        await server.stop(0)
        starting.result()
    else:
        settle()
        started(server)
    await stopped
    logger.info("draining")
    draining = asyncio.create_task(server.stop())
    again = asyncio.create_task(_stop_signal(signals, server))
    await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
    if draining.done():
        again.cancel()
        return exits.CUT_OFF if draining.result() else exits.DRAINED
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)
    await server.stop(0)
    return exits.STOPPED_AT_ONCE


async def _stop_signal(signals: asyncio.Queue[int], server: Server) -> None:
    """Returns at SIGTERM or SIGINT; SIGHUP reloads in between."""
    reloads: set[asyncio.Task[None]] = set()
    while await signals.get() == signal.SIGHUP:
        task = asyncio.create_task(server.repository.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)


def _options(settings: ServerSettings) -> Sequence[tuple[str, int]]:
    """Channel arguments. Of one process a second server on the port is an error, not a silent share of its requests."""
    return (
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.max_receive_message_length", settings.message_bytes),
        ("grpc.max_send_message_length", settings.message_bytes),
        ("grpc.max_concurrent_streams", settings.concurrent_streams),
        ("grpc.keepalive_time_ms", int(1000 * settings.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _PROBE_ANSWER_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_PING_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _LEAST_PING_MS),
        ("grpc.max_connection_age_ms", int(1000 * settings.connection_age_seconds)),
        ("grpc.max_connection_age_grace_ms", _AGE_GRACE_MS),
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
