"""The server as a whole: its parts put together, started, drained and stopped."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence

import grpc
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server as add_health

import camrt
from camrt.server.calls import CallInterceptor
from camrt.server.engine import Engine
from camrt.server.errors import SettingsError
from camrt.server.health import SERVICE_NAME as HEALTH
from camrt.server.health import Health
from camrt.server.models import ModelRepository
from camrt.server.open_inference import SERVICE_NAME as OPEN_INFERENCE
from camrt.server.open_inference import OpenInferenceServicer
from camrt.server.open_inference import add_to_server as add_open_inference
from camrt.server.reflection import add_reflection
from camrt.server.security import Access, Certificates
from camrt.server.servicer import ExplainerServicer
from camrt.server.settings import ServerSettings
from camrt.server.telemetry import Telemetry
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
        settings: everything about it.

    Attributes:
        port: where it listens, once it has started.
        metrics_port: where its metrics are, or None.
        repository, engine, health, telemetry: its parts.

    Raises:
        SettingsError: files that the settings name cannot be used.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.port = settings.port
        self.metrics_port: int | None = None
        self.telemetry = Telemetry()
        self.health = Health((EXPLAINER, OPEN_INFERENCE))
        self.repository = ModelRepository(settings, self._models_changed)
        self.engine = Engine(settings, self.telemetry)
        self._calls = CallInterceptor(Access(settings), self.telemetry, settings.log_requests)
        self._certificates = Certificates(settings) if settings.uses_tls else None
        self._server = grpc.aio.server(interceptors=(self._calls,), options=_options(settings), compression=None)
        self._stop_metrics: Callable[[], None] = lambda: None
        self._add_services()
        self.telemetry.watch_models(self.repository.statuses)

    async def start(self) -> None:
        """Listens, loads the models, and says that it serves.

        Health answers from the first moment, NOT_SERVING until every model is warm.

        Raises:
            SettingsError: the address cannot be listened on.
            ModelError, BundleError: see ModelRepository.start.
        """
        self.port = self._listen()
        self._listen_for_metrics()
        await self._server.start()
        await self.repository.start()
        self.health.started()
        logger.info("serving", extra={"host": self.settings.host, "port": self.port, "metrics": self.metrics_port})

    async def stop(self, grace: float | None = None) -> None:
        """Drains and stops.

        Health says NOT_SERVING; requests are taken for drain_delay more; then no more are, and those that were taken
        have ``grace`` seconds to be answered.

        Args:
            grace: default drain_timeout. 0 ends everything at once.
        """
        self.health.drain()
        if grace is None or grace > 0:
            await asyncio.sleep(self.settings.drain_delay)
        await self._drain(self.settings.drain_timeout if grace is None else grace)
        self.engine.close()
        await asyncio.to_thread(self._stop_metrics)
        logger.info("stopped")

    async def _drain(self, grace: float) -> None:
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
        if self.engine.in_flight:
            logger.warning("%d accepted requests were cut off", self.engine.in_flight)
        await self._server.stop(None)

    def _listen(self) -> int:
        address = f"{_bracketed(self.settings.host)}:{self.settings.port}"
        try:
            if self._certificates is not None:
                return self._server.add_secure_port(address, self._certificates.credentials())
            return self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise SettingsError(f"Cannot listen on {address}.", "Is the port in use? Choose another --port.") from error

    def _listen_for_metrics(self) -> None:
        settings = self.settings
        if settings.metrics_port is None:
            return
        try:
            self.metrics_port, self._stop_metrics = self.telemetry.listen(settings.metrics_host, settings.metrics_port)
        except OSError as error:
            address = f"{settings.metrics_host}:{settings.metrics_port}"
            raise SettingsError(
                f"Cannot serve metrics on {address}: {error.strerror}.", "Choose another --metrics-port."
            ) from error

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


async def serve(settings: ServerSettings, started: Callable[[Server], None] = lambda _: None) -> int:
    """Runs a server until SIGTERM or SIGINT, drains it, and returns the exit code.

    SIGHUP loads the models of the repository again. A second SIGTERM or SIGINT stops at once.

    Args:
        settings: everything about it.
        started: called when it serves.

    Returns:
        0, or 1 where a second signal cut accepted requests off.

    Raises:
        CamrtError: as Server.start.
    """
    server = Server(settings)
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
        started(server)
    await stopped
    logger.info("draining")
    draining = asyncio.create_task(server.stop())
    again = asyncio.create_task(_stop_signal(signals, server))
    await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
    if draining.done():
        again.cancel()
        draining.result()
        return 0
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)
    await server.stop(0)
    return 1


async def _stop_signal(signals: asyncio.Queue[int], server: Server) -> None:
    """Returns at SIGTERM or SIGINT; SIGHUP reloads in between."""
    reloads: set[asyncio.Task[None]] = set()
    while await signals.get() == signal.SIGHUP:
        task = asyncio.create_task(server.repository.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)


def _options(settings: ServerSettings) -> Sequence[tuple[str, int]]:
    """Channel arguments. A second server on the port is an error, not a silent share of its requests."""
    return (
        ("grpc.so_reuseport", 0),
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
