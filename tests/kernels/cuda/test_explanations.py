"""Whole explanations with the CUDA backend, on an emulated GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

import camrt
from camrt.kernels import KernelBackend
from camrt.runtime.device_outputs import DeviceOutputs
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

    def __init__(self, session: Session, device: EmulatedDevice, fixed: bool = False, most: int | None = None) -> None:
        self._session, self._device, self._fixed, self.most_on_device = session, device, fixed, most
        self._memory: dict = {}
        self.manifest, self.prepare, self.run = session.manifest, session.prepare, session.run

    @contextlib.contextmanager
    def outputs_on_device(self, inputs, class_indices, layers) -> Iterator[DeviceOutputs]:
        outputs = self._session.run(inputs, class_indices, layers)
        arrays = {layer.name: (layer.activations, layer.gradients) for layer in outputs.layers}
        on_device = {name: tuple(map(self._device.to_device, pair)) for name, pair in arrays.items()}
        key = tuple((name, a.shape, g.shape) for name, (a, g) in arrays.items())
        if self._fixed:
            on_device = self._memory.setdefault(key, on_device)
            for name, pair in arrays.items():
                for kept, array in zip(on_device[name], pair, strict=True):
                    kept[...] = array
        logits, classes = OnTheHost(outputs.logits), OnTheHost(outputs.class_indices)
        yield DeviceOutputs(logits, classes, on_device, 42, (id(self), key) if self._fixed else None)


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


@pytest.mark.parametrize("method", ["gradcam++", "layercam"])
def test_kernels_are_recorded_where_arrays_stay_at_their_addresses(backend, device, method):
    explainer = camrt.Explainer(backend=backend.name)
    pictures = [np.random.default_rng(n).standard_normal((1, 3, 224, 224), dtype=np.float32) for n in range(4)]
    expected = [explainer.explain(one, base_method=method)[0] for one in pictures]
    explainer._session = SessionOnDevice(explainer._session, device, fixed=True)
    started = []
    for picture, other in zip(pictures, expected, strict=True):
        device.launches.clear()
        [one] = explainer.explain(picture, base_method=method)
        started.append(len(device.launches) - 1)  # less the stream
        np.testing.assert_array_equal(one.saliency_map, other.saliency_map)
        for name, layer_map in other.layer_maps.items():
            np.testing.assert_array_equal(one.layer_maps[name], layer_map)
    assert started[0] == started[1] > 0  # run, then recorded
    assert started[2:] == [0, 0]
    assert explainer.explain(pictures[0], base_method="gradcam")[0].base_method == "gradcam"  # another recording


def test_more_than_a_run_takes_goes_by_the_host(backend, device):
    explainer = camrt.Explainer(backend=backend.name)
    image = picture(explainer)
    explainer._session = SessionOnDevice(explainer._session, device, most=2)
    for classes, on_device in (([0, 1], True), ([0, 1, 2], False)):
        device.launches.clear()
        explainer.explain(image, classes)
        assert ("stream 42" in device.launches) == on_device
