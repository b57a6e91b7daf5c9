"""A whole server on a free loopback port, in a thread of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from camrt.server.app import Server
from camrt.server.settings import ServerSettings


class Loopback:
    """``with Loopback(threads=1) as server``: ``server.address`` answers until the block ends.

    Args:
        settings: as of ServerSettings; the port is a free one.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = ServerSettings(**{"port": 0, "threads": 1, **settings})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loopback", daemon=True)
        self.app: Server
        self.address = ""

    def __enter__(self) -> Loopback:
        self._thread.start()
        self.call(self._start)
        return self

    def __exit__(self, *exception: object) -> None:
        self.call(lambda: self.app.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    def call(self, function: Callable[[], Awaitable[Any]]) -> Any:
        """Runs a coroutine function on the server's loop."""

        async def run() -> Any:
            return await function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(60)

    async def _start(self) -> None:
        self.app = Server(self.settings)
        await self.app.start()
        self.address = f"127.0.0.1:{self.app.port}"
