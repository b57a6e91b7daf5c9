"""Whole explanations with the CUDA backend, on an emulated GPU."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import camrt
from camrt.kernels import KernelBackend
from camrt.runtime.session import Session
from tests.kernels.cuda.emulation import EmulatedDevice


def picture(explainer: camrt.Explainer) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, *explainer.manifest.input_shape), dtype=np.float32)


@pytest.mark.parametrize("method", ["gradcam++", "layercam"])
def test_explanations_are_those_of_the_native_backend(backend: KernelBackend, method):
    native = camrt.Explainer()
    image = picture(native)
    [expected] = native.explain(image, base_method=method)
    [result] = camrt.Explainer(backend=backend.name).explain(image, base_method=method)
    np.testing.assert_allclose(result.saliency_map, expected.saliency_map, atol=1e-5)
    assert result.degenerate == expected.degenerate


class OnTheHost:
    """What a session gives for a small output: copied when asked for."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def numpy(self) -> np.ndarray:
        return self._array


class SessionOnDevice:
    """A session on the emulated GPU: the CPU's, with the layers' arrays put there."""

    stream = 42

    def __init__(self, session: Session, device: EmulatedDevice) -> None:
        self._session, self._device = session, device
        self.manifest, self.prepare, self.run = session.manifest, session.prepare, session.run

    def run_on_device(self, inputs, class_indices, layers) -> SimpleNamespace:
        outputs = self._session.run(inputs, class_indices, layers)
        arrays = {
            layer.name: (self._device.to_device(layer.activations), self._device.to_device(layer.gradients))
            for layer in outputs.layers
        }
        return SimpleNamespace(
            logits=OnTheHost(outputs.logits), class_indices=OnTheHost(outputs.class_indices), layers=arrays
        )


@pytest.mark.parametrize("classes", [None, [0, 2, -1]], ids=["one class", "three classes"])
def test_arrays_stay_on_the_device(backend: KernelBackend, device: EmulatedDevice, classes):
    explainer = camrt.Explainer(backend=backend.name)
    image = picture(explainer)
    expected = explainer.explain(image, classes)
    explainer._session = SessionOnDevice(explainer._session, device)
    device.launches.clear()
    before = device.copies_to_host
    results = explainer.explain(image, classes)
    assert device.launches[0] == "stream 42"
    assert device.copies_to_host == before  # as_numpy takes the emulation's final maps for NumPy's
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(one.saliency_map, other.saliency_map)
        assert (one.class_index, one.logit, one.degenerate) == (other.class_index, other.logit, other.degenerate)
        assert one.layer_maps.keys() == other.layer_maps.keys()


def test_methods_that_need_more_than_one_run_with_gradients_take_the_host(backend, device):
    explainer = camrt.Explainer(backend=backend.name)
    image = picture(explainer)
    [expected] = explainer.explain(image, base_method="eigencam")
    explainer._session = SessionOnDevice(explainer._session, device)
    device.launches.clear()
    [result] = explainer.explain(image, base_method="eigencam")
    assert "stream 42" not in device.launches
    np.testing.assert_array_equal(result.saliency_map, expected.saliency_map)
