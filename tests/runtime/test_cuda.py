"""ONNX Runtime's GPU sessions: options, and the bindings, which run here on the CPU's memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from camrt.errors import BackendUnavailableError, InvalidInputError
from camrt.explainer import embedded_bundle_path
from camrt.preprocess import random_inputs
from camrt.runtime import cuda, open_session
from camrt.runtime.cuda import CudaSession, check_providers, cuda_options
from camrt.runtime.cuda_driver import CudaDriver
from camrt.runtime.engine_cache import MAGIC, write_sealed
from camrt.runtime.engine_options import EngineOptions
from camrt.runtime.tensorrt.onnxruntime_context import tensorrt_options
from tests.runtime.fake_gpu import FakeLibrary

BUNDLE = embedded_bundle_path()
LAYERS = ("stage4", "stage2")
CPU = open_session(BUNDLE, "cpu", 1)


class OnCpu(CudaSession):
    """The session with its bindings in the CPU's memory."""

    device = "cpu"


def as_context(model: bytes) -> bytes:
    """What stands for the file that ONNX Runtime writes: the graph, told apart by its producer."""
    proto = onnx.load_from_string(model)
    proto.producer_name = "context"
    return proto.SerializeToString()


@pytest.fixture
def checked() -> list:
    """What sessions made sure of."""
    return []


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checked: list):
    """Opens sessions whose providers become the CPU's; the second element is what they asked for."""
    asked: list = []
    original = cuda.inference_session

    def on_cpu(model, options, providers, path):
        asked.append((model, providers))
        session = original(model, options, ["CPUExecutionProvider"], path)
        if (settings := providers[0][1]).get("trt_dump_ep_context_model") == "1":
            Path(settings["trt_ep_context_file_path"]).write_bytes(as_context(model))
        return session

    monkeypatch.setattr(cuda, "inference_session", on_cpu)
    monkeypatch.setattr(cuda, "check_providers", lambda _session, names: checked.append(names))
    monkeypatch.setattr(cuda, "load_cuda_libraries", lambda: checked.append("libraries"))
    monkeypatch.setattr(cuda, "onnx_runtime_provider", lambda name: {"tensorrt-ort": "Trt"}.get(name, "Cuda"))
    driver = CudaDriver(FakeLibrary())
    monkeypatch.setattr(cuda, "cuda_driver", lambda: driver)
    options = EngineOptions((1, 4), tmp_path / "engines")
    return lambda provider="cuda", **changes: OnCpu(BUNDLE, provider, 1, replace(options, **changes)), asked


def images(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return random_inputs(CPU.manifest.input_shape, CPU.manifest.preprocessing, count, rng)


@pytest.mark.parametrize("graphs", [False, True])
def test_runs_as_the_cpu_does(graphs: bool, opened) -> None:
    session = opened[0](cuda_graphs=graphs)
    for count, classes in ((1, [0]), (1, [3, -1]), (2, [1, -1]), (1, [5])):
        inputs, chosen = images(count, len(classes)), np.array(classes, np.int64)
        found, expected = (one.run(inputs, chosen, LAYERS) for one in (session, CPU))
        np.testing.assert_array_equal(found.class_indices, expected.class_indices)
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-6)
        for one, other in zip(found.layers, expected.layers, strict=True):
            np.testing.assert_allclose(one.activations, other.activations, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(one.gradients, other.gradients, rtol=1e-3, atol=1e-7)


def test_outputs_stay_on_the_device_with_dlpack(opened) -> None:
    session = opened[0]()
    inputs, classes = images(2), np.array([0, 4])
    expected = CPU.run(inputs, classes, LAYERS)
    with session.outputs_on_device(inputs, classes, LAYERS) as outputs:
        pass  # without CUDA graphs they hold as long as somebody has them
    assert outputs.memory is None
    assert outputs.stream == session.stream
    assert list(outputs.layers) == list(LAYERS)
    for layer in expected.layers:
        activations, gradients = outputs.layers[layer.name]
        assert isinstance(activations, onnxruntime.OrtValue)
        np.testing.assert_allclose(np.from_dlpack(activations), layer.activations, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.from_dlpack(gradients), layer.gradients, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(np.from_dlpack(outputs.logits), expected.logits, rtol=1e-5, atol=1e-6)


def test_recorded_shapes_keep_their_addresses(opened) -> None:
    session = opened[0](cuda_graphs=True)
    with session.outputs_on_device(images(1, 1), np.array([0]), LAYERS) as first:
        address = first.logits.data_ptr()
        kept = np.from_dlpack(first.logits).copy()
    with session.outputs_on_device(images(1, 2), np.array([0]), LAYERS) as second:
        assert second.logits.data_ptr() == address
        assert second.memory == first.memory != None  # noqa: E711
        assert not np.array_equal(np.from_dlpack(second.logits), kept)
    with session.outputs_on_device(images(2, 1), np.array([0, 1]), LAYERS) as other:
        assert other.logits.data_ptr() != address
        assert other.memory != first.memory


@pytest.mark.parametrize("graphs", [False, True])
def test_nobody_writes_to_what_is_still_read(graphs: bool, opened) -> None:
    session = opened[0](cuda_graphs=graphs)
    session.prepare(LAYERS)
    ran = threading.Event()

    def other() -> None:
        session.run(images(1, 2), np.array([0]), LAYERS)
        ran.set()

    thread = threading.Thread(target=other)
    with session.outputs_on_device(images(1, 1), np.array([0]), LAYERS) as outputs:
        before = np.from_dlpack(outputs.logits).copy()
        thread.start()
        assert ran.wait(0.3 if graphs else 30) != graphs
        np.testing.assert_array_equal(np.from_dlpack(outputs.logits), before)
    thread.join(30)
    assert ran.is_set()


def test_the_kernels_stream_is_the_sessions(opened) -> None:
    session = opened[0]()
    session.prepare(LAYERS)
    ((_, [(name, settings)]),) = opened[1]
    assert name == "CUDAExecutionProvider"
    assert settings["user_compute_stream"] == str(session.stream) != "0"
    assert settings["use_tf32"] == "0"
    assert settings["enable_cuda_graph"] == "0"
    assert cuda_options(5, EngineOptions(cuda_graphs=True))["enable_cuda_graph"] == "1"
    assert cuda_options(5, EngineOptions(tf32=True))["use_tf32"] == "1"


def test_tensorrt_in_onnx_runtime_gets_profiles(opened) -> None:
    opened[0]("tensorrt-ort").prepare(LAYERS)
    ((_, [(name, settings), (fallback, _)]),) = opened[1]
    assert (name, fallback) == ("Trt", "CUDAExecutionProvider")
    one, four = ("image:1x3x224x224,class_index:1", "image:4x3x224x224,class_index:4")
    assert settings["trt_profile_min_shapes"] == f"{one},{one}"
    assert settings["trt_profile_opt_shapes"] == settings["trt_profile_max_shapes"] == f"{one},{four}"


def built(asked: list) -> list[bool]:
    """For every graph that was opened, whether an engine was built of it; else it was a context."""
    for model, [(_, settings), *_] in asked:
        assert (onnx.load_from_string(model).producer_name == "context") == (
            "trt_dump_ep_context_model" not in settings
        )
        assert settings["trt_engine_cache_enable"] == "0"  # ONNX Runtime would trust those files
    return ["trt_dump_ep_context_model" in settings for _, [(_, settings), *_] in asked]


def test_the_next_start_loads_the_engine_that_the_first_one_sealed(opened, tmp_path: Path) -> None:
    first, second = opened[0]("tensorrt-ort"), opened[0]("tensorrt-ort")
    first.prepare(LAYERS)
    second.prepare(LAYERS)
    assert built(opened[1]) == [True, False]
    assert opened[1][0][1][0][1]["trt_ep_context_embed_mode"] == "1"
    assert sorted(path.suffix for path in (tmp_path / "engines").iterdir()) == [".engine", ".lock"]
    inputs, classes = images(2), np.array([0, 4])
    np.testing.assert_array_equal(second.run(inputs, classes, LAYERS).logits, first.run(inputs, classes, LAYERS).logits)
    # Other buckets or outputs have an engine of their own.
    opened[0]("tensorrt-ort", batches=(1,)).prepare(LAYERS)
    opened[0]("tensorrt-ort").prepare(LAYERS[:1])
    assert built(opened[1]) == [True, False, True, True]
    assert len(list((tmp_path / "engines").glob("*.engine"))) == 3


def foreign(path: Path) -> None:
    """The engine of other outputs under this name."""
    (other,) = (one for one in path.parent.glob("*.engine") if one != path)
    path.write_bytes(other.read_bytes())


def refused(path: Path) -> None:
    """A sound file whose content ONNX Runtime cannot load, as after an update of TensorRT."""
    content = path.read_bytes()
    start = len(MAGIC) + 4 + int.from_bytes(content[len(MAGIC) :][:4], "little")
    write_sealed(path, json.loads(content[len(MAGIC) + 4 : start])["key"], b"no context")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cut off"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), "content is damaged"),
        (lambda path: path.write_bytes(read_payload(path)), "no engine of camrt"),
        (lambda path: path.chmod(0o666), "others may write"),
        (foreign, "built for something else"),
        (refused, "ONNX Runtime refuses it"),
    ],
    ids=["cut", "damaged", "a bare context", "writable", "foreign", "refused"],
)
def test_a_context_that_is_not_sound_is_built_again(
    spoil: Callable[[Path], None], reason: str, opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened[0]("tensorrt-ort").prepare(LAYERS)
    (path,) = (tmp_path / "engines").glob("*.engine")
    opened[0]("tensorrt-ort").prepare(LAYERS[:1])
    spoil(path)
    opened[1].clear()
    opened[0]("tensorrt-ort").prepare(LAYERS)
    assert opened[1].pop()[1][0][1]["trt_dump_ep_context_model"] == "1"
    assert f"{path} is built again" in caplog.text
    assert reason in caplog.text
    opened[1].clear()
    opened[0]("tensorrt-ort").prepare(LAYERS)
    assert built(opened[1]) == [False]


def read_payload(path: Path) -> bytes:
    content = path.read_bytes()
    return content[len(MAGIC) + 4 + int.from_bytes(content[len(MAGIC) :][:4], "little") :]


def test_an_engine_that_onnx_runtime_does_not_write_is_told(
    opened, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = cuda.inference_session

    def without(model, options, providers, path):
        session = written(model, options, providers, path)
        Path(providers[0][1]["trt_ep_context_file_path"]).unlink()
        return session

    monkeypatch.setattr(cuda, "inference_session", without)
    session = opened[0]("tensorrt-ort")
    session.prepare(LAYERS)
    assert "left no engine" in caplog.text
    assert not list((tmp_path / "engines").glob("*.engine"))
    assert session.run(images(1), np.array([0]), LAYERS).logits.shape == (1, CPU.manifest.num_classes)


def test_a_scalar_tail_is_one_number(tmp_path: Path) -> None:
    settings = tensorrt_options(tmp_path, {"class_index": ()}, EngineOptions((2, 3), tmp_path, True), 9)
    assert settings["trt_profile_max_shapes"] == "class_index:2,class_index:3"
    assert settings["trt_cuda_graph_enable"] == "1"


@pytest.mark.parametrize("provider", ["cuda", "tensorrt-ort"])
def test_what_is_missing_is_said(provider: str) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the GPU's providers")
    with pytest.raises(BackendUnavailableError, match="onnxruntime-gpu"):
        open_session(BUNDLE, provider)


def test_a_provider_that_onnx_runtime_left_out_is_missed() -> None:
    session = onnxruntime.InferenceSession(BUNDLE.read_bytes(), providers=["CPUExecutionProvider"])
    check_providers(session, ["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailableError, match=r"could not load CUDAExecutionProvider\. See `camrt doctor`"):
        check_providers(session, ["CUDAExecutionProvider", "CPUExecutionProvider"])


@pytest.mark.parametrize("said", ["", "Failed to load libcublas.so.13"])
def test_libraries_are_loaded_without_a_word_on_the_console(said, monkeypatch, capsys, caplog) -> None:
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print(said, end=""), raising=False)
    with caplog.at_level("INFO", cuda.__name__):
        cuda._load_cuda_libraries.__wrapped__()
    assert capsys.readouterr().out == ""
    assert [record.getMessage() for record in caplog.records] == (
        [f"ONNX Runtime looks for CUDA's libraries: {said}"] if said else []
    )


def test_an_onnx_runtime_without_preloading_is_taken_as_it_is(monkeypatch) -> None:
    monkeypatch.delattr(onnxruntime, "preload_dlls", raising=False)
    cuda._load_cuda_libraries.__wrapped__()


@pytest.mark.parametrize("provider", ["cuda", "tensorrt-ort"])
def test_sessions_make_sure_of_their_libraries_and_providers(provider: str, opened, checked: list) -> None:
    session = opened[0](provider)
    assert checked == ["libraries"]
    session.prepare(LAYERS)
    known = {"cuda": "Cuda", "tensorrt-ort": "Trt"}[provider]
    assert checked[1:] == [{known, "CUDAExecutionProvider"}]


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("what", ["run", "run of an unrecorded shape", "opening", "another session"])
def test_while_launches_are_recorded_nothing_else_runs_or_opens(what: str, graphs: bool, opened, monkeypatch) -> None:
    if what == "run of an unrecorded shape":
        monkeypatch.setattr(cuda, "_MOST_RECORDINGS", 0)
    session = opened[0](cuda_graphs=graphs)
    beside = opened[0](cuda_graphs=graphs) if what == "another session" else session
    beside.prepare([])
    ran = threading.Event()

    def other() -> None:
        beside.prepare(LAYERS[:1]) if what == "opening" else beside.predict(images(1))
        ran.set()

    thread = threading.Thread(target=other)
    with session.outputs_on_device(images(1, 1), np.array([0]), LAYERS):
        thread.start()
        assert ran.wait(0.3 if graphs else 30) != graphs
    thread.join(30)
    assert ran.is_set()


def test_a_layer_must_be_named(opened) -> None:
    with (
        pytest.raises(InvalidInputError, match="No layer is to be explained"),
        opened[0]().outputs_on_device(images(1), np.array([0]), ()),
    ):
        pass


def test_libraries_are_loaded_once(monkeypatch) -> None:
    calls: list = []
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: calls.append(1), raising=False)
    cuda._load_cuda_libraries.cache_clear()
    for _ in range(2):
        cuda.load_cuda_libraries()
    assert calls == [1]
    cuda._load_cuda_libraries.cache_clear()
