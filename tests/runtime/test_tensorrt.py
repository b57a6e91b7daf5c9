"""The provider "tensorrt" without TensorRT: its calls on a fake that computes on the CPU, its names in the bindings."""

from __future__ import annotations

import gc
import importlib.util
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from camrt.errors import BackendUnavailableError, UnsupportedModelError
from camrt.explainer import Explainer, embedded_bundle_path
from camrt.preprocess import random_inputs
from camrt.runtime import available_providers, cuda_driver, open_session
from camrt.runtime.cuda_driver import FUNCTIONS, CudaDriver
from camrt.runtime.engine_options import EngineOptions
from camrt.runtime.gpu import build_gpu_engines, open_gpu_session
from camrt.runtime.tensorrt import api, session
from camrt.runtime.tensorrt.session import TensorRtSession
from tests.runtime.fake_gpu import FakeLibrary, FakeTensorRt

BUNDLE = embedded_bundle_path()
LAYERS = ("stage4", "stage3")
CPU = open_session(BUNDLE, "cpu", 1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    library = FakeLibrary()
    module, driver = FakeTensorRt(library), CudaDriver(library)
    monkeypatch.setattr(session, "load_tensorrt", lambda: module)
    monkeypatch.setattr(session, "cuda_driver", lambda: driver)
    return module


@pytest.fixture
def options(tmp_path: Path) -> EngineOptions:
    return EngineOptions((1, 3), tmp_path / "engines", check=False)


def images(count: int) -> np.ndarray:
    return random_inputs(CPU.manifest.input_shape, CPU.manifest.preprocessing, count, np.random.default_rng(count))


def assert_same(ours: TensorRtSession, count: int, classes: list[int]) -> None:
    inputs, chosen = images(count), np.array(classes, np.int64)
    found, expected = (one.run(inputs, chosen, LAYERS) for one in (ours, CPU))
    np.testing.assert_array_equal(found.class_indices, expected.class_indices)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    for one, other in zip(found.layers, expected.layers, strict=True):
        np.testing.assert_allclose(one.activations, other.activations, rtol=1e-3, atol=1e-5)
        scale = np.abs(other.gradients).max()
        np.testing.assert_allclose(one.gradients / scale, other.gradients / scale, atol=1e-5)


def named(fake: FakeTensorRt, name: str) -> list[tuple]:
    return [call for call in fake.calls if call[0] == name]


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize(
    ("count", "classes"),
    [(1, [0]), (1, [-1, 2]), (1, [0, 1, 2, 3, 4]), (2, [1, -1]), (3, [0, 1, 2]), (7, [0, 1, 2, 3, 4, 5, -1])],
)
def test_runs_as_the_cpu_does(
    graphs: bool, count: int, classes: list[int], fake: FakeTensorRt, options: EngineOptions
) -> None:
    ours = TensorRtSession(BUNDLE, options=replace(options, cuda_graphs=graphs))
    for _ in range(2):
        assert_same(ours, count, classes)
    np.testing.assert_allclose(ours.predict(images(count)), CPU.predict(images(count)), rtol=1e-4, atol=1e-5)


def test_the_network_is_strongly_typed_without_tf32_and_has_a_profile_a_bucket(
    fake: FakeTensorRt, options: EngineOptions
) -> None:
    TensorRtSession(BUNDLE, options=options).prepare(LAYERS)
    assert named(fake, "create_network") == [("create_network", 1 << 1)]
    assert named(fake, "clear_flag") == [("clear_flag", fake.BuilderFlag.TF32)]
    ((_, profiles),) = named(fake, "build")
    shape = CPU.manifest.input_shape
    assert profiles == [
        {"image": ((1, *shape), (size, *shape), (size, *shape)), "class_index": ((1,), (size,), (size,))}
        for size in (1, 3)
    ]


def test_tf32_is_for_who_asks_and_has_an_engine_of_its_own(fake: FakeTensorRt, options: EngineOptions) -> None:
    for tf32 in (False, True, True):
        TensorRtSession(BUNDLE, options=replace(options, tf32=tf32)).prepare(LAYERS)
    assert len(named(fake, "build")) == 2
    assert len(named(fake, "clear_flag")) == 1


def test_predictions_need_no_class(fake: FakeTensorRt, options: EngineOptions) -> None:
    TensorRtSession(BUNDLE, options=options).predict(images(1))
    assert [set(profile) for profile in named(fake, "build")[0][1]] == [{"image"}, {"image"}]


def test_a_graph_starts_at_a_layer(fake: FakeTensorRt, options: EngineOptions) -> None:
    ours = TensorRtSession(BUNDLE, options=options)
    outputs = CPU.run(images(2), np.array([0, 1]), LAYERS)
    activations = outputs.layers[0].activations
    np.testing.assert_allclose(ours.run_from_layer("stage4", activations), outputs.logits, rtol=1e-3, atol=1e-5)


def test_engines_and_timings_come_from_the_cache(fake: FakeTensorRt, options: EngineOptions) -> None:
    TensorRtSession(BUNDLE, options=options).prepare(LAYERS)
    TensorRtSession(BUNDLE, options=options).prepare(LAYERS)
    assert len(named(fake, "build")) == 1
    TensorRtSession(BUNDLE, options=options).prepare(LAYERS[:1])
    assert [content for _, content in named(fake, "timing_cache")] == [b"", b"+"]
    TensorRtSession(BUNDLE, options=replace(options, batches=(1,))).prepare(LAYERS)
    assert len(named(fake, "build")) == 3
    fake.__version__ = "11.5.0"  # type: ignore[misc]
    TensorRtSession(BUNDLE, options=options).prepare(LAYERS)
    assert len(named(fake, "build")) == 4
    assert named(fake, "timing_cache")[-1] == ("timing_cache", b"")


def test_the_key_says_everything(fake: FakeTensorRt, options: EngineOptions) -> None:
    key = TensorRtSession(BUNDLE, options=options).key(("logits",))
    assert (key.gpu_name, key.compute_capability, key.engine_version) == ("Fake GPU", (9, 0), "11.4.0.106")
    assert "CUDA 13.1" in key.driver_version
    assert (key.precision, key.profiles, key.outputs, key.cut_at) == ("fp32", (1, 3), ("logits",), None)


def test_a_recording_is_replayed_until_a_buffer_grows(fake: FakeTensorRt, options: EngineOptions) -> None:
    ours = TensorRtSession(BUNDLE, options=replace(options, cuda_graphs=True))
    for count in (1, 1, 1):
        assert_same(ours, count, list(range(count)))
    assert (len(named(fake, "execute")), fake.library.launches) == (1, 2)
    for count in (2, 3):  # both filled up to three
        assert_same(ours, count, list(range(count)))
    assert (len(named(fake, "execute")), fake.library.launches) == (2, 3)
    assert_same(ours, 1, [0])  # recorded anew: its buffers have moved
    assert (len(named(fake, "execute")), fake.library.launches) == (3, 3)


def test_threads_get_contexts_of_their_own_and_give_them_back(fake: FakeTensorRt, options: EngineOptions) -> None:
    ours = TensorRtSession(BUNDLE, options=options)
    inputs = images(4)
    alone = [ours.predict(image[None]) for image in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: ours.predict(image[None]), list(inputs) * 4))
    for number, logits in enumerate(together):
        np.testing.assert_array_equal(logits, alone[number % 4])
    assert len(named(fake, "create_execution_context")) <= 4
    assert fake.library.attached >= 2  # every thread


def test_what_a_closed_session_held_on_the_device_is_given_back(fake: FakeTensorRt, options: EngineOptions) -> None:
    ours = TensorRtSession(BUNDLE, options=replace(options, cuda_graphs=True))
    assert_same(ours, 2, [0, 1])
    assert fake.library.memory
    del ours
    gc.collect()
    assert not fake.library.memory
    assert (fake.library.destroyed_streams, fake.library.forgotten) == (1, 1)


@pytest.mark.parametrize(
    ("refusal", "error", "text"),
    [
        ("parse", UnsupportedModelError, "no importer for node 0"),
        ("build", UnsupportedModelError, "cannot build"),
        ("deserialize", BackendUnavailableError, "Delete that file"),
        ("shape", BackendUnavailableError, "refused the shape"),
    ],
)
def test_refusals_are_errors(
    refusal: str, error: type[Exception], text: str, fake: FakeTensorRt, options: EngineOptions
) -> None:
    fake.refuses_to = refusal
    with pytest.raises(error, match=text):
        TensorRtSession(BUNDLE, options=options).predict(images(1))
    assert bool(list(options.cache.glob("*.engine"))) == (refusal in ("deserialize", "shape"))


def test_a_failing_driver_is_named(fake: FakeTensorRt, options: EngineOptions) -> None:
    ours = TensorRtSession(BUNDLE, options=options)
    fake.library.failing = "cuMemAlloc_v2"
    with pytest.raises(BackendUnavailableError, match="cuMemAlloc_v2 failed with error 999"):
        ours.predict(images(1))


def test_parity_is_looked_at_when_a_session_opens(fake: FakeTensorRt, options: EngineOptions) -> None:
    parity = open_gpu_session(BUNDLE, "tensorrt", 1, replace(options, check=True)).parity
    assert parity is not None
    assert set(parity.correlations) == set(CPU.manifest.layer_names)
    assert min(parity.correlations.values()) > 0.9999
    assert (parity.top1_agreement, parity.threshold, parity.provider) == (1.0, 0.999, "tensorrt")
    assert open_gpu_session(BUNDLE, "tensorrt", 1, options).parity is None


def test_an_explainer_runs_on_engines_and_knows_the_parity(
    fake: FakeTensorRt, options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMRT_ENGINE_CACHE", str(options.cache))
    monkeypatch.setenv("CAMRT_ENGINE_BATCH", "2")
    explainer = Explainer(BUNDLE, "tensorrt", 1)
    assert explainer.parity is not None
    assert explainer.parity.passed
    assert Explainer(BUNDLE, "cpu", 1).parity is None
    inputs = images(3)
    for one, other in zip(explainer.explain(inputs), Explainer(BUNDLE, "cpu", 1).explain(inputs), strict=True):
        assert one.class_index == other.class_index
        np.testing.assert_allclose(one.saliency_map, other.saliency_map, atol=1e-3)


def test_an_engine_that_computes_something_else_is_refused(
    fake: FakeTensorRt, options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TensorRtSession._execute

    def wrong(self, engine, feeds):
        return [
            array[..., ::-1].copy() if name == "gradients/stage3" else array
            for name, array in zip(engine.outputs, original(self, engine, feeds), strict=True)
        ]

    monkeypatch.setattr(TensorRtSession, "_execute", wrong)
    with pytest.raises(BackendUnavailableError, match=r"'stage3' correlate by 0\.\d+, and 0\.999 is asked for"):
        open_gpu_session(BUNDLE, "tensorrt", 1, replace(options, check=True))


def test_engines_are_built_ahead(fake: FakeTensorRt, options: EngineOptions) -> None:
    built = build_gpu_engines(BUNDLE, "tensorrt", options, LAYERS)
    assert built.parity is not None
    assert len(list(options.cache.glob("*.engine"))) == 3  # all layers, the chosen ones, predictions
    count = len(named(fake, "build"))
    later = TensorRtSession(BUNDLE, options=options)
    later.prepare(LAYERS)
    later.predict(images(1))
    assert len(named(fake, "build")) == count


def test_the_fake_knows_no_name_that_was_not_checked(fake: FakeTensorRt) -> None:
    words = {part for name in api.NAMES for part in name.split(".")}
    kinds = [
        fake.Logger,
        fake.Builder,
        fake.OnnxParser,
        fake.Runtime,
        fake.BuilderFlag,
        fake.NetworkDefinitionCreationFlag,
    ]
    used = {name for kind in kinds for name in vars(kind) if not name.startswith("_")}
    from tests.runtime import fake_gpu

    for kind in (fake_gpu._Config, fake_gpu._Profile, fake_gpu._Engine, fake_gpu._Context, fake_gpu._Cache):
        used |= {name for name in vars(kind) if not name.startswith("_")}
    assert used <= words
    assert {name for name in vars(FakeLibrary) if name.startswith("cu")} == set(FUNCTIONS)


def bindings() -> Iterator[bytes]:
    """The compiled part of TensorRT's Python package: in CAMRT_TENSORRT_BINDINGS (a wheel or a folder), or installed."""
    given = os.environ.get("CAMRT_TENSORRT_BINDINGS")
    if given and given.endswith(".whl"):
        with zipfile.ZipFile(given) as wheel:
            yield from (wheel.read(name) for name in wheel.namelist() if name.endswith("tensorrt.so"))
        return
    folders = [Path(given)] if given else []
    for name in ("tensorrt_bindings", "tensorrt"):
        spec = importlib.util.find_spec(name)
        folders += [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    yield from (path.read_bytes() for folder in folders for path in folder.rglob("tensorrt.so"))


def test_the_names_are_those_of_the_bindings() -> None:
    binary = next(bindings(), None)
    if binary is None:
        pytest.skip("no tensorrt bindings: install them, or set CAMRT_TENSORRT_BINDINGS to their wheel")
    words = sorted({part for name in api.NAMES for part in name.split(".")})
    # A linker keeps "serialize" as the end of "deserialize", so only ends are looked for.
    missing = [word for word in words if word.encode() + b"\0" not in binary]
    assert not missing


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "import_module", lambda name: (_ for _ in ()).throw(ImportError("libnvinfer.so.11")))
    with pytest.raises(BackendUnavailableError, match=r"libnvinfer\.so\.11.*camrt\[tensorrt\]"):
        open_session(BUNDLE, "tensorrt")
    detail = {status.name: status.detail for status in available_providers()}["tensorrt"]
    assert "camrt[tensorrt]" in detail

    class Old:
        __version__ = "10.3.0"

    monkeypatch.setattr(api, "import_module", lambda name: Old)
    with pytest.raises(BackendUnavailableError, match=r"10\.3\.0 is too old"):
        api.load_tensorrt()


def test_a_machine_without_a_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libno-such-driver.so.1")
    with pytest.raises(BackendUnavailableError, match="--gpus all"):
        cuda_driver.load_library()
