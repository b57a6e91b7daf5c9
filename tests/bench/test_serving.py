"""``camrt bench server``: what is refused before anything is timed, and what is kept where a load fails."""

from __future__ import annotations

from pathlib import Path

import pytest

import camrt
from camrt.bench import serving
from camrt.bench.serving import bench_server
from camrt.bench.workload import Workload
from camrt.client import RemoteError
from camrt.errors import InvalidInputError
from tests.small_network import write_small_network


def quiet(_: str) -> None:
    pass


def failing_load(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Loads that take no time, and fail with more than so many callers; the one of warm-up never does."""
    warm = [False]

    async def load(_target: str, _jpeg: bytes, callers: int, _seconds: float) -> tuple[list[float], float]:
        if warm[0] and callers > most:
            raise RemoteError("The queue is full.", "Try later.", "RESOURCE_EXHAUSTED")
        warm[0] = True
        return [0.1] * callers, 0.1

    monkeypatch.setattr(serving, "_load", load)


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [("unit", "`camrt export --preprocess unit`"), (None, "cannot take images.*`camrt export --preprocess`")],
)
def test_a_preprocessing_that_the_server_lacks_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preprocess: str | None, message: str
) -> None:
    monkeypatch.setattr(serving, "take_turns", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(serving, "ServerProcess", lambda *_: pytest.fail("started"))
    path = tmp_path / "bundle.onnx"
    camrt.export(write_small_network(tmp_path / "source.onnx"), path)
    with pytest.raises(InvalidInputError, match=f"(?s){message}"):
        bench_server(Workload.of(path, preprocess=preprocess), 1, [1], 0.1, quiet)


def test_lines_before_a_load_that_fails_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_load(monkeypatch, most=2)
    (table,), notes = bench_server(Workload.of(), 1, [1, 2, 4, 8], 0.1, quiet, "localhost:1")
    assert [(row["where"], row["callers"]) for row in table.rows] == [("in process", 1), ("server", 1), ("server", 2)]
    assert all("rate_ratio" in row for row in table.rows)
    assert len(notes) == 1
    assert notes[0].startswith("Nothing from 4 callers on: The queue is full.")


def test_a_server_that_answers_no_load_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_load(monkeypatch, most=0)
    with pytest.raises(RemoteError, match="queue is full"):
        bench_server(Workload.of(), 1, [1, 2], 0.1, quiet, "localhost:1")


def test_a_load_shorter_than_a_call_times_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def __init__(self, _: str) -> None:
            pass

        async def __aenter__(self) -> Client:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def explain(self, _: bytes, output_size: str) -> str:
            return output_size

    monkeypatch.setattr(serving, "AsyncExplainerClient", Client)
    (table,), _ = bench_server(Workload.of(), 1, [1], 0.0, quiet, "localhost:1")
    assert table.rows[1]["images_per_second"]
