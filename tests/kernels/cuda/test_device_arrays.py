"""Where arrays lie, half precision, streams, and what the backend needs to be there; on an emulated GPU."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from camrt.errors import BackendUnavailableError, InvalidInputError
from camrt.kernels import KernelBackend, as_numpy, available_backends, get_backend
from camrt.kernels.backend import CHANNEL_RULES, PIXEL_RULES
from camrt.kernels.cuda import device as device_module
from camrt.kernels.cuda.backend import MOST_LAYERS, CudaBackend
from camrt.kernels.cuda.device import CupyDevice
from tests.kernels.arrays import layer, maps
from tests.kernels.cuda.emulation import EmulatedArray, EmulatedDevice


def test_arrays_on_the_device_stay_there(backend: KernelBackend, device: EmulatedDevice, reference: KernelBackend):
    arrays = [layer(1, 2, 2, 6, 9, 7), layer(2, 2, 2, 5, 4, 4)]
    on_device = [[device.to_device(array) for array in pair] for pair in arrays]
    before = device.copies_to_host
    layer_maps = backend.layer_maps(*[list(part) for part in zip(*on_device, strict=True)], "gradcam++")
    result, degenerate = backend.fuse_layers(layer_maps, (20, 21))
    resized = backend.resize(result, (9, 9))
    warped = backend.warp_affine(result, np.float32([[1, 0, 0], [0, 1, 0]]), (20, 21))
    assert device.copies_to_host == before
    assert all(isinstance(array, EmulatedArray) for array in [*layer_maps, result, degenerate, resized, warped])
    expected = reference.fuse_layers([reference.layer_map(a, g, "gradcam++") for a, g in arrays], (20, 21))[0]
    np.testing.assert_allclose(result, expected, atol=1e-5)
    np.testing.assert_array_equal(warped, result)


def test_arrays_on_the_host_come_back_as_numpy(backend: KernelBackend, device: EmulatedDevice):
    before = device.copies_to_host
    result = backend.layer_map(*layer(3, 2, 2, 6, 9, 7), "gradcam")
    assert type(result) is np.ndarray
    assert device.copies_to_host == before + 1


@pytest.mark.parametrize("shape", [(2, 1, 5, 7, 7), (1, 1, 3, 40, 33)], ids=str)
@pytest.mark.parametrize("rule", CHANNEL_RULES + PIXEL_RULES)
def test_half_precision_arrays(backend: KernelBackend, device: EmulatedDevice, reference: KernelBackend, rule, shape):
    halves = [array.astype(np.float16) for array in layer(4, *shape)]
    singles = [array.astype(np.float32) for array in halves]
    result = backend.layer_map(*map(device.to_device, halves), rule)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, reference.layer_map(*singles, rule), atol=1e-5)
    # One half and one single precision array are used as they are too.
    mixed = backend.layer_map(device.to_device(halves[0]), device.to_device(singles[1]), rule)
    np.testing.assert_allclose(mixed, result, atol=1e-6)
    if rule in PIXEL_RULES:
        weights = backend.pixel_weights(*map(device.to_device, halves), rule)
        np.testing.assert_array_equal(weights, reference.pixel_weights(*singles, rule))


def test_every_half_precision_number_is_read_exactly(backend: KernelBackend, device: EmulatedDevice):
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(1, 1, 256, 256)
    weights = backend.pixel_weights(device.to_device(every), device.to_device(every), "hirescam")
    np.testing.assert_array_equal(weights, every.astype(np.float32))


def test_arrays_of_two_places_are_refused(backend: KernelBackend, device: EmulatedDevice):
    activations, gradients = layer(5, 1, 1, 2, 3, 3)
    with pytest.raises(InvalidInputError, match="gradients is on the host, activations on the device"):
        backend.channel_weights(device.to_device(activations), gradients, "gradcam")


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_other_types_on_the_device_are_refused(backend: KernelBackend, device: EmulatedDevice, dtype):
    with pytest.raises(InvalidInputError, match=f"maps of shape .* has dtype {np.dtype(dtype)}"):
        backend.normalize(device.to_device(np.zeros((1, 3, 3), dtype)))


def test_shapes_on_the_device_are_checked(backend: KernelBackend, device: EmulatedDevice):
    with pytest.raises(InvalidInputError, match=r"maps has shape \(3, 3\)"):
        backend.normalize(device.to_device(maps(6, 3, 3)))
    activations, gradients = layer(7, 1, 1, 2, 3, 3)
    with pytest.raises(InvalidInputError, match="do not fit gradients"):
        backend.layer_map(device.to_device(activations[:, :1]), device.to_device(gradients), "gradcam")


@pytest.mark.parametrize("rule", ["gradcam", "gradcam++", "layercam"])
def test_many_layers_of_several_types_in_one_call(backend: KernelBackend, device: EmulatedDevice, reference, rule):
    pairs = [layer(seed, 3, 1 + 2 * (seed % 2), 2 + seed % 3, 3, 2 + seed % 5) for seed in range(2 * MOST_LAYERS + 3)]
    pairs = [
        tuple(array.astype(np.float16 if seed % 3 else np.float32) for array in pair) for seed, pair in enumerate(pairs)
    ]
    on_device = [[device.to_device(array) for array in pair] for pair in pairs]
    device.launches.clear()
    found = backend.layer_maps([a for a, _ in on_device], [g for _, g in on_device], rule)
    for result, pair in zip(found, pairs, strict=True):
        expected = reference.layer_map(*(array.astype(np.float32) for array in pair), rule)
        np.testing.assert_allclose(result, expected, atol=1e-5)
    assert device.launches.count("finish_maps") == 4  # of two types, one or three images


def test_too_many_layers_are_refused(backend: KernelBackend):
    with pytest.raises(InvalidInputError, match="33 layers cannot be fused"):
        backend.fuse_layers([maps(8, 1, 2, 2)] * (MOST_LAYERS + 1), (4, 4))


def test_as_many_layers_as_there_may_be(backend: KernelBackend, reference: KernelBackend):
    layers = [maps(seed, 1, 2 + seed % 3, 3) for seed in range(MOST_LAYERS)]
    for fusion in ("mean", "log_exp"):
        result = backend.fuse_layers(layers, (9, 8), fusion)[0]
        np.testing.assert_allclose(result, reference.fuse_layers(layers, (9, 8), fusion)[0], atol=1e-5)


def test_a_batch_that_no_grid_holds_is_refused(backend: KernelBackend):
    with pytest.raises(InvalidInputError, match="A batch of 65536 maps is too large"):
        backend.resize(np.zeros((65536, 1, 1), np.float32), (1, 1))


@pytest.mark.parametrize("order", [1, 2, 9])
@pytest.mark.parametrize("rule", ["gradcam++", "layercam"])
def test_results_do_not_depend_on_the_order_of_threads(backend: KernelBackend, device: EmulatedDevice, rule, order):
    arrays, large = layer(9, 2, 2, 70, 9, 8), layer(10, 1, 1, 2, 40, 40)

    def run() -> list[np.ndarray]:
        layer_map = backend.layer_map(*arrays, rule)
        fused, _ = backend.fuse_layers([layer_map, maps(13, 2, 3, 3)], (40, 50), "geometric")
        once, _ = backend.fuse_layers([layer_map, maps(13, 2, 3, 3)], (40, 50), "log_exp", "resize_once")
        return [layer_map, fused, once, backend.channel_weights(*large, "xgradcam"), backend.normalize(large[0][0])]

    expected = run()
    with device.order(order):
        result = run()
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_results_are_brought_to_the_host():
    class OnDevice:
        def get(self) -> np.ndarray:
            return np.float32([1, 2])

    here = np.float32([3])
    assert as_numpy(here) is here
    assert as_numpy(OnDevice()).tolist() == [1, 2]


def test_streams(backend: KernelBackend, device: EmulatedDevice):
    assert isinstance(backend, CudaBackend)
    with backend.on_stream(42):
        backend.normalize(maps(11, 1, 2, 2))
    assert device.launches[-2:] == ["stream 42", "finish_maps"]


def test_numbers_of_threads_are_checked(device: EmulatedDevice):
    with pytest.raises(InvalidInputError, match="threads is -1"):
        CudaBackend(-1, device)


def test_the_description_names_the_device(backend: KernelBackend):
    assert backend.description == "CUDA, emulated"


def test_without_cupy_the_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendUnavailableError, match=r"need CuPy: .* Install camrt\[cuda\]"):
        CupyDevice()
    status = next(status for status in available_backends() if status.name == "cuda")
    assert status.available or "CuPy" in status.detail


@pytest.mark.parametrize("count", [0, None], ids=["no GPU", "no driver"])
def test_without_a_gpu_the_backend_says_so(monkeypatch: pytest.MonkeyPatch, count):
    class CUDARuntimeError(RuntimeError):
        pass

    def get_device_count() -> int:
        if count is None:
            raise CUDARuntimeError("cudaErrorInsufficientDriver: driver missing")
        return count

    class Cupy:
        class cuda:
            class runtime:
                getDeviceCount = staticmethod(get_device_count)

        cuda.runtime.CUDARuntimeError = CUDARuntimeError

    monkeypatch.setitem(sys.modules, "cupy", Cupy)
    expected = "finds no GPU" if count == 0 else "no usable GPU: cudaErrorInsufficientDriver: driver missing"
    with pytest.raises(BackendUnavailableError, match=expected):
        CupyDevice()


def test_without_numba_the_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(BackendUnavailableError, match=r"need Numba: .* Install camrt\[cuda\]"):
        device_module._import_numba()


def test_a_numba_that_does_not_fit_numpy_is_found_before_the_first_kernel(monkeypatch: pytest.MonkeyPatch):
    descriptor = pytest.importorskip("numba.cuda.descriptor", reason="Numba is not installed")

    def refresh(_self) -> None:
        raise AttributeError("module 'numpy' has no attribute 'row_stack'")

    context = type(descriptor.cuda_target.typing_context)
    device_module._load_numba_types()
    monkeypatch.setattr(context, "refresh", refresh)
    with pytest.raises(BackendUnavailableError, match=r"do not work with NumPy .*row_stack.*pip install --upgrade"):
        device_module._load_numba_types()


@pytest.mark.filterwarnings("error")
def test_small_grids_are_no_reason_to_warn():
    pytest.importorskip("numba", reason="Numba is not installed")
    from numba import cuda
    from numba.cuda import dispatcher

    from camrt.kernels.cuda import numba_masks

    assert dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS
    with pytest.raises(Warning, match="Grid size 2"):
        cuda.jit(lambda: None)[(2, 1), 32, 0]
    launch = device_module.configure(numba_masks.masked_images, (1, 1), 32, 0)
    assert launch.griddim == (1, 1, 1)
    assert dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS


def test_nothing_is_imported_before_the_backend_is_asked_for():
    code = "import sys, camrt.kernels.cuda.backend; assert not {'cupy', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_auto_takes_the_fastest_that_works(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setitem(sys.modules, "cupy", None)
    get_backend.cache_clear()
    with caplog.at_level("INFO", "camrt.kernels.backend"):
        assert get_backend("auto", 3).name == "native"
        assert get_backend("auto", 3).name == "native"
    get_backend.cache_clear()
    assert len(caplog.records) == 1
    assert "native, chosen automatically. cuda: The CUDA kernels need CuPy" in caplog.text
