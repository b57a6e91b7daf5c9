"""What is let in: explanations, bytes and the time until an answer, with paces that a test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from camrt.server import admission as module
from camrt.server.admission import Admission
from camrt.server.errors import OverloadedError

SMALL, LARGE = "small", "large"
PACES = {SMALL: 0.1, LARGE: 1.0, None: 0.1}


@pytest.fixture(autouse=True)
def _time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 100.0))


def admission(items: int = 1000, wait_seconds: float = 1e9, turn: int = 8) -> Admission:
    paces: Callable[[Any], float] = PACES.__getitem__
    return Admission(items, 1 << 20, wait_seconds, turn, paces, lambda: None, lambda _: None)


def admit(door: Admission, items: int = 1, seconds: float | None = None, model: Any = SMALL) -> Any:
    return door.admit(1, items, None if seconds is None else 100.0 + seconds, model)


def refused(door: Admission, match: str, **request: Any) -> OverloadedError:
    with pytest.raises(OverloadedError, match=match) as told, admit(door, **request):
        pass
    return told.value


def test_many_classes_hold_up_a_request_for_one_turn() -> None:
    door = admission()
    with admit(door, items=32):
        refused(door, r"0\.90 s, and the deadline is in 0\.80 s", seconds=0.8)
        with admit(door, seconds=0.95):  # 8 before it, and itself
            pass


def test_many_classes_wait_for_as_many_turns_of_the_others() -> None:
    door = admission()
    with admit(door, items=32), admit(door, items=4):
        refused(door, r"about 3\.60 s", items=16, seconds=3.5)  # 16 + 4 before it, and itself
        with admit(door, items=16, seconds=3.7):
            pass


def test_the_wait_is_that_until_the_first_turn() -> None:
    door = admission(wait_seconds=1.0)
    with admit(door, items=32):
        with admit(door, items=32):
            assert refused(door, r"wait about 1\.6 s").retry_after_ms == 800
        with admit(door, items=32):
            pass


def test_a_large_model_does_not_make_a_small_one_seem_slow() -> None:
    door = admission()
    with admit(door), admit(door):
        with admit(door, seconds=0.35):
            pass
        refused(door, "deadline", seconds=0.35, model=LARGE)
    with admit(door, model=LARGE):
        refused(door, r"1\.10 s", seconds=1.0)


def test_work_that_turns_up_later_is_counted_and_may_be_refused() -> None:
    door = admission(items=10)
    with admit(door, items=4):
        with admit(door):
            door.claim(6, None, SMALL)  # type: ignore[arg-type]
            assert (door.items, door.arriving, door.requests) == (10, 10, 2)
            refused(door, "10 explanations")
        with admit(door), pytest.raises(OverloadedError, match="5 explanations"):
            door.claim(7, None, SMALL)  # type: ignore[arg-type]
        with admit(door), pytest.raises(OverloadedError, match=r"1\.00 s"):
            door.claim(6, 100.9, SMALL)  # type: ignore[arg-type]
        assert (door.items, door.arriving) == (4, 4)
    with admit(door):
        door.claim(64, 100.1, SMALL)  # type: ignore[arg-type]  # alone
        assert door.items == 64
    assert (door.items, door.arriving, door.requests) == (0, 0, 0)


def test_work_that_was_admitted_is_not_counted_again() -> None:
    door = admission()
    with admit(door, items=6):
        for _ in range(2):
            door.claim(3, None, SMALL)  # type: ignore[arg-type]
            door.arrived(10, 3)
        assert (door.items, door.arriving, door.nbytes) == (6, 0, 21)
        door.claim(3, None, SMALL)  # type: ignore[arg-type]
        assert (door.items, door.arriving) == (9, 3)


def test_what_has_run_is_before_nobody() -> None:
    door = admission()
    with admit(door), admit(door, items=10):
        door.ran(8)
        refused(door, r"about 0\.40 s", seconds=0.3)
        door.ran(99)
        with admit(door, seconds=0.25):
            pass


def test_only_the_parts_of_one_request_take_turns() -> None:
    async def test() -> None:
        door, order = admission(), []

        async def part(name: str) -> None:
            async with door.turn():
                order.append(name)
                await asyncio.sleep(0)
                order.append(name)

        with admit(door):
            first = [asyncio.create_task(part("a")), asyncio.create_task(part("b"))]
        with admit(door):
            second = asyncio.create_task(part("c"))
        await asyncio.gather(*first, second)
        assert order == ["a", "c", "a", "c", "b", "b"]

    asyncio.run(test())


def test_one_with_many_takes_short_turns_where_others_want_no_more() -> None:
    door = admission(turn=2)
    assert door.share(8) == 8  # nobody has asked to be let in
    with admit(door, items=32):
        assert door.share(8) == 8
        with admit(door, items=3), admit(door, items=32):
            assert door.share(8) == 8
        with admit(door, items=2), admit(door, items=32):
            assert (door.share(8), door.share(1)) == (2, 1)
    with admit(door, items=2), admit(door, items=32):
        assert door.share(8) == 2
        with admit(door):
            door.ran(1)
    with admit(door):
        door.ran(1)
        with admit(door, items=32):
            assert door.share(8) == 8
