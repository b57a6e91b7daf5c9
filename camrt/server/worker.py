"""One of several server processes. Started by camrt.server.supervisor, never by hand.

It reads one line of JSON from stdin (WorkerTask), answers with one line of JSON on stdout (WorkerReport) when it serves
or cannot, and drains when stdin ends: a worker does not outlive the process that started it, and clears up after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import threading

from camrt.errors import CamrtError
from camrt.server import exits
from camrt.server.app import Server, serve
from camrt.server.logs import set_up_logs
from camrt.server.settings import ServerSettings
from camrt.server.shared_metrics import FOLDER_VARIABLE, SharedTelemetry
from camrt.server.worker_protocol import WorkerReport, WorkerTask

_STDIN = 0
_orphaned = threading.Event()


def main() -> int:
    """Serves until a signal comes, and leaves with the exit code; returns it where it cannot start."""
    task = WorkerTask.read(_first_line())
    settings = ServerSettings(**task.settings)
    set_up_logs(settings.log_level, worker=task.number)
    threading.Thread(target=_watch_parent, name="parent", daemon=True).start()
    try:
        asyncio.run(exits.leave_after(_serve(settings, task.shares_metrics)))
    except CamrtError as error:
        _report(WorkerReport(str(error)))
        return exits.CANNOT_START


async def _serve(settings: ServerSettings, shares_metrics: bool) -> int:
    telemetry = SharedTelemetry() if shares_metrics else None
    publishing = None if telemetry is None else asyncio.create_task(telemetry.keep_publishing())

    def started(_: Server) -> None:
        if telemetry is not None:
            telemetry.publish()
        _report(WorkerReport())

    try:
        return await serve(settings, started, telemetry)
    finally:
        if publishing is not None:
            publishing.cancel()
        if _orphaned.is_set() and shares_metrics:
            shutil.rmtree(os.environ[FOLDER_VARIABLE], ignore_errors=True)


def _report(report: WorkerReport) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent has gone; _watch_parent sees it, too
        sys.stdout.write(report.line())
        sys.stdout.flush()


def _first_line() -> str:
    """Without a buffer, which would be locked while the thread below waits."""
    data = b""
    while not data.endswith(b"\n") and (part := os.read(_STDIN, 1 << 16)):
        data += part
    return data.decode()


def _watch_parent() -> None:
    while os.read(_STDIN, 1):
        pass
    _orphaned.set()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    exits.leave(main())
