from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from camrt.server.batcher import Batcher, Item


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def item(
    loop: asyncio.AbstractEventLoop, work: str, key: str = "a", queued: float = 0.0, **fields: object
) -> Item[str]:
    return Item(key, work, loop.create_future(), queued, **fields)  # type: ignore[arg-type]


def works(batch: list[Item[str]]) -> list[str]:
    return [item.work for item in batch]


def test_a_request_that_is_alone_does_not_wait(loop: asyncio.AbstractEventLoop) -> None:
    batcher: Batcher[str] = Batcher(8, max_delay=10)
    batcher.add(item(loop, "one"))
    assert works(batcher.take(now=0.0, arriving=0)) == ["one"]
    assert len(batcher) == 0
    assert batcher.take(0.0, 0) == []


def test_a_batch_waits_for_requests_that_are_about_to_arrive_but_not_for_long(loop: asyncio.AbstractEventLoop) -> None:
    batcher: Batcher[str] = Batcher(3, max_delay=10)
    batcher.add(item(loop, "one", queued=100.0))
    assert batcher.take(now=101.0, arriving=2) == []
    assert batcher.due() == 110.0
    batcher.add(item(loop, "two", queued=102.0))
    assert batcher.take(now=102.0, arriving=1) == []
    assert works(batcher.take(now=110.0, arriving=1)) == ["one", "two"]
    assert batcher.due() is None


def test_a_full_batch_does_not_wait(loop: asyncio.AbstractEventLoop) -> None:
    batcher: Batcher[str] = Batcher(2, max_delay=10)
    for number in range(5):
        batcher.add(item(loop, str(number), queued=number))
    assert works(batcher.take(5.0, arriving=9)) == ["0", "1"]
    assert works(batcher.take(5.0, arriving=9)) == ["2", "3"]
    assert batcher.take(5.0, arriving=9) == []
    assert len(batcher) == 1


def test_keys_do_not_mix_and_the_oldest_goes_first(loop: asyncio.AbstractEventLoop) -> None:
    batcher: Batcher[str] = Batcher(4, max_delay=0)
    for work, key, queued in (("b1", "b", 1), ("a2", "a", 2), ("b3", "b", 3), ("a4", "a", 4)):
        batcher.add(item(loop, work, key, queued))
    assert works(batcher.take(5.0, 0)) == ["b1", "b3"]
    assert works(batcher.take(5.0, 0)) == ["a2", "a4"]


def test_a_full_batch_of_another_key_is_not_held_up(loop: asyncio.AbstractEventLoop) -> None:
    batcher: Batcher[str] = Batcher(2, max_delay=10)
    for work, key, queued in (("a", "a", 0), ("b1", "b", 1), ("b2", "b", 2)):
        batcher.add(item(loop, work, key, queued))
    assert works(batcher.take(3.0, arriving=1)) == ["b1", "b2"]
    assert works(batcher.take(10.0, arriving=1)) == ["a"]


def test_what_must_be_alone_is(loop: asyncio.AbstractEventLoop) -> None:
    batcher: Batcher[str] = Batcher(8, max_delay=10)
    for number, alone in enumerate((False, True, True, False)):
        batcher.add(item(loop, str(number), queued=number, alone=alone))
    assert [works(batcher.take(9.0, 0)) for _ in range(3)] == [["0", "3"], ["1"], ["2"]]


def test_requests_that_are_gone_or_too_late_are_left_out(loop: asyncio.AbstractEventLoop) -> None:
    batcher: Batcher[str] = Batcher(8, max_delay=0)
    items = [item(loop, "gone"), item(loop, "late", deadline=5.0), item(loop, "here", deadline=6.0)]
    for one in items:
        batcher.add(one)
    items[0].future.cancel()
    assert works(batcher.take(5.0, 0)) == ["here"]
    assert len(batcher) == 0


def test_a_request_can_be_taken_out_once(loop: asyncio.AbstractEventLoop) -> None:
    batcher: Batcher[str] = Batcher(8, max_delay=0)
    first, second = item(loop, "first", queued=1), item(loop, "second", queued=2)
    batcher.add(first)
    batcher.add(second)
    batcher.discard(first)
    batcher.discard(first)
    assert len(batcher) == 1
    assert batcher.oldest() == 2
    batcher.discard(second)
    assert batcher.oldest() is None
