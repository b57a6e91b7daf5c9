from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import camrt
from camrt.errors import InvalidModelError
from camrt.server.models import ModelRepository
from camrt.server.polling import Poller
from camrt.server.settings import ServerSettings
from tests.server.test_app import running, until
from tests.server.test_models import put, table
from tests.small_network import write_small_network


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two bundles of one network with other weights."""
    folder = tmp_path_factory.mktemp("bundles")
    return [
        camrt.export(write_small_network(folder / f"{seed}.source.onnx", seed), folder / f"{seed}.onnx").path
        for seed in range(2)
    ]


def with_poller(folder: Path, test: Callable[[Poller, ModelRepository], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        repository = ModelRepository(ServerSettings(threads=1, max_batch=1, model_repository=folder, **settings))
        poller = Poller(repository, 60)
        await poller.begin()
        await repository.start()
        await test(poller, repository)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_new_changed_and_removed_models_are_followed(tmp_path: Path, bundles: list[Path]) -> None:
    put(bundles[0], tmp_path, "cats", 1)
    put(bundles[0], tmp_path, "dogs", 1)

    async def test(poller: Poller, repository: ModelRepository) -> None:
        dogs, before = repository.get("dogs"), repository.get("cats").digest
        assert await poller.look() == []
        put(bundles[1], tmp_path, "cats", 1)
        put(bundles[0], tmp_path, "birds", 3)
        assert await poller.look() == [], "the first look that sees a change waits for the next"
        assert await poller.look() == ["birds", "cats"]
        assert repository.get("cats").digest != before
        assert repository.get("dogs") is dogs
        put(bundles[0], tmp_path, "cats", 2)
        shutil.rmtree(tmp_path / "birds")
        await poller.look()
        assert await poller.look() == ["birds", "cats"]
        assert table(repository) == [("cats", "2", "ready"), ("dogs", "1", "ready")]
        assert await poller.look() == []

    with_poller(tmp_path, test)


def test_a_broken_version_is_tried_once_and_leaves_the_old_one(tmp_path: Path, bundles: list[Path]) -> None:
    put(bundles[0], tmp_path, "cats", 1)

    async def test(poller: Poller, repository: ModelRepository) -> None:
        held = repository.get("cats")
        put(bundles[1], tmp_path, "cats", 2).write_bytes(b"no model")
        await poller.look()
        assert await poller.look() == ["cats"]
        assert await poller.look() == []
        assert repository.get("cats") is held
        assert table(repository) == [("cats", "1", "ready"), ("cats", "2", "failed")]
        put(bundles[1], tmp_path, "cats", 2)
        await poller.look()
        assert await poller.look() == ["cats"]
        assert repository.get("cats").version == "2"
        (tmp_path / "bad.onnx").write_bytes(b"no model")
        await poller.look()
        await poller.look()
        (tmp_path / "bad.onnx").unlink()
        await poller.look()
        await poller.look()
        assert "bad" not in {row.name for row in repository.statuses()}, "a failure goes with its file"

    with_poller(tmp_path, test)


def test_a_file_that_grows_is_left_alone(tmp_path: Path, bundles: list[Path]) -> None:
    put(bundles[0], tmp_path, "cats", 1)

    async def test(poller: Poller, repository: ModelRepository) -> None:
        data = bundles[1].read_bytes()
        path = tmp_path / "cats" / "2" / "bundle.onnx"
        path.parent.mkdir()
        for size in (1000, 2000, len(data)):
            path.write_bytes(data[:size])
            assert await poller.look() == []
        assert await poller.look() == ["cats"]
        assert table(repository)[-1] == ("cats", "2", "ready")

    with_poller(tmp_path, test)


def test_a_model_that_was_unloaded_stays_so_until_its_file_changes(tmp_path: Path, bundles: list[Path]) -> None:
    put(bundles[0], tmp_path, "cats", 1)

    async def test(poller: Poller, repository: ModelRepository) -> None:
        await repository.unload("cats")
        await poller.look()
        assert await poller.look() == []
        os.utime(tmp_path / "cats" / "1" / "bundle.onnx", ns=(1, 1))
        await poller.look()
        assert await poller.look() == ["cats"]
        assert repository.get("cats").version == "1"

    with_poller(tmp_path, test)


def test_only_models_that_are_named_are_followed(tmp_path: Path, bundles: list[Path]) -> None:
    put(bundles[0], tmp_path, "cats", 1)

    async def test(poller: Poller, repository: ModelRepository) -> None:
        put(bundles[0], tmp_path, "dogs", 1)
        await poller.look()
        await poller.look()
        assert table(repository) == [("cats", "1", "ready")]

    with_poller(tmp_path, test, models="cats")


def test_a_folder_that_cannot_be_read_changes_nothing(
    tmp_path: Path, bundles: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "models"
    put(bundles[0], folder, "cats", 1)

    async def test(poller: Poller, repository: ModelRepository) -> None:
        folder.rename(tmp_path / "away")
        with pytest.raises(InvalidModelError, match="Cannot read"):
            await poller.look()
        await repository.reload()
        assert "not loaded again" in caplog.text
        (tmp_path / "away").rename(folder)
        assert await poller.look() == []
        assert await poller.look() == []
        assert table(repository) == [("cats", "1", "ready")]

    with_poller(folder, test)


def test_a_server_polls_while_it_runs(tmp_path: Path, bundles: list[Path]) -> None:
    put(bundles[0], tmp_path, "cats", 1)

    async def run() -> None:
        async with running(model_repository=tmp_path, poll_seconds=0.02, max_batch=1) as server:
            put(bundles[1], tmp_path, "cats", 2)
            await until(lambda: server.repository.get("cats").version == "2")
        assert not any("Poller" in repr(task) for task in asyncio.all_tasks())

    asyncio.run(asyncio.wait_for(run(), 60))
