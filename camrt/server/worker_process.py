"""A worker as its supervisor sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Self

from camrt.server.settings import ServerSettings
from camrt.server.shared_metrics import FOLDER_VARIABLE
from camrt.server.worker_protocol import WorkerReport, WorkerTask

_MODULE = "camrt.server.worker"


class WorkerProcess:
    """One process of a server, in a process group of its own: a signal from the terminal reaches its parent only.

    Attributes:
        number: of the worker.
        process_id: of the process.
        error: why it could not start; empty where it did not say.
    """

    def __init__(self, number: int, process: Process) -> None:
        self.number, self._process = number, process
        self.process_id = process.pid
        self.error = ""
        self._ready = self._reload = False

    @classmethod
    async def start(cls, number: int, settings: ServerSettings, folder: Path | None) -> Self:
        """Starts a worker.

        Args:
            number: of the worker.
            settings: handed over as they are, through a pipe.
            folder: for the files of its metrics, or None.
        """
        environment = {name: value for name, value in os.environ.items() if name != FOLDER_VARIABLE}
        if folder is not None:
            environment[FOLDER_VARIABLE] = str(folder)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", _MODULE, stdin=PIPE, stdout=PIPE, env=environment, process_group=0
        )
        worker = cls(number, process)
        task = WorkerTask(number, settings.model_dump(mode="json"), folder is not None)
        await worker._send(task.line())
        return worker

    async def wait_ready(self) -> bool:
        """Whether it serves; False once it cannot, or has ended."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            return False
        self.error = WorkerReport.read(line.decode()).error
        self._ready = not self.error
        if self._ready and self._reload:
            self._signal(signal.SIGHUP)
        return self._ready

    async def wait(self) -> int:
        """Its exit code, once it has ended; minus a signal's number where that ended it."""
        return await self._process.wait()

    def reload(self) -> None:
        """Has it read the model repository again; one that is still starting does so when it serves."""
        self._reload = True
        if self._ready:
            self._signal(signal.SIGHUP)

    def stop(self) -> None:
        """Has it drain; a second time, stop at once."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _send(self, line: str) -> None:
        """The pipe stays open: that it ends tells the worker that its parent has gone."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(line.encode())
            await self._process.stdin.drain()
