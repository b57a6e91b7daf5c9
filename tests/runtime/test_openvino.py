"""OpenVINO's sessions against ONNX Runtime's: the same numbers in float32, an exact forward part with bfloat16."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import camrt
from camrt.bundle import Bundle
from camrt.errors import BackendUnavailableError, InvalidInputError, UnsupportedModelError
from camrt.explainer import embedded_bundle_path
from camrt.runtime import Session, available_providers, open_session
from camrt.runtime import openvino as engine
from tests.models import export_onnx, make_inputs, make_model

SIZE = 96
STATUS = {status.name: status for status in available_providers()}
NEEDS_BFLOAT16 = pytest.mark.skipif(not STATUS["openvino-bf16"].available, reason=STATUS["openvino-bf16"].detail)
LEAST_CORRELATION = 0.99


@pytest.fixture(scope="module", params=["resnet18", "mobilenet_v2", "densenet121"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("openvino")
    model = make_model(request.param, size=SIZE, num_classes=20, images=make_inputs(2, SIZE, 3))
    source = export_onnx(model, folder / "model.onnx", "torchscript")
    return camrt.export(source, folder / "bundle.onnx", list(model.target_layers), image_size=(SIZE, SIZE))


def relative(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


def test_float32_agrees_with_onnx_runtime(bundle: Bundle) -> None:
    ours, oracle = open_session(bundle.path, "openvino", 1), open_session(bundle.path, "cpu", 1)
    images, classes = make_inputs(2, SIZE, 3), np.array([3, -1])
    assert relative(ours.predict(images), oracle.predict(images)) < 1e-5
    found, expected = (session.run(images, classes, bundle.manifest.layer_names) for session in (ours, oracle))
    np.testing.assert_array_equal(found.class_indices, expected.class_indices)
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert relative(one.activations, other.activations) < 1e-5
        assert relative(one.gradients, other.gradients) < 1e-4


@NEEDS_BFLOAT16
def test_bfloat16_gradients_under_an_exact_forward_part(bundle: Bundle) -> None:
    images, classes = make_inputs(2, SIZE, 3), np.array([3, -1])
    names = bundle.manifest.layer_names
    found = open_session(bundle.path, "openvino-bf16", 1).run(images, classes, names)
    exact = open_session(bundle.path, "openvino", 1).run(images, classes, names)
    assert relative(found.logits, exact.logits) < 1e-5
    for one, other in zip(found.layers, exact.layers, strict=True):
        assert relative(one.activations, other.activations) < 1e-5
        assert np.corrcoef(one.gradients.ravel(), other.gradients.ravel())[0, 1] > LEAST_CORRELATION
    # It did compute in bfloat16: float32 would agree to 1e-5.
    assert relative(found.layers[-1].gradients, exact.layers[-1].gradients) > 1e-4


@NEEDS_BFLOAT16
def test_maps_keep_their_shape_in_bfloat16(bundle: Bundle) -> None:
    images = make_inputs(2, SIZE, 3)
    found = camrt.Explainer(bundle.path, "openvino-bf16", 1).explain(images)
    exact = camrt.Explainer(bundle.path, "cpu", 1).explain(images)
    for one, other in zip(found, exact, strict=True):
        assert one.class_index == other.class_index
        assert np.corrcoef(one.saliency_map.ravel(), other.saliency_map.ravel())[0, 1] > LEAST_CORRELATION


@NEEDS_BFLOAT16
def test_second_derivatives_in_bfloat16_under_an_exact_forward_part(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "training" / "shapes_cnn.onnx"
    path = camrt.export(source, tmp_path / "bundle.onnx", second_order=True).path
    low, exact = open_session(path, "openvino-bf16", 1), open_session(path, "openvino", 1)
    image = np.random.default_rng(0).standard_normal((1, *low.manifest.input_shape)).astype(np.float32)
    names = low.manifest.layer_names
    found, expected = (session.run(image, np.array([1, 4]), names, derivatives=2) for session in (low, exact))
    assert relative(found.logits, expected.logits) < 1e-5
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert relative(one.activations, other.activations) < 1e-5
        assert np.corrcoef(one.gradients.ravel(), other.gradients.ravel())[0, 1] > LEAST_CORRELATION


def small_session(provider: str) -> Session:
    return open_session(embedded_bundle_path(), provider, 1)


def test_several_classes_of_one_image_and_a_part_of_the_layers() -> None:
    ours, oracle = small_session("openvino"), small_session("cpu")
    image = np.random.default_rng(0).standard_normal((1, *ours.manifest.input_shape)).astype(np.float32)
    layer = ours.manifest.layer_names[1:2]
    found, expected = (session.run(image, np.array([0, 4, 2]), layer) for session in (ours, oracle))
    assert found.layers[0].gradients.shape[0] == 3
    assert relative(found.layers[0].gradients, expected.layers[0].gradients) < 1e-4
    activations = expected.layers[0].activations
    from_layer = ours.run_from_layer(layer[0], activations)
    assert relative(from_layer, oracle.run_from_layer(layer[0], activations)) < 1e-5


def test_threads_get_requests_of_their_own() -> None:
    session = small_session("openvino")
    images = np.random.default_rng(0).standard_normal((6, 1, *session.manifest.input_shape)).astype(np.float32)
    alone = [session.predict(image) for image in images]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(session.predict, list(images) * 4))
    for number, logits in enumerate(together):
        np.testing.assert_array_equal(logits, alone[number % 6])


def test_results_do_not_change_under_a_later_run() -> None:
    session = small_session("openvino")
    images = np.random.default_rng(0).standard_normal((2, 1, *session.manifest.input_shape)).astype(np.float32)
    first = session.predict(images[0])
    kept = first.copy()
    session.predict(images[1])
    np.testing.assert_array_equal(first, kept)


def test_inputs_are_checked_as_by_every_session() -> None:
    with pytest.raises(InvalidInputError, match="shape"):
        small_session("openvino").predict(np.zeros((1, 3, 5, 5), np.float32))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise BackendUnavailableError("OpenVINO is not installed.", "Install it with: pip install 'camrt[openvino]'")

    monkeypatch.setattr(engine, "_module", missing)
    with pytest.raises(BackendUnavailableError, match=r"camrt\[openvino\]"):
        small_session("openvino")
    status = {one.name: one for one in available_providers()}["openvino"]
    assert not status.available
    assert "camrt[openvino]" in status.detail


def test_a_processor_without_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> object:
            return ["FP32"] if name == "OPTIMIZATION_CAPABILITIES" else "an old processor"

    monkeypatch.setattr(engine, "_core", Core)
    with pytest.raises(BackendUnavailableError, match="an old processor"):
        small_session("openvino-bf16")


@NEEDS_BFLOAT16
def test_a_forward_part_that_would_be_rounded_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from camrt.runtime import openvino_precision

    monkeypatch.setattr(openvino_precision, "_mark", lambda layer: None)
    with pytest.raises(UnsupportedModelError, match="round the forward part"):
        small_session("openvino-bf16")


@pytest.mark.parametrize(
    ("provider", "least"), [("openvino", 0.999), pytest.param("openvino-bf16", 0.99, marks=NEEDS_BFLOAT16)]
)
def test_it_is_compared_with_the_cpu_when_it_is_opened(provider: str, least: float) -> None:
    parity = open_session(embedded_bundle_path(), provider, 1).parity
    assert (parity.provider, parity.threshold, parity.top1_agreement) == (provider, least, 1.0)
    assert min(parity.correlations.values()) > 0.9999


def test_what_it_computes_otherwise_than_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = engine.OpenVinoSession._execute
    monkeypatch.setattr(
        engine.OpenVinoSession, "_execute", lambda *given: [array[..., ::-1].copy() for array in original(*given)]
    )
    with pytest.raises(BackendUnavailableError, match="'openvino' explains this fp32 bundle otherwise"):
        small_session("openvino")
