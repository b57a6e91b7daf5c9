"""The parent of several workers, with stand-ins for them; tests/end_to_end has the real ones."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from camrt.server import exits, supervisor, worker_process
from camrt.server.errors import SettingsError, WorkerStartError
from camrt.server.settings import ServerSettings
from camrt.server.worker_protocol import WorkerReport, WorkerTask
from tests.server.test_app import until


class Stage:
    """Workers that do as they are told, and what became of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._notes = folder / "notes"
        self._notes.touch()
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(worker_process, "_MODULE", "stub_worker")
        monkeypatch.setattr(supervisor, "_FIRST_PAUSE", 0.01)
        monkeypatch.setattr(supervisor, "_KILL_AFTER", 0.3)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
        monkeypatch.setenv("STUB_NOTES", str(self._notes))
        self.started: list[tuple[int, int | None]] = []
        self.behave("serves")

    def behave(self, behaviour: str) -> None:
        self._monkeypatch.setenv("STUB_WORKER", behaviour)

    def notes(self, what: str) -> list[list[str]]:
        rows = [line.split() for line in self._notes.read_text().splitlines()]
        return [row[1:] for row in rows if row[0] == what]

    def run(self, test: Callable[[], Awaitable[None]] | None = None, **settings: Any) -> int:
        """The exit code of a supervisor, while ``test`` goes on."""

        async def both() -> int:
            wanted = ServerSettings(**{"port": 0, "workers": 2, **settings})
            running = asyncio.create_task(
                supervisor.supervise(wanted, lambda port, metrics: self.started.append((port, metrics)))
            )
            if test is not None:
                await test()
            return await running

        return asyncio.run(asyncio.wait_for(both(), 30))


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    return Stage(monkeypatch, tmp_path)


def send(number: signal.Signals, process: int = 0) -> None:
    os.kill(process or os.getpid(), number)


def test_workers_get_one_port_and_drain_together(stage: Stage) -> None:
    async def test() -> None:
        await until(lambda: bool(stage.started))
        send(signal.SIGHUP)
        await until(lambda: len(stage.notes("reload")) == 3)
        send(signal.SIGTERM)

    assert stage.run(test, workers=3) == exits.DRAINED
    rows = stage.notes("start")
    assert sorted(row[0] for row in rows) == ["0", "1", "2"]
    assert {row[2] for row in rows} == {str(stage.started[0][0])} != {"0"}
    assert stage.started[0][1] is None
    assert len(stage.started) == 1
    assert len(stage.notes("stop")) == 3


def test_a_worker_that_is_killed_is_replaced_and_counted(stage: Stage) -> None:
    async def test() -> None:
        await until(lambda: bool(stage.started))
        send(signal.SIGKILL, int(stage.notes("start")[0][1]))
        await until(lambda: len(stage.notes("start")) == 3)
        port = stage.started[0][1]

        def metrics() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
                return str(response.read().decode())

        async with asyncio.timeout(10):
            while "camrt_workers_ready 2.0" not in (text := await asyncio.to_thread(metrics)):
                await asyncio.sleep(0.01)
        assert "camrt_worker_restarts_total 1.0" in text
        for worker in ("0", "1", "supervisor"):
            assert f'process_resident_memory_bytes{{worker="{worker}"}}' in text
        send(signal.SIGINT)

    assert stage.run(test, metrics_port=0) == exits.DRAINED
    assert stage.notes("start")[2][0] == stage.notes("start")[0][0], "the number of the one that died"
    assert len(stage.started) == 1, "announced once"


def test_workers_that_die_at_their_start_end_the_server(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.behave("dies")
    assert stage.run(workers=2) == exits.WORKERS_FAIL
    assert "did not start 5 times in a row" in caplog.text
    assert "exit code 7" in caplog.text
    assert 5 <= len(stage.notes("start")) <= 10
    assert stage.started == []


def test_a_system_that_starts_no_process_for_a_while_is_waited_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start, refusals = asyncio.create_subprocess_exec, [errno.EAGAIN] * 3

    async def limited(*arguments: Any, **options: Any) -> Any:
        if refusals:
            raise OSError(refusals.pop(), "Resource temporarily unavailable")
        return await start(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", limited)

    async def test() -> None:
        await until(lambda: bool(stage.started))
        send(signal.SIGTERM)

    assert stage.run(test) == exits.DRAINED
    assert "Resource temporarily unavailable" in caplog.text


def test_a_worker_that_says_why_it_cannot_start_is_not_tried_again(stage: Stage) -> None:
    stage.behave("error")
    with pytest.raises(WorkerStartError, match="damaged"):
        stage.run()
    assert len({row[0] for row in stage.notes("start")}) == len(stage.notes("start"))


def test_one_that_cannot_start_again_does_not_end_the_others_at_once(stage: Stage) -> None:
    async def test() -> None:
        await until(lambda: bool(stage.started))
        stage.behave("error")
        send(signal.SIGKILL, int(stage.notes("start")[1][1]))
        await until(lambda: len(stage.notes("start")) == 4)
        assert stage.notes("stop") == []
        stage.behave("serves")
        await until(lambda: len(stage.notes("start")) > 4)
        send(signal.SIGTERM)

    assert stage.run(test) == exits.DRAINED


@pytest.mark.parametrize(("code", "expected"), [(3, exits.CUT_OFF), (9, exits.CUT_OFF), (0, exits.DRAINED)])
def test_the_exit_code_is_the_worst_of_the_workers(stage: Stage, code: int, expected: int) -> None:
    stage.behave(f"serves:{code}")

    async def test() -> None:
        await until(lambda: bool(stage.started))
        send(signal.SIGTERM)

    assert stage.run(test) == expected


def test_a_second_signal_ends_even_those_that_do_not_listen(stage: Stage) -> None:
    stage.behave("stubborn")

    async def test() -> None:
        await until(lambda: bool(stage.started))
        send(signal.SIGTERM)
        await until(lambda: len(stage.notes("stop")) == 2)
        send(signal.SIGTERM)

    assert stage.run(test, drain_delay=100) == exits.STOPPED_AT_ONCE
    assert len(stage.notes("stop")) == 4


def test_workers_that_never_end_their_drain_are_killed(stage: Stage) -> None:
    stage.behave("stubborn")

    async def test() -> None:
        await until(lambda: bool(stage.started))
        send(signal.SIGTERM)

    assert stage.run(test, drain_timeout=0) == exits.CUT_OFF


def test_a_signal_while_workers_start_stops_them(stage: Stage) -> None:
    async def test() -> None:
        await until(lambda: bool(stage.notes("start")))
        send(signal.SIGTERM)

    assert stage.run(test) == exits.DRAINED


def test_ports_that_are_taken_are_told_before_anything_starts(stage: Stage) -> None:
    async def test() -> None:
        await until(lambda: bool(stage.started))
        port, metrics = stage.started[0]
        for settings in ({"port": port}, {"port": 0, "metrics_port": metrics}):
            with pytest.raises(SettingsError, match=str(next(reversed(settings.values())))):
                await supervisor.supervise(ServerSettings(workers=2, **settings), lambda *_: None)
        send(signal.SIGTERM)

    assert stage.run(test, metrics_port=0) == exits.DRAINED
    assert len(stage.notes("start")) == 2


def test_what_is_told_survives_a_line() -> None:
    settings = ServerSettings(model_repository=Path("/a\n\u2028b"), port=1, models="a,b", workers=3)
    task = WorkerTask(2, settings.model_dump(mode="json"), True)
    assert task.line().count("\n") == 1
    again = WorkerTask.read(task.line())
    assert again == task
    assert ServerSettings(**again.settings) == settings
    assert WorkerReport.read(WorkerReport("a\nb").line()) == WorkerReport("a\nb")
