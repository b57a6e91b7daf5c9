from __future__ import annotations

import asyncio
import gc
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import numpy as np
import pytest

import camrt
from camrt.errors import BundleError, InvalidInputError, InvalidModelError, ModelError
from camrt.explainer import Explainer, embedded_bundle_path
from camrt.runtime import compared
from camrt.runtime.onnxruntime import OnnxRuntimeSession
from camrt.runtime.parity import ParityError
from camrt.server.errors import ModelNotFoundError, ModelNotReadyError, SettingsError, SeveralWorkersError
from camrt.server.model_check import SelfCheckError, batch_buckets, default_plan, warm_up
from camrt.server.model_files import digest_of
from camrt.server.models import ModelRepository
from camrt.server.settings import ServerSettings
from camrt.types import SessionOutputs
from tests.exporter.precision_models import embedded_inputs, embedded_source
from tests.small_network import write_small_network


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two bundles of one network with other weights."""
    folder = tmp_path_factory.mktemp("bundles")
    for seed in range(2):
        camrt.export(write_small_network(folder / f"{seed}.source.onnx", seed), folder / f"{seed}.onnx")
    return [folder / "0.onnx", folder / "1.onnx"]


def with_repository(test: Callable[[ModelRepository], Awaitable[None]], start: bool = True, **settings: Any) -> None:
    async def run() -> None:
        repository = ModelRepository(ServerSettings(**{"threads": 1, "max_batch": 2, **settings}))
        if start:
            await repository.start()
        await test(repository)

    asyncio.run(asyncio.wait_for(run(), 60))


def put(bundle: Path, folder: Path, name: str, version: int) -> Path:
    """Moves a copy into its place in one step, as an operator should."""
    path = folder / name / str(version) / "bundle.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    shutil.copy(bundle, part)
    return part.replace(path)


def table(repository: ModelRepository) -> list[tuple[str, str, str]]:
    return [(row.name, row.version, row.state) for row in repository.statuses()]


def test_the_embedded_model_is_served_when_nothing_is_named() -> None:
    async def test(repository: ModelRepository) -> None:
        model = repository.get()
        assert (model.name, model.version, model.provider) == ("shapes", "1", "cpu")
        assert model.digest == digest_of(embedded_bundle_path())
        assert model is repository.get("shapes") is repository.get("shapes", "1") is repository.get("", "1")
        assert repository.available() == ["shapes"]

    with_repository(test)


def test_one_bundle_is_served_under_the_name_of_its_file(tmp_path: Path, bundles: list[Path]) -> None:
    async def test(repository: ModelRepository) -> None:
        assert repository.get().name == "cats"

    with_repository(test, bundle=shutil.copy(bundles[0], tmp_path / "cats.bundle.onnx"))


def test_a_broken_file_beside_the_only_model_changes_nothing_for_who_names_none(
    tmp_path: Path, bundles: list[Path]
) -> None:
    shutil.copy(bundles[0], tmp_path / "good.onnx")
    (tmp_path / "bad.onnx").write_text("broken")

    async def test(repository: ModelRepository) -> None:
        assert table(repository) == [("bad", "1", "failed"), ("good", "1", "ready")]
        assert repository.get().name == "good"
        with pytest.raises(ModelNotReadyError):
            repository.get("bad")

    with_repository(test, model_repository=tmp_path)


def test_a_folder_holds_versions_and_plain_files(tmp_path: Path, bundles: list[Path]) -> None:
    put(bundles[0], tmp_path, "two", 2)
    put(bundles[1], tmp_path, "two", 10)
    shutil.copy(bundles[0], tmp_path / "plain.onnx")
    (tmp_path / "two" / "drafts").mkdir()
    (tmp_path / "README.txt").write_text("no model")
    (tmp_path / "-odd.onnx").write_text("no name for a model")

    async def test(repository: ModelRepository) -> None:
        assert table(repository) == [("plain", "1", "ready"), ("two", "10", "ready")]
        assert repository.get("two").version == "10"
        with pytest.raises(InvalidInputError, match="plain, two"):
            repository.get()
        for name, version in (("three", ""), ("two", "2"), ("two", "x"), ("two", "9" * 40), ("../two", "")):
            with pytest.raises(ModelNotFoundError):
                repository.get(name, version)

    with_repository(test, model_repository=tmp_path)


def test_several_versions_can_be_kept(tmp_path: Path, bundles: list[Path]) -> None:
    for version in (1, 2, 3):
        put(bundles[version % 2], tmp_path, "many", version)

    async def test(repository: ModelRepository) -> None:
        assert table(repository) == [("many", "2", "ready"), ("many", "3", "ready")]
        assert repository.get("many", "2") is not repository.get("many", "3") is repository.get("many")

    with_repository(test, model_repository=tmp_path, keep_versions=2)


def test_a_new_version_takes_over_while_requests_hold_the_old_one(tmp_path: Path, bundles: list[Path]) -> None:
    put(bundles[0], tmp_path, "cats", 1)

    async def test(repository: ModelRepository) -> None:
        held = repository.get("cats")
        await repository.load("cats")
        assert repository.get("cats") is held, "nothing changed, nothing is loaded"
        put(bundles[1], tmp_path, "cats", 2)
        await repository.load("cats")
        assert repository.get("cats").version == "2"
        assert table(repository) == [("cats", "1", "unloading"), ("cats", "2", "ready")]
        assert held.explainer.predict(np.zeros((1, 3, 32, 40), np.float32)).shape == (1, 4)
        with pytest.raises(ModelNotReadyError, match="unloading"):
            repository.get("cats", "1")
        del held
        gc.collect()
        assert table(repository) == [("cats", "2", "ready")]

    with_repository(test, model_repository=tmp_path)


def test_a_changed_file_is_loaded_again(tmp_path: Path, bundles: list[Path]) -> None:
    put(bundles[0], tmp_path, "cats", 1)

    async def test(repository: ModelRepository) -> None:
        before = repository.get("cats").digest
        put(bundles[1], tmp_path, "cats", 1)
        await repository.load("cats")
        assert repository.get("cats").digest == digest_of(bundles[1]) != before

    with_repository(test, model_repository=tmp_path)


def test_a_broken_new_version_leaves_the_old_one_serving(tmp_path: Path, bundles: list[Path]) -> None:
    put(bundles[0], tmp_path, "cats", 1)

    async def test(repository: ModelRepository) -> None:
        held = repository.get("cats")
        put(bundles[1], tmp_path, "cats", 2).write_bytes(bundles[1].read_bytes()[:5000])
        with pytest.raises(ModelError):
            await repository.load("cats")
        assert repository.get("cats") is held
        assert table(repository) == [("cats", "1", "ready"), ("cats", "2", "failed")]
        assert repository.statuses()[1].reason
        with pytest.raises(ModelNotReadyError, match="failed"):
            repository.get("cats", "2")
        put(bundles[1], tmp_path, "cats", 2)
        await repository.load("cats")
        assert repository.get("cats").version == "2"

    with_repository(test, model_repository=tmp_path)


def test_a_file_that_broke_in_place_leaves_what_is_loaded(tmp_path: Path, bundles: list[Path]) -> None:
    path = put(bundles[0], tmp_path, "cats", 1)

    async def test(repository: ModelRepository) -> None:
        held = repository.get("cats")
        path.write_bytes(b"no model")
        with pytest.raises(InvalidModelError):
            await repository.load("cats")
        assert repository.get("cats") is held
        (status,) = repository.statuses()
        assert status.state == "ready"
        assert status.reason.startswith("cats/1/bundle.onnx is not")

    with_repository(test, model_repository=tmp_path)


def test_a_start_falls_back_to_the_newest_version_that_works(tmp_path: Path, bundles: list[Path]) -> None:
    put(bundles[0], tmp_path, "cats", 1)
    put(bundles[1], tmp_path, "cats", 2).write_bytes(b"no model")
    (tmp_path / "dogs.onnx").write_bytes(b"no model either")

    async def test(repository: ModelRepository) -> None:
        assert table(repository) == [("cats", "1", "ready"), ("cats", "2", "failed"), ("dogs", "1", "failed")]
        with pytest.raises(ModelNotReadyError, match="failed"):
            repository.get("dogs")

    with_repository(test, model_repository=tmp_path)


def test_a_model_that_is_named_must_work(tmp_path: Path, bundles: list[Path]) -> None:
    async def test(repository: ModelRepository) -> None:
        raise AssertionError

    source = write_small_network(tmp_path / "source.onnx")
    with pytest.raises(BundleError, match="not a camrt bundle"):
        with_repository(test, bundle=source)
    with pytest.raises(ModelNotFoundError, match="absent"):
        with_repository(test, model_repository=tmp_path, models=("absent",))
    with pytest.raises(SettingsError, match="no folder"):
        with_repository(test, model_repository=tmp_path / "absent")


def test_unloading_and_loading_again(tmp_path: Path, bundles: list[Path]) -> None:
    put(bundles[0], tmp_path, "cats", 1)
    put(bundles[1], tmp_path, "dogs", 1)

    async def test(repository: ModelRepository) -> None:
        await repository.unload("cats")
        gc.collect()
        assert table(repository) == [("dogs", "1", "ready")]
        assert repository.get().name == "dogs"
        with pytest.raises(ModelNotFoundError):
            repository.get("cats")
        for name in ("birds", "../cats", ""):
            with pytest.raises(ModelNotFoundError):
                await repository.unload(name)
            with pytest.raises(ModelNotFoundError):
                await repository.load(name)
        await repository.load("cats")
        assert repository.get("cats").version == "1"

    with_repository(test, model_repository=tmp_path)


def test_reload_follows_the_folder(tmp_path: Path, bundles: list[Path]) -> None:
    put(bundles[0], tmp_path, "cats", 1)
    put(bundles[0], tmp_path, "dogs", 1)

    async def test(repository: ModelRepository) -> None:
        shutil.rmtree(tmp_path / "dogs")
        put(bundles[1], tmp_path, "birds", 3)
        (tmp_path / "bad.onnx").write_bytes(b"no model")
        await repository.reload()
        gc.collect()
        assert table(repository) == [("bad", "1", "failed"), ("birds", "3", "ready"), ("cats", "1", "ready")]

    with_repository(test, model_repository=tmp_path)


def test_loads_of_one_name_wait_for_each_other_and_everyone_sees_the_states(
    tmp_path: Path, bundles: list[Path]
) -> None:
    put(bundles[0], tmp_path, "cats", 1)
    seen: list[list[tuple[str, str, str]]] = []

    async def run() -> None:
        settings = ServerSettings(threads=1, max_batch=1, model_repository=tmp_path)
        repository = ModelRepository(settings, lambda: seen.append(table(repository)))
        loads = [asyncio.create_task(repository.load("cats")) for _ in range(3)]
        while not seen:
            await asyncio.sleep(0.001)
        with pytest.raises(ModelNotReadyError, match="loading"):
            repository.get("cats")
        await asyncio.gather(*loads)
        assert repository.get() is repository.get("cats")

    asyncio.run(run())
    assert seen[0] == [("cats", "1", "loading")]
    assert seen[-1] == [("cats", "1", "ready")]


def test_every_batch_size_is_warmed_up() -> None:
    assert batch_buckets(1) == [1]
    assert batch_buckets(8) == [1, 2, 4, 8]
    assert batch_buckets(12) == [1, 2, 4, 8, 12]
    sizes: list[int] = []

    class Noting(Explainer):
        def explain_batch(self, inputs, class_indices, plan):  # type: ignore[no-untyped-def]
            sizes.append(len(inputs))
            return super().explain_batch(inputs, class_indices, plan)

    explainer = Noting(threads=1)
    warm_up(explainer, 6, embedded_bundle_path(), "cpu")
    assert sizes == [1, 2, 4, 6]
    assert default_plan(explainer).method == "refinecam"


def test_a_model_whose_answers_depend_on_the_batch_is_refused() -> None:
    class Wrong(Explainer):
        def predict(self, inputs):  # type: ignore[no-untyped-def]
            return super().predict(inputs) + (len(inputs) > 1)

    with pytest.raises(SelfCheckError, match="off by"):
        warm_up(Wrong(threads=1), 2, embedded_bundle_path(), "cpu")


def test_a_model_that_says_nothing_finite_is_refused() -> None:
    class Wrong(Explainer):
        def explain_batch(self, inputs, class_indices, plan):  # type: ignore[no-untyped-def]
            result = super().explain_batch(inputs, class_indices, plan)
            result.logits[0, 0] = np.nan
            return result

    with pytest.raises(SelfCheckError, match="not finite"):
        warm_up(Wrong(threads=1), 2, embedded_bundle_path(), "cpu")


class Engine(OnnxRuntimeSession):
    """Another engine: the CPU's, with noise of a given share in gradients and an offset of logits."""

    noise = offset = 0.0

    def __init__(self, path: Path, provider: str, threads: int) -> None:
        super().__init__(path, "cpu", threads)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return super().predict(inputs) + self.offset

    def run(self, *arguments: Any) -> SessionOutputs:
        outputs, rng = super().run(*arguments), np.random.default_rng(0)
        layers = [
            replace(layer, gradients=layer.gradients + self.noise * layer.gradients.std() * draw)
            for layer in outputs.layers
            for draw in [rng.standard_normal(layer.gradients.shape, np.float32)]
        ]
        return replace(outputs, logits=outputs.logits + self.offset, layers=tuple(layers))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    """What provider "openvino" opens, and how far it is off."""
    made = type("OffBy", (Engine,), {})
    monkeypatch.setattr("camrt.runtime.openvino.OpenVinoSession", made)
    return made


@pytest.fixture(scope="module")
def rounded(bundles: list[Path]) -> Path:
    """The first bundle as int8."""
    source = bundles[0].with_suffix(".source.onnx")
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 40)).astype(np.float32)
    return camrt.export(source, source.with_name("int8.onnx"), precision="int8", calibration=images).path


def test_another_provider_is_compared_with_the_cpu_once(
    bundles: list[Path], engine: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(
        compared, "OnnxRuntimeSession", lambda *given: opened.append(given) or OnnxRuntimeSession(*given)
    )

    async def test(repository: ModelRepository) -> None:
        parity = repository.get().explainer.parity
        assert parity is not None
        assert (parity.provider, min(parity.correlations.values())) == ("openvino", pytest.approx(1.0))
        assert opened == [(bundles[0], "cpu", 1)]

    with_repository(test, bundle=bundles[0], provider="openvino", threads=1)


@pytest.mark.parametrize(
    ("off", "reason"), [({"noise": 3.0}, "maps of layer .* correlate by"), ({"offset": 1.0}, "logits are off by")]
)
def test_a_provider_that_computes_something_else_is_refused(
    off: dict[str, float], reason: str, bundles: list[Path], engine: type[Engine]
) -> None:
    for name, value in off.items():
        setattr(engine, name, value)
    with pytest.raises(ParityError, match=f"otherwise than the CPU does: {reason}"):
        with_repository(AsyncMock(), bundle=bundles[0], provider="openvino")


def test_how_far_a_provider_may_be_off_depends_on_the_precision_alone(
    bundles: list[Path], rounded: Path, engine: type[Engine]
) -> None:
    """An int8 bundle is served between 0.98 and 0.99, where a float32 one is not, and refused below."""
    engine.noise = 0.05

    async def test(repository: ModelRepository) -> None:
        parity = repository.get().explainer.parity
        assert parity is not None
        assert 0.98 == parity.threshold < min(parity.correlations.values()) < 0.99

    with_repository(test, bundle=rounded, provider="openvino")
    with pytest.raises(ParityError, match=r"0\.999 is asked for"):
        with_repository(AsyncMock(), bundle=bundles[0], provider="openvino")
    engine.noise = 0.08
    with pytest.raises(ParityError, match=r"correlate by 0\.96\d\d, and 0.98 is asked for"):
        with_repository(AsyncMock(), bundle=rounded, provider="openvino")


def test_a_provider_that_nobody_compared_is_refused() -> None:
    with pytest.raises(SelfCheckError, match=r"'another'.*not compared"):
        warm_up(Explainer(threads=1), 1, embedded_bundle_path(), "another")


def test_a_quantised_model_is_served(tmp_path: Path) -> None:
    """Its logits with and without activations as outputs differ by more than those of float32 may."""
    source, arguments = embedded_source(tmp_path)
    bundle = tmp_path / "int8.onnx"
    camrt.export(source, bundle, precision="int8", calibration=embedded_inputs(16, seed=2), **arguments)

    async def test(repository: ModelRepository) -> None:
        model = repository.get()
        images = embedded_inputs(2)
        plain = model.explainer.predict(images)
        explained = model.explainer.explain_batch(images, np.full(2, -1), default_plan(model.explainer)).logits
        assert 1e-3 < np.abs(plain - explained).max() / np.abs(plain).max() < 0.1

    with_repository(test, bundle=bundle)


def test_clients_do_not_read_where_files_are_and_the_log_does(
    tmp_path: Path, bundles: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    put(bundles[0], tmp_path, "cats", 1)

    async def test(repository: ModelRepository) -> None:
        put(bundles[1], tmp_path, "cats", 2).write_bytes(bundles[1].read_bytes()[:5000])
        with pytest.raises(ModelError) as told:
            await repository.load("cats")
        texts = [str(told.value), repository.statuses()[1].reason]
        with pytest.raises(ModelNotReadyError) as refused:
            repository.get("cats", "2")
        for text in (*texts, str(refused.value)):
            assert "cats/2/bundle.onnx" in text
            assert str(tmp_path) not in text
        assert f"{tmp_path}/cats/2/bundle.onnx" in caplog.text

    with_repository(test, model_repository=tmp_path)


def test_one_of_several_processes_takes_no_orders_of_its_own(tmp_path: Path, bundles: list[Path]) -> None:
    put(bundles[0], tmp_path, "cats", 1)

    async def test(repository: ModelRepository) -> None:
        for call in (repository.load, repository.unload):
            with pytest.raises(SeveralWorkersError, match=r"SIGHUP.*poll_seconds"):
                await call("cats")
        put(bundles[1], tmp_path, "cats", 2)
        await repository.reload()
        assert table(repository)[-1] == ("cats", "2", "ready")

    with_repository(test, model_repository=tmp_path, workers=2)
