"""TensorRT's outputs stay on the device until the final map: a TensorRT that is not there, and emulated kernels."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import camrt
from camrt.errors import BundleError, InvalidInputError
from camrt.explainer import embedded_bundle_path
from camrt.kernels import KernelBackend
from camrt.runtime.cuda_driver import CudaDriver
from camrt.runtime.engine_options import EngineOptions
from camrt.runtime.tensorrt import session as tensorrt_session
from camrt.runtime.tensorrt.session import TensorRtSession
from tests.kernels.cuda.emulation import EmulatedDevice
from tests.runtime.fake_gpu import FakeLibrary, FakeTensorRt

LAYERS = ("stage4", "stage3")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Opens sessions on a fake TensorRT, with buckets of 1 and 3."""
    library = FakeLibrary()
    module, driver = FakeTensorRt(library), CudaDriver(library)
    monkeypatch.setattr(tensorrt_session, "load_tensorrt", lambda: module)
    monkeypatch.setattr(tensorrt_session, "cuda_driver", lambda: driver)

    def session(graphs: bool = False) -> TensorRtSession:
        options = EngineOptions((1, 3), tmp_path / "engines", cuda_graphs=graphs, check=False)
        return TensorRtSession(embedded_bundle_path(), options=options)

    return session


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 224, 224), dtype=np.float32)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize(("count", "classes"), [(1, [0]), (1, [1, -1]), (2, [1, 0]), (3, [0, 1, 2])])
def test_arrays_on_the_device_are_what_a_run_returns(graphs: bool, count: int, classes: list[int], opened) -> None:
    session = opened(graphs)
    inputs, chosen = images(count), np.array(classes, np.int64)
    expected = session.run(inputs, chosen, LAYERS)
    with session.outputs_on_device(inputs, chosen, LAYERS) as found:
        assert (found.memory is not None) == graphs
        assert found.stream > 0
        np.testing.assert_array_equal(found.logits.numpy(), expected.logits)
        np.testing.assert_array_equal(found.class_indices.numpy(), expected.class_indices)
        for layer in expected.layers:
            activations, gradients = found.layers[layer.name]
            assert activations.__cuda_array_interface__["shape"] == layer.activations.shape
            np.testing.assert_array_equal(activations.numpy(), layer.activations)
            np.testing.assert_array_equal(gradients.numpy(), layer.gradients)


@pytest.mark.parametrize(
    ("classes", "layers", "said"), [([0, 1, 2, 3], LAYERS, "4 classes in one run"), ([0], (), "No layer")]
)
def test_what_no_run_can_do_is_refused(classes: list[int], layers: tuple[str, ...], said: str, opened) -> None:
    with (
        pytest.raises(InvalidInputError, match=said),
        opened().outputs_on_device(images(1), np.array(classes), layers),
    ):
        pass


def test_inputs_live_until_they_have_been_copied(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    copied, original = [], CudaDriver.copy_in

    def copy_in(self, address, array, stream) -> None:
        copied.append(weakref.ref(array))
        original(self, address, array, stream)

    monkeypatch.setattr(CudaDriver, "copy_in", copy_in)
    with opened().outputs_on_device(images(1), np.array([0]), LAYERS):
        assert len(copied) == 2
        assert all(array() is not None for array in copied)


def test_an_array_of_another_shape_than_the_manifest_says_is_refused(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened()
    layer = session.manifest.layer("stage4")
    monkeypatch.setattr(type(session.manifest), "layer", lambda *_: replace(layer, shape=(1, 2, 3)))
    with (
        pytest.raises(BundleError, match=r"an array of shape .* where the manifest says \(N, \(1, 2, 3\)\)"),
        session.outputs_on_device(images(1), np.array([0]), ("stage4",)),
    ):
        pass


def test_a_run_beside_it_has_memory_of_its_own(opened) -> None:
    session = opened()
    one, other = images(1), images(2)[:1]
    classes = np.array([0])
    expected = session.predict(one)
    with session.outputs_on_device(one, classes, LAYERS) as first:
        with session.outputs_on_device(other, classes, LAYERS) as second:
            assert second.logits.address != first.logits.address
            assert second.stream != first.stream
        np.testing.assert_allclose(first.logits.numpy(), expected, rtol=1e-5)
    with session.outputs_on_device(other, classes, LAYERS) as third:
        assert third.stream in (first.stream, second.stream)  # contexts are used again


@pytest.mark.parametrize("graphs", [False, True])
def test_explanations_copy_nothing_before_the_final_map(
    graphs: bool, backend: KernelBackend, device: EmulatedDevice, opened
) -> None:
    explainer = camrt.Explainer(backend=backend.name)
    pictures = [images(count)[:1] for count in (1, 2, 3, 4)]
    expected = [explainer.explain(one)[0] for one in pictures]
    explainer._session = opened(graphs)
    for picture, other in zip(pictures, expected, strict=True):
        device.launches.clear()
        before = explainer._session._driver._library.copies_out, device.copies_to_host
        [one] = explainer.explain(picture)
        # Logits and class, and of the emulation nothing: its maps count as NumPy's.
        assert explainer._session._driver._library.copies_out == before[0] + 2
        assert device.copies_to_host == before[1]
        np.testing.assert_allclose(one.saliency_map, other.saliency_map, atol=1e-4)
        assert one.class_index == other.class_index
        assert any(launch.startswith("stream") for launch in device.launches)
    assert ("fuse_tiles" in device.launches) != graphs  # replayed by now


def test_a_batch_beyond_the_largest_bucket_goes_by_the_host(backend: KernelBackend, device, opened) -> None:
    explainer = camrt.Explainer(backend=backend.name)
    expected = explainer.explain(images(4))
    explainer._session = opened()
    device.launches.clear()
    for one, other in zip(explainer.explain(images(4)), expected, strict=True):
        np.testing.assert_allclose(one.saliency_map, other.saliency_map, atol=1e-4)
    assert not any(launch.startswith("stream") for launch in device.launches)
