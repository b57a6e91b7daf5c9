"""Several server processes on one port, and the process that looks after them. It never imports grpc.

gRPC must not be forked, so workers are started as new interpreters. They listen on one port with SO_REUSEPORT, and the
kernel shares the connections out. The parent holds the port, starts dead workers again, passes signals on, and serves
the metrics of all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camrt.server import exits
from camrt.server.errors import ServerError, WorkerStartError
from camrt.server.ports import PortClaim
from camrt.server.settings import ServerSettings
from camrt.server.shared_metrics import WorkersMetrics
from camrt.server.telemetry import serve_metrics
from camrt.server.worker_process import WorkerProcess

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_STEADY_SECONDS = 60.0
_MOST_FAILED_STARTS = 5
_KILL_AFTER = 10.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
logger = logging.getLogger(__name__)


async def supervise(settings: ServerSettings, started: Callable[[int, int | None], None]) -> int:
    """Runs workers until SIGTERM or SIGINT, lets them drain, and returns the exit code.

    SIGHUP goes to every worker. A second SIGTERM or SIGINT stops them at once.

    Args:
        settings: of the workers; there are ``workers`` of them.
        started: called with the port and that of the metrics when all of them serve.

    Returns:
        See camrt.server.exits.

    Raises:
        SettingsError: the port or that of the metrics cannot be had.
        WorkerStartError: a worker says why it cannot start.
    """
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(PortClaim(settings.host, settings.port)).port
        folder: Path | None = None
        if settings.metrics_port is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="camrt-metrics-")))
        supervisor = Supervisor(settings.model_copy(update={"port": port}), folder)
        metrics_port = None
        if supervisor.metrics is not None and settings.metrics_port is not None:
            registry = supervisor.metrics.registry
            metrics_port, stop = serve_metrics(registry, settings.metrics_host, settings.metrics_port)
            stack.callback(stop)
        return await supervisor.run(lambda: started(port, metrics_port))


@dataclass(frozen=True, slots=True)
class _End:
    """How a worker ended: its exit code, in words too, whether it served, and for a minute, and what it said."""

    code: int
    told: str
    ready: bool = False
    steady: bool = False
    error: str = ""
    process_id: int = 0


class Supervisor:
    """Keeps the workers of a server alive.

    A worker that ends is started again after a pause, which doubles with every end in a row and is forgotten once a
    worker has served for a minute. Five starts in a row that fail end the server.

    Args:
        settings: of the workers; the port is one that is held.
        folder: for the files of their metrics, or None.

    Attributes:
        metrics: of all of them, or None.
    """

    def __init__(self, settings: ServerSettings, folder: Path | None) -> None:
        self._settings, self._folder = settings, folder
        self.metrics = None if folder is None else WorkersMetrics(folder, self.processes)
        self._workers: dict[int, WorkerProcess] = {}
        self._stopping = asyncio.Event()
        self._codes: list[int] = []
        self._ready = [asyncio.Event() for _ in range(settings.workers)]

    def processes(self) -> dict[int, int]:
        """Process ids by number of a worker, of those that live."""
        return {number: worker.process_id for number, worker in list(self._workers.items())}

    async def run(self, started: Callable[[], None]) -> int:
        """See supervise."""
        signals: asyncio.Queue[int] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        for number in (*_STOP_SIGNALS, signal.SIGHUP):
            loop.add_signal_handler(number, signals.put_nowait, number)
        keepers = [asyncio.create_task(self._keep(number)) for number in range(self._settings.workers)]
        announcing = asyncio.create_task(self._announce(started))
        stop = asyncio.create_task(self._stop_signal(signals))
        await asyncio.wait({*keepers, stop}, return_when=asyncio.FIRST_COMPLETED)
        announcing.cancel()
        told = stop.done()
        self._stopping.set()
        logger.info("draining") if told else logger.critical("A worker cannot be kept alive; the others are stopped.")
        again = asyncio.create_task(self._stop_signal(signals)) if told else stop
        at_once = await self._end(keepers, again)
        again.cancel()
        failures = [error for keeper in keepers if (error := keeper.exception()) is not None]
        if failures:
            return _code_of(failures[0])
        logger.info("stopped")
        return exits.STOPPED_AT_ONCE if at_once else max(self._codes, default=exits.DRAINED)

    async def _announce(self, started: Callable[[], None]) -> None:
        for ready in self._ready:
            await ready.wait()
        logger.info("serving", extra={"host": self._settings.host, "port": self._settings.port})
        started()

    async def _stop_signal(self, signals: asyncio.Queue[int]) -> None:
        """Returns at SIGTERM or SIGINT; SIGHUP is passed on in between."""
        while await signals.get() == signal.SIGHUP:
            for worker in self._workers.values():
                worker.reload()

    async def _end(self, keepers: list[asyncio.Task[None]], again: asyncio.Task[None]) -> bool:
        """Lets the workers drain; at ``again``, or when they take much longer than they may, ends them at once."""
        for worker in self._workers.values():
            worker.stop()
        ended: asyncio.Future[Any] = asyncio.gather(*keepers, return_exceptions=True)
        longest = self._settings.drain_delay + self._settings.drain_timeout + _KILL_AFTER
        await asyncio.wait({ended, again}, timeout=longest, return_when=asyncio.FIRST_COMPLETED)
        at_once = not ended.done()
        if at_once:
            for worker in self._workers.values():
                worker.stop()
            await asyncio.wait({ended}, timeout=_KILL_AFTER)
            for worker in self._workers.values():
                worker.kill()
        await ended
        return at_once and again.done()

    async def _keep(self, number: int) -> None:
        """Runs one worker after another; ends where the server stops, or raises where it makes no sense to go on."""
        ends = failed_starts = 0
        while not self._stopping.is_set():
            end = await self._run(number)
            if self._stopping.is_set():
                self._codes.append(_drained(end))
                return
            ends = 1 if end.steady else ends + 1
            failed_starts = 0 if end.ready else failed_starts + 1
            logger.error("Worker %d ended with %s.", number, end.told, extra={"pid": end.process_id})
            if end.error and not self._ready[number].is_set():
                raise WorkerStartError(end.error)
            if failed_starts == _MOST_FAILED_STARTS:
                raise ServerError(f"Worker {number} did not start {failed_starts} times in a row.", "See the log.")
            with contextlib.suppress(TimeoutError):
                pause = min(_FIRST_PAUSE * 2 ** (ends - 1), _LONGEST_PAUSE)
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _run(self, number: int) -> _End:
        """One worker, from its start to its end."""
        try:
            worker = await WorkerProcess.start(number, self._settings, self._folder)
        except OSError as error:
            return _End(exits.CANNOT_START, f"{error.strerror}: it was not started")
        if self._stopping.is_set():
            worker.stop()
        loop = asyncio.get_running_loop()
        self._workers[number] = worker
        try:
            ready = await worker.wait_ready()
            since = loop.time()
            if ready:
                logger.info("Worker %d serves.", number, extra={"pid": worker.process_id})
                self._served(number)
            code = await worker.wait()
        finally:
            del self._workers[number]
        if self.metrics is not None:
            self.metrics.ended(worker.process_id)
            self.metrics.ready.dec(int(ready))
        steady = ready and loop.time() - since >= _STEADY_SECONDS
        return _End(code, _told(code), ready, steady, worker.error, worker.process_id)

    def _served(self, number: int) -> None:
        if self.metrics is not None:
            self.metrics.ready.inc()
            self.metrics.restarts.inc(int(self._ready[number].is_set()))
        self._ready[number].set()


def _drained(end: _End) -> int:
    """What the end of a worker says about a drain: one that did not serve yet had nothing to lose."""
    if not end.ready:
        return exits.DRAINED
    return end.code if end.code in (exits.DRAINED, exits.STOPPED_AT_ONCE) else exits.CUT_OFF


def _code_of(error: BaseException) -> int:
    """Exit code of a failure that is told by the log; others are raised."""
    if isinstance(error, WorkerStartError) or not isinstance(error, ServerError):
        raise error
    logger.critical("%s", error)
    return exits.WORKERS_FAIL


def _told(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
