"""Calls of one stream: several at a time, their answers in order; one that fails is an answer, the stream goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from camrt.errors import CamrtError
from camrt.server.errors import DrainingError
from camrt.server.replies import check_reply
from camrt.server.settings import ServerSettings
from camrt.server.status import Status, log_failure, status_of
from camrt.server.tracebacks import drop_tracebacks

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Sent = TypeVar("Sent", bound=Message)

_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Streaming(Generic[Request, Reply, Sent]):
    """How the requests of a stream are answered.

    Attributes:
        call: answers one.
        answer: the message of a request and its reply.
        refuse: the message of a request that failed.
        settings: how many are worked on at a time, and the largest message: larger ones are refused, since gRPC would
            end the stream with them.
        draining: whether the server stops.
        request_id: of the stream.
    """

    call: Callable[[Request], Coroutine[Any, Any, Reply]]
    answer: Callable[[Request, Reply], Sent]
    refuse: Callable[[Request, Status], Sent]
    settings: ServerSettings
    draining: Callable[[], bool]
    request_id: str

    async def replies(self, requests: AsyncIterable[Request]) -> AsyncGenerator[Sent, None]:
        """One message a request, in their order.

        Raises:
            DrainingError: after the last answer, where the server stops.
        """
        async with aclosing(ordered(requests, self.call, self.settings.stream_in_flight, self.draining)) as answers:
            async for request, task in answers:
                yield self._told(request, task)
        if self.draining():
            raise DrainingError

    def _told(self, request: Request, task: asyncio.Task[Reply]) -> Sent:
        error = DrainingError() if task.cancelled() else task.exception()
        if error is None:
            message = self.answer(request, task.result())
            try:
                check_reply(message, self.settings.message_bytes)
            except CamrtError as too_large:
                error = too_large
            else:
                return message
        status = status_of(error, self.request_id)
        log_failure(error, status, self.request_id)
        drop_tracebacks(error)
        return self.refuse(request, status)


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
