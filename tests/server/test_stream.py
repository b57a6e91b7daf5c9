"""Several calls of one stream at a time, answered in order."""

from __future__ import annotations

import asyncio

import pytest

from camrt.server.stream import ordered


async def numbers(count: int, read: list[int] | None = None):
    for number in range(count):
        if read is not None:
            read.append(number)
        yield number


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def test_answers_come_in_order_whatever_finishes_first() -> None:
    async def call(number: int) -> int:
        await asyncio.sleep(0.01 * (5 - number % 5))
        return number * number

    async def collect() -> list[tuple[int, int]]:
        return [(n, task.result()) async for n, task in ordered(numbers(20), call, 4, lambda: False)]

    assert run(collect()) == [(n, n * n) for n in range(20)]


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_are_read_than_may_be_worked_on(limit: int) -> None:
    read: list[int] = []
    ahead = []

    async def call(number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def collect() -> None:
        taken = 0
        async for _ in ordered(numbers(30, read), call, limit, lambda: False):
            taken += 1
            await asyncio.sleep(0.005)  # a slow reader
            ahead.append(len(read) - taken)

    run(collect())
    assert len(read) == 30
    assert max(ahead) <= limit


def test_a_failed_call_is_its_own() -> None:
    async def call(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    async def collect() -> list[BaseException | int]:
        return [task.exception() or task.result() async for _, task in ordered(numbers(5), call, 2, lambda: False)]

    results = run(collect())
    assert results[:2] == [0, 1]
    assert isinstance(results[2], ValueError)
    assert results[3:] == [3, 4]


def test_an_error_of_the_requests_comes_after_the_answers_before_it() -> None:
    async def broken():
        yield 1
        raise ConnectionError("gone")

    async def call(number: int) -> int:
        await asyncio.sleep(0.02)
        return number

    async def collect() -> None:
        async for _, task in ordered(broken(), call, 4, lambda: False):
            got.append(task.result())

    got: list[int] = []
    with pytest.raises(ConnectionError, match="gone"):
        run(collect())
    assert got == [1]


def test_leaving_early_cancels_what_runs() -> None:
    cancelled: list[int] = []

    async def call(number: int) -> int:
        try:
            await asyncio.sleep(0 if number == 0 else 60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    async def leave() -> None:
        others = asyncio.all_tasks()
        stream = ordered(numbers(9), call, 3, lambda: False)
        async for number, _ in stream:
            assert number == 0
            await asyncio.sleep(0.02)
            break
        await stream.aclose()
        assert asyncio.all_tasks() == others

    run(leave())
    assert sorted(cancelled) == [1, 2]


def test_stopping_ends_a_stream_that_waits_for_requests() -> None:
    stopping = asyncio.Event()

    async def forever():
        yield 7
        await asyncio.sleep(60)

    async def call(number: int) -> int:
        return number

    async def collect() -> list[int]:
        got = []
        async for _, task in ordered(forever(), call, 2, stopping.is_set):
            got.append(task.result())
            stopping.set()
        return got

    assert run(collect()) == [7]
