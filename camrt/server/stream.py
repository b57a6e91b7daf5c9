"""Calls of one stream: several at a time, their answers in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from typing import Any, TypeVar

Request = TypeVar("Request")
Reply = TypeVar("Reply")

_LOOK_SECONDS = 0.2


async def ordered(
    requests: AsyncIterable[Request],
    call: Callable[[Request], Coroutine[Any, Any, Reply]],
    limit: int,
    stopping: Callable[[], bool],
) -> AsyncGenerator[tuple[Request, asyncio.Task[Reply]], None]:
    """Requests with their finished calls, in the order of the requests.

    A request is read only when fewer than ``limit`` are worked on or wait to be taken: a reader that is slow slows the
    sender down, and holds no more than that.

    Args:
        requests: read until they end.
        call: what to do with each.
        limit: most requests that have been read and whose answer has not been taken.
        stopping: looked at when nothing has happened for a while. Once it is true and nothing is worked on, this ends,
            though there might be more requests.
    """
    slots = asyncio.Semaphore(limit)
    started: asyncio.Queue[tuple[Request, asyncio.Task[Reply]] | None] = asyncio.Queue()
    running: set[asyncio.Task[Reply]] = set()

    async def read() -> None:
        iterator = aiter(requests)
        while True:
            await slots.acquire()
            try:
                request = await anext(iterator)
            except StopAsyncIteration:
                return
            task = asyncio.create_task(call(request))
            running.add(task)
            started.put_nowait((request, task))

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: started.put_nowait(None))
    try:
        while (item := await _next(started, stopping)) is not None:
            await asyncio.wait({item[1]})
            running.discard(item[1])
            yield item
            slots.release()
        if reader.done():
            reader.result()
    finally:
        await _end({reader, *running})


async def _next(queue: asyncio.Queue[Reply | None], stopping: Callable[[], bool]) -> Reply | None:
    """The next item, or None where the queue is empty and ``stopping`` says so."""
    while True:
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                return await queue.get()
        except TimeoutError:
            if stopping():
                return None


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
