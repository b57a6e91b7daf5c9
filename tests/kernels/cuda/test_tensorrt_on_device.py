"""TensorRT's outputs stay on the device until the final map: a TensorRT that is not there, and emulated kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import camrt
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
    graphs: bool, backend: KernelBackend, device: EmulatedDevice, opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = camrt.Explainer(backend=backend.name)
    on_cpu = explainer._session
    pictures = [images(count)[:1] for count in (1, 2, 3, 4)]
    expected = [explainer.explain(one)[0] for one in pictures]
    explainer._session = opened(graphs)
    monkeypatch.setattr(TensorRtSession, "_execute", None)  # what copies everything
    for picture, other in zip(pictures, expected, strict=True):
        device.launches.clear()
        [one] = explainer.explain(picture)
        np.testing.assert_allclose(one.saliency_map, other.saliency_map, atol=1e-4)
        assert one.class_index == other.class_index
        assert any(launch.startswith("stream") for launch in device.launches)
    assert ("fuse_tiles" in device.launches) != graphs  # replayed by now
    assert on_cpu.manifest.layer_names == explainer.manifest.layer_names


def test_a_batch_beyond_the_largest_bucket_goes_by_the_host(backend: KernelBackend, device, opened) -> None:
    explainer = camrt.Explainer(backend=backend.name)
    expected = explainer.explain(images(4))
    explainer._session = opened()
    device.launches.clear()
    for one, other in zip(explainer.explain(images(4)), expected, strict=True):
        np.testing.assert_allclose(one.saliency_map, other.saliency_map, atol=1e-4)
    assert not any(launch.startswith("stream") for launch in device.launches)
