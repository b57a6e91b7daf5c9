"""Sessions: opened when needed, cached, safe from several threads, and strict about what they are given."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import camrt
from camrt.bundle import MAX_RANK, Bundle
from camrt.errors import (
    BackendUnavailableError,
    ClassIndexError,
    InvalidInputError,
    InvalidModelError,
    LayerNotFoundError,
    MethodUnavailableError,
    UnsupportedModelError,
)
from camrt.explainer import embedded_bundle_path
from camrt.runtime import available_providers, bundle_session, open_model, open_session
from camrt.runtime import onnxruntime as engine
from tests.exporter.graphs import GraphWriter, channels_last_classifier, residual_classifier

LAYERS = ("stage3", "stage2", "stage1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("session")
    return camrt.export(residual_classifier(folder / "source.onnx"), folder / "bundle.onnx")


def images(count: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every graph that an ONNX Runtime session was opened on."""
    graphs: list[bytes] = []
    open_one = onnxruntime.InferenceSession

    def record(model: bytes, *arguments: object, **options: object) -> onnxruntime.InferenceSession:
        graphs.append(model)
        return open_one(model, *arguments, **options)

    monkeypatch.setattr(engine.onnxruntime, "InferenceSession", record)
    return graphs


def test_the_number_of_open_sessions_is_bounded(
    bundle: Bundle, opened: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_session, "SPARE_GRAPHS", 0)
    session = open_session(bundle.path, threads=1)
    classes = np.array([0, 1])
    session.predict(images())
    session.run(images(), classes, LAYERS)
    first = session.run(images(), classes, LAYERS[:1])
    for derivatives in (0, 1):  # with those before four choices, and the bundle has room for 1 + 3
        session.run(images(), classes, LAYERS[1:2], derivatives)
    session.run(images(), classes, LAYERS[2:])
    assert len(opened) == 6
    session.run(images(), classes, LAYERS[:1])  # the one opened first is not the one used last
    session.run(images(), classes, LAYERS[:2])
    assert len(opened) == 7
    session.run(images(), classes, LAYERS[:1])
    assert len(opened) == 7  # still open
    session.run(images(), classes, LAYERS[1:2], 0)
    assert len(opened) == 8  # was closed
    for layers in (LAYERS[1:], LAYERS[::2], LAYERS[1:2]):
        session.prepare(layers)
    count = len(opened)
    session.predict(images())
    session.run(images(), classes, LAYERS)
    assert len(opened) == count  # whatever else is opened, these stay
    again = session.run(images(), classes, LAYERS[:1])
    assert len(opened) == count + 1
    np.testing.assert_array_equal(again.layers[0].gradients, first.layers[0].gradients)


@pytest.mark.parametrize("derivatives", [0, 1])
def test_orders_of_layers_are_one_choice(bundle: Bundle, opened: list[bytes], derivatives: int) -> None:
    session = open_session(bundle.path, threads=1)
    classes = np.array([0, 4])
    inputs = images()
    wanted = {layer.name: layer for layer in session.run(inputs, classes, LAYERS, derivatives).layers}
    for order in itertools.permutations(LAYERS):
        layers = session.run(inputs, classes, order, derivatives).layers
        assert tuple(layer.name for layer in layers) == order
        for layer in layers:
            np.testing.assert_array_equal(layer.activations, wanted[layer.name].activations)
            np.testing.assert_array_equal(layer.gradients, wanted[layer.name].gradients)
    assert len(opened) == 1


def test_sessions_are_opened_when_needed_and_once(bundle: Bundle, opened: list[bytes]) -> None:
    session = open_session(bundle.path, threads=1)
    assert opened == []
    for _ in range(2):
        session.predict(images())
    assert len(opened) == 1
    for _ in range(2):
        session.run(images(), np.array([0, 1]), ["stage3"])
        session.run(images(1), np.array([0, 1, 2]), ["stage3"])
    assert len(opened) == 2
    session.run(images(), np.array([0, 1]), LAYERS)
    session.run_from_layer("stage3", np.zeros((1, 16, 2, 2), np.float32))
    assert len(opened) == 4
    assert len(set(opened)) == 4


def test_threads_that_need_the_same_session_open_it_once(bundle: Bundle, opened: list[bytes]) -> None:
    session = open_session(bundle.path, threads=1)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: session.predict(images()), range(16)))
    assert len(opened) == 1
    assert all(np.array_equal(result, results[0]) for result in results)


def test_concurrent_runs_give_what_each_gives_alone(bundle: Bundle) -> None:
    session = open_session(bundle.path, threads=1)
    choices = [["stage3"], ["stage2", "stage1"], list(LAYERS)]

    def run(number: int) -> list[np.ndarray]:
        layers = choices[number % 3]
        outputs = session.run(images(2, number), np.array([number % 5, -1]), layers)
        return [outputs.logits, outputs.class_indices, *(layer.gradients for layer in outputs.layers)]

    alone = [run(number) for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(12)))
    for mine, theirs in zip(together, alone, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_predict_equals_the_logits_of_a_run_and_of_the_source(bundle: Bundle) -> None:
    session = open_session(bundle.path, threads=1)
    inputs = images(3)
    expected = open_model(bundle.path.with_name("source.onnx"), threads=1).run({"image": inputs})["logits"]
    np.testing.assert_array_equal(session.predict(inputs), expected)
    np.testing.assert_allclose(session.run(inputs, np.array([0, 1, 2]), LAYERS).logits, expected, rtol=0, atol=1e-6)


def test_one_layer_gives_the_same_as_all(bundle: Bundle) -> None:
    session = open_session(bundle.path, threads=1)
    together = session.run(images(), np.array([3, -2]), LAYERS)
    assert [layer.name for layer in together.layers] == list(LAYERS)
    for layer in together.layers:
        alone = session.run(images(), np.array([3, -2]), [layer.name]).layers[0]
        np.testing.assert_allclose(alone.gradients, layer.gradients, rtol=0, atol=1e-7)
        np.testing.assert_allclose(alone.activations, layer.activations, rtol=0, atol=1e-6)


def test_a_run_without_layers_is_a_prediction(bundle: Bundle, opened: list[bytes]) -> None:
    session = open_session(bundle.path, threads=1)
    outputs = session.run(images(), np.array([0, 1]), [])
    np.testing.assert_array_equal(outputs.logits, session.predict(images()))
    assert (outputs.layers, len(outputs.class_indices), len(opened)) == ((), 0, 1)


def test_a_layer_asked_for_twice_comes_twice(bundle: Bundle) -> None:
    outputs = open_session(bundle.path, threads=1).run(images(1), np.array([0]), ["stage3", "stage3"])
    np.testing.assert_array_equal(outputs.layers[0].gradients, outputs.layers[1].gradients)


def test_run_from_layer_continues_the_network(bundle: Bundle) -> None:
    session = open_session(bundle.path, threads=1)
    outputs = session.run(images(), np.array([0, 1]), LAYERS)
    for layer in outputs.layers:
        logits = session.run_from_layer(layer.name, layer.activations)
        np.testing.assert_allclose(logits, outputs.logits, rtol=0, atol=1e-6)
    changed = session.run_from_layer("stage2", np.zeros((4, 12, 4, 4), np.float32))
    assert changed.shape == (4, 5)
    assert np.abs(changed[:2] - outputs.logits).max() > 1e-3


@pytest.mark.parametrize(
    "activations",
    [np.zeros((1, 12, 4, 5), np.float32), np.zeros((0, 12, 4, 4), np.float32), np.zeros((12, 4, 4), np.float32),
     np.zeros((1, 12, 4, 4))],
)  # fmt: skip
def test_run_from_layer_refuses_other_shapes_and_dtypes(bundle: Bundle, activations: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match="12, 4, 4"):
        open_session(bundle.path, threads=1).run_from_layer("stage2", activations)


def test_run_from_a_layer_that_is_kept_with_channels_last(tmp_path: Path) -> None:
    bundle = camrt.export(channels_last_classifier(tmp_path / "source.onnx"), tmp_path / "bundle.onnx", ["tail"])
    session = open_session(bundle.path, threads=1)
    assert bundle.manifest.layer("tail").layout == "NHWC"
    inputs = np.random.default_rng(0).standard_normal((2, 3, 16, 24)).astype(np.float32)
    outputs = session.run(inputs, np.array([0, 1]), ["tail"])
    (layer,) = outputs.layers
    np.testing.assert_allclose(session.run_from_layer("tail", layer.activations), outputs.logits, rtol=0, atol=1e-6)


def test_target_gradients_from_a_layer_are_those_of_a_run(tmp_path: Path) -> None:
    source = residual_classifier(tmp_path / "source.onnx")
    session = open_session(camrt.export(source, tmp_path / "bundle.onnx", second_order=True).path, threads=1)
    classes = np.array([3, 0])
    for layer in session.run(images(), classes, LAYERS, derivatives=2).layers:
        found = session.target_gradients_from_layer(layer.name, layer.activations, classes)
        np.testing.assert_allclose(found, layer.gradients, rtol=0, atol=1e-6 * np.abs(layer.gradients).max())
    with pytest.raises(ClassIndexError):
        session.target_gradients_from_layer("stage2", np.zeros((2, 12, 4, 4), np.float32), np.array([9, 0]))


def test_target_gradients_need_second_derivatives(bundle: Bundle) -> None:
    with pytest.raises(MethodUnavailableError, match="second_order=True"):
        open_session(bundle.path, threads=1).target_gradients_from_layer(
            "stage2", np.zeros((1, 12, 4, 4), np.float32), np.array([0])
        )


def test_run_from_layer_refuses_what_it_cannot_start_at(tmp_path: Path) -> None:
    bundle = camrt.export(channels_last_classifier(tmp_path / "source.onnx"), tmp_path / "bundle.onnx", ["tail"])
    session = open_session(bundle.path, threads=1)
    tokens = replace(bundle.manifest.layer("tail"), layout="NLC")
    session.manifest = replace(bundle.manifest, target_layers=(tokens,))
    with pytest.raises(UnsupportedModelError, match="NLC"):
        session.run_from_layer("tail", np.zeros((1, 6, 4, 6), np.float32))
    with pytest.raises(LayerNotFoundError, match="it has tail"):
        session.run_from_layer("stage3", np.zeros((1, 6, 4, 6), np.float32))


@pytest.mark.parametrize(
    "inputs",
    [
        np.zeros((2, 3, 32, 31), np.float32),
        np.zeros((2, 1, 32, 32), np.float32),
        np.zeros((3, 32, 32), np.float32),
        np.zeros((0, 3, 32, 32), np.float32),
        np.zeros((2, 3, 32, 32)),
        np.zeros((2, 3, 32, 32), np.uint8),
    ],
    ids=["width", "channels", "no-batch", "empty", "float64", "uint8"],
)
@pytest.mark.parametrize("call", ["predict", "run"])
def test_other_inputs_are_refused(bundle: Bundle, inputs: np.ndarray, call: str) -> None:
    session = open_session(bundle.path, threads=1)
    calls: dict[str, Callable[[], object]] = {
        "predict": lambda: session.predict(inputs),
        "run": lambda: session.run(inputs, np.zeros(max(len(inputs), 1), np.int64), ["stage3"]),
    }
    with pytest.raises(InvalidInputError):
        calls[call]()


def test_inputs_need_not_be_contiguous_and_are_not_written_to(bundle: Bundle) -> None:
    session = open_session(bundle.path, threads=1)
    strided = np.asfortranarray(images())
    before = strided.copy()
    strided.flags.writeable = False
    np.testing.assert_array_equal(session.predict(strided), session.predict(images()))
    np.testing.assert_array_equal(strided, before)


@pytest.mark.parametrize(
    ("classes", "count"),
    [
        (np.array([5, 0]), 2),
        (np.array([-6, 0]), 2),
        (np.array([0]), 2),
        (np.array([0, 1, 2]), 2),
        (np.array([], np.int64), 1),
        (np.array([[0]]), 1),
        (np.array([0], np.int32), 1),
        (np.array([0.0]), 1),
        (np.array([np.iinfo(np.int64).max]), 1),
        (np.array([np.iinfo(np.int64).min]), 1),
    ],
)
def test_class_indices_out_of_range_or_of_another_kind(bundle: Bundle, classes: np.ndarray, count: int) -> None:
    with pytest.raises(ClassIndexError):
        open_session(bundle.path, threads=1).run(images(count), classes, ["stage3"])


def test_the_range_is_named(bundle: Bundle) -> None:
    with pytest.raises(ClassIndexError, match=r"\[5\] are out of range for 5 classes. Use 0 to 4, or -1 to -5"):
        open_session(bundle.path, threads=1).run(images(1), np.array([5]), ["stage3"])


def test_ranks_end_where_the_sorted_classes_end(tmp_path: Path) -> None:
    classes = MAX_RANK + 10
    w = GraphWriter()
    w.classify(w.add("Relu", "r1", w.conv("c1", "image", (3, 4), 3, 2)), 4, classes)
    path = w.save(tmp_path / "source.onnx", ("N", 3, 8, 8), {"logits": ["N", classes]})
    session = open_session(camrt.export(path, tmp_path / "bundle.onnx", ["r1"]).path, threads=1)
    inputs = images(1)[..., :8, :8]
    logits = session.predict(inputs)[0]
    outputs = session.run(inputs, np.array([-MAX_RANK, classes - 1]), ["r1"])
    assert outputs.class_indices.tolist() == [np.argsort(-logits, kind="stable")[MAX_RANK - 1], classes - 1]
    with pytest.raises(ClassIndexError, match=f"-1 to -{MAX_RANK}"):
        session.run(inputs, np.array([-MAX_RANK - 1]), ["r1"])


def test_an_unknown_layer(bundle: Bundle) -> None:
    with pytest.raises(LayerNotFoundError, match="it has stage3, stage2, stage1"):
        open_session(bundle.path, threads=1).run(images(1), np.array([0]), ["stage4"])


def test_not_a_number_passes_through_a_session(bundle: Bundle) -> None:
    """The session is below the checks of the Explainer: it computes what the model computes."""
    inputs = images(1)
    inputs[0, 0, 0, 0] = np.nan
    assert np.isnan(open_session(bundle.path, threads=1).predict(inputs)).any()


def test_providers(bundle: Bundle) -> None:
    statuses = {status.name: status for status in available_providers()}
    assert statuses["cpu"].available
    assert onnxruntime.__version__ in statuses["cpu"].detail
    with pytest.raises(BackendUnavailableError, match=r"Unknown provider 'tpu'. Choose one of cpu, cuda"):
        open_session(bundle.path, provider="tpu")
    if not statuses["cuda"].available:
        assert "onnxruntime-gpu" in statuses["cuda"].detail
        with pytest.raises(BackendUnavailableError, match="onnxruntime-gpu"):
            open_session(bundle.path, provider="cuda")


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_the_number_of_threads_changes_nothing(bundle: Bundle, threads: int) -> None:
    expected = open_session(bundle.path, threads=1).run(images(), np.array([0, 1]), LAYERS)
    actual = open_session(bundle.path, threads=threads).run(images(), np.array([0, 1]), LAYERS)
    np.testing.assert_allclose(actual.layers[2].gradients, expected.layers[2].gradients, rtol=0, atol=1e-6)


def test_a_negative_number_of_threads_is_refused(bundle: Bundle) -> None:
    with pytest.raises(InvalidInputError, match="threads"):
        open_session(bundle.path, threads=-1)


def test_open_model_refuses_what_is_no_model(tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("not a model\n" * 30)
    for path in (text, tmp_path / "missing.onnx"):
        with pytest.raises(InvalidModelError, match=path.name):
            open_model(path)


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((0, 3, 224, 224), "Give at least one image"),
        ((2, 224, 224, 3), r"Transpose them to \(N, C, H, W\)"),
        ((2, 3, 100, 100), "Resize the images"),
        ((3, 224, 224), "Resize the images"),
    ],
)
def test_inputs_of_a_wrong_shape_are_refused_with_what_helps(shape: tuple[int, ...], advice: str):
    session = open_session(embedded_bundle_path(), "cpu", 1)
    with pytest.raises(InvalidInputError, match=rf"the bundle takes \(N, 3, 224, 224\)\. {advice}"):
        session.predict(np.zeros(shape, np.float32))
