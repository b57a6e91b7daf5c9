"""Encoding in pieces: callers that leave stop it, and large requests take turns."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from camrt.server.encoding import PIECE_PIXELS, Encoder
from camrt.server.engine import Engine
from camrt.server.errors import DeadlineError
from camrt.server.settings import ServerSettings

LARGE = 2 * PIECE_PIXELS


def with_encoder(test: Callable[[Encoder], Awaitable[None]], pixels: int = 2 * LARGE) -> None:
    async def run() -> None:
        engine = Engine(ServerSettings(threads=1, io_threads=4))
        try:
            await test(Encoder(engine, pixels))
        finally:
            engine.close()

    asyncio.run(asyncio.wait_for(run(), 60))


class Piece:
    """A piece that runs until it is let go."""

    def __init__(self) -> None:
        self.started, self.free = threading.Event(), threading.Event()

    def __call__(self) -> int:
        self.started.set()
        assert self.free.wait(20)
        return 7

    async def runs(self) -> None:
        assert await asyncio.to_thread(self.started.wait, 20)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0.005)


def test_pieces_run_one_after_the_other() -> None:
    async def test(encoder: Encoder) -> None:
        running: list[int] = []

        def piece(number: int) -> int:
            running.append(number)
            assert len(running) == 1
            time.sleep(0.01)
            running.clear()
            return number

        assert await encoder.run([lambda n=n: piece(n) for n in range(5)], 1, None) == [0, 1, 2, 3, 4]

    with_encoder(test)


@pytest.mark.parametrize("pixels", [1, LARGE])
def test_a_caller_that_leaves_stops_it_after_the_piece_that_runs(pixels: int) -> None:
    async def test(encoder: Encoder) -> None:
        first, second = Piece(), Piece()
        task = asyncio.create_task(encoder.run([first, second], pixels, None))
        await first.runs()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        first.free.set()
        second.free.set()
        await settled()
        assert not second.started.is_set()

    with_encoder(test)


def test_a_piece_that_waits_for_a_thread_does_not_run_for_a_caller_that_has_left() -> None:
    async def test(encoder: Encoder) -> None:
        busy = [Piece() for _ in range(4)]
        others = [asyncio.create_task(encoder.run([piece], 1, None)) for piece in busy]
        for piece in busy:
            await piece.runs()
        late = Piece()
        task = asyncio.create_task(encoder.run([late], 1, None))
        await settled()
        task.cancel()
        await settled()
        for piece in (*busy, late):
            piece.free.set()
        assert await asyncio.gather(*others) == [[7]] * 4
        await settled()
        assert not late.started.is_set()

    with_encoder(test)


def test_large_requests_take_turns_and_small_ones_do_not_wait() -> None:
    async def test(encoder: Encoder) -> None:
        pieces = [Piece() for _ in range(3)]
        tasks = [asyncio.create_task(encoder.run([piece], LARGE, None)) for piece in pieces]
        await pieces[0].runs()
        await pieces[1].runs()
        assert await encoder.run([lambda: 3], PIECE_PIXELS, None) == [3]
        assert not pieces[2].started.is_set()
        pieces[0].free.set()
        await pieces[2].runs()
        for piece in pieces:
            piece.free.set()
        assert await asyncio.gather(*tasks) == [[7]] * 3

    with_encoder(test)


def test_pixels_are_free_when_the_thread_has_ended_not_when_the_caller_leaves() -> None:
    async def test(encoder: Encoder) -> None:
        first, second = Piece(), Piece()
        left = asyncio.create_task(encoder.run([first], LARGE, None))
        await first.runs()
        left.cancel()
        waiting = asyncio.create_task(encoder.run([second], LARGE, None))
        await settled()
        assert not second.started.is_set()
        first.free.set()
        await second.runs()
        second.free.set()
        assert await waiting == [7]

    with_encoder(test, LARGE)


def test_whoever_leaves_the_line_holds_nobody_up() -> None:
    async def test(encoder: Encoder) -> None:
        first, second, third = Piece(), Piece(), Piece()
        tasks = [asyncio.create_task(encoder.run([piece], LARGE, None)) for piece in (first, second, third)]
        await first.runs()
        tasks[1].cancel()
        first.free.set()
        await third.runs()
        third.free.set()
        assert await tasks[2] == [7]
        assert not second.started.is_set()

    with_encoder(test, LARGE)


def test_a_request_of_more_pixels_than_there_are_has_its_turn_alone() -> None:
    async def test(encoder: Encoder) -> None:
        assert await encoder.run([lambda: 1], 10 * LARGE, None) == [1]
        assert await encoder.run([lambda: 2], LARGE, None) == [2]

    with_encoder(test, LARGE)


def test_errors_give_their_pixels_back() -> None:
    async def test(encoder: Encoder) -> None:
        def broken() -> int:
            raise ValueError("broken")

        for _ in range(3):
            with pytest.raises(ValueError, match="broken"):
                await encoder.run([broken], LARGE, None)
        assert await encoder.run([lambda: 1], LARGE, None) == [1]

    with_encoder(test, LARGE)


def test_deadlines_in_the_line_and_between_pieces() -> None:
    async def test(encoder: Encoder) -> None:
        first, second = Piece(), Piece()
        task = asyncio.create_task(encoder.run([first], LARGE, None))
        await first.runs()
        with pytest.raises(DeadlineError):
            await encoder.run([second], LARGE, time.monotonic() + 0.05)
        first.free.set()
        assert await task == [7]
        second.free.set()
        with pytest.raises(DeadlineError):
            await encoder.run([lambda: time.sleep(0.1) or 0, second], 1, time.monotonic() + 0.05)
        assert not second.started.is_set()

    with_encoder(test, LARGE)


def test_what_fails_for_a_caller_that_has_left_is_nobodys_error() -> None:
    async def test(encoder: Encoder) -> None:
        told: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        piece = Piece()

        def failing() -> int:
            piece()
            raise DeadlineError("The deadline passed.", "Allow more time.")

        task = asyncio.create_task(encoder.run([failing], LARGE, None))
        await piece.runs()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        piece.free.set()
        await settled()
        del task
        gc.collect()
        await settled()
        assert told == []

    with_encoder(test)
