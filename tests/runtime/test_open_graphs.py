"""Which graphs stay open: those that are kept or used, and of the others the last few."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from camrt.runtime.open_graphs import OpenGraphs


class Engine:
    """Says when it is closed: when nobody holds it any more."""

    def __init__(self, name: str, living: list[str]) -> None:
        self.name, self.living = name, living
        living.append(name)

    def __del__(self) -> None:
        self.living.remove(self.name)


class Graphs:
    """OpenGraphs of such engines, and which of them are alive."""

    def __init__(self, kept: tuple[str, ...] = (), most: int = 2) -> None:
        self.living: list[str] = []
        self.graphs: OpenGraphs[Engine] = OpenGraphs(kept, most)
        self.before: Callable[[str], object] = lambda _: None

    def made(self, name: str) -> Engine:
        self.before(name)
        return Engine(name, self.living)

    def use(self, *names: str) -> None:
        for name in names:
            with self.graphs.use(name, lambda name=name: self.made(name)) as engine:
                assert engine.name == name


def test_the_least_recently_used_is_closed() -> None:
    graphs = Graphs()
    graphs.use("a", "b", "a", "c")
    assert graphs.living == ["a", "c"]
    graphs.use("b")
    assert graphs.living == ["c", "b"]


def test_one_is_closed_before_another_is_opened() -> None:
    graphs, seen = Graphs(), []
    graphs.before = lambda _: seen.append(len(graphs.living))
    graphs.use("a", "b", "c", "d")
    assert seen == [0, 1, 1, 1]


def test_what_is_kept_neither_closes_nor_counts() -> None:
    graphs = Graphs(kept=("k", "l"))
    graphs.use("k", "a", "b", "c", "d", "l")
    assert graphs.living == ["k", "c", "d", "l"]
    graphs.use("k", "e", "f")
    assert graphs.living == ["k", "l", "e", "f"]


def test_what_is_used_is_not_closed_until_it_is_not() -> None:
    graphs = Graphs(most=1)
    with ExitStack() as stack:
        for name in ("a", "b", "a"):
            stack.enter_context(graphs.graphs.use(name, lambda name=name: graphs.made(name)))
        graphs.use("c")
        assert graphs.living == ["a", "b"]
        with graphs.graphs.use("a", lambda: graphs.made("again")) as engine:
            assert engine.name == "a"
    del engine
    assert len(graphs.living) == 1


def test_a_graph_that_cannot_be_opened_is_tried_again() -> None:
    graphs = Graphs()

    def fail(name: str) -> None:
        raise ValueError(name)

    graphs.before = fail
    for _ in range(2):
        with pytest.raises(ValueError, match="a"):
            graphs.use("a")
    graphs.before = lambda _: None
    graphs.use("a")
    assert graphs.living == ["a"]


def test_an_error_of_the_user_leaves_the_graph_open_and_unused() -> None:
    graphs = Graphs(most=1)
    with pytest.raises(RuntimeError), graphs.graphs.use("a", lambda: graphs.made("a")):
        raise RuntimeError("a run that fails")
    assert graphs.living == ["a"]
    graphs.use("b")
    assert graphs.living == ["b"]


def test_who_uses_an_open_graph_does_not_wait_for_one_that_is_being_opened() -> None:
    graphs, opening, go_on = Graphs(), threading.Event(), threading.Event()
    graphs.use("a")

    def wait(_: str) -> None:
        opening.set()
        assert go_on.wait(20)

    graphs.before = wait
    with ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(graphs.use, "b") for _ in range(2)]
        assert opening.wait(20)
        graphs.use("a")
        assert graphs.living == ["a"]
        go_on.set()
        for one in slow:
            one.result(20)
    assert graphs.living == ["a", "b"]  # opened once


def test_threads_that_open_and_close_each_have_what_they_asked_for() -> None:
    graphs = Graphs(most=2)

    def work(seed: int) -> None:
        for step in range(300):
            graphs.use(str((seed * 7 + step * step) % 5))

    with ThreadPoolExecutor(6) as pool:
        for one in [pool.submit(work, seed) for seed in range(6)]:
            one.result(30)
    assert len(graphs.living) == 2
