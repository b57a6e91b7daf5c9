"""What only the native backend has: threads, the GIL, instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from camrt.errors import BackendUnavailableError, InvalidInputError
from camrt.kernels import _native, available_backends, get_backend
from camrt.kernels.backend import CHANNEL_RULES, FUSIONS, PIXEL_RULES
from camrt.kernels.native_backend import NativeBackend
from camrt.types import AnyArray
from tests.kernels.arrays import layer, maps

ACTIVE, AVAILABLE = _native.cpu_features()


def everything(backend: NativeBackend) -> list[AnyArray]:
    """One result of every kernel, on inputs large enough to be shared out over threads."""
    activations, gradients = layer(1, 3, 1, 64, 56, 55)
    layers = [maps(seed, 3, size, size) for seed, size in enumerate((56, 28, 13, 7))]
    results: list[AnyArray] = [backend.layer_map(activations, gradients, rule) for rule in CHANNEL_RULES + PIXEL_RULES]
    results += [backend.channel_weights(activations, gradients, rule) for rule in CHANNEL_RULES]
    results += [backend.pixel_weights(activations, gradients, rule) for rule in PIXEL_RULES]
    results += [backend.weighted_sum(activations, gradients), backend.weighted_sum(activations, gradients[..., 0, 0])]
    results += [backend.fuse_layers(layers, (330, 331), fusion)[0] for fusion in FUSIONS]
    results += [backend.fuse_layers([m[:1] for m in layers], (1010, 1001), order="resize_once")[0]]
    results += [backend.normalize(maps(9, 3, 450, 450)), backend.resize(layers[0], (700, 800))]
    for matrix in ([[0.1, 0, 1], [0, 0.1, 2]], [[0.1, 0.01, 1], [0, 0.1, 2]]):
        results.append(backend.warp_affine(layers[0], np.float32(matrix), (700, 800)))
    pictures, saliency = activations[:, :12].reshape(4, 3, 56, 55), maps(10, 4, 56, 55)
    results += [backend.perturbation_batch(pictures, saliency, noise=pictures[0]), backend.keep_masks(saliency, [0.3])]
    results += [backend.masked_images(pictures, saliency), backend.mean_absolute(saliency)]
    results += [backend.pearson(saliency, maps(11, 4, 56, 55))]
    return results


def assert_same_bits(results: list[AnyArray], expected: list[AnyArray]) -> None:
    for result, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, other)


def test_results_do_not_depend_on_the_number_of_threads():
    expected = everything(NativeBackend(1))
    for threads in (2, 4, 7):
        assert_same_bits(everything(NativeBackend(threads)), expected)


def test_one_backend_called_from_eight_threads():
    backend = NativeBackend(4)
    expected = everything(backend)
    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(lambda _: everything(backend), range(16)):
            assert_same_bits(results, expected)


def test_backends_come_and_go():
    layers = [maps(1, 4, 56, 56)]
    expected = NativeBackend(1).fuse_layers(layers, (800, 800))[0]
    for threads in (2, 3) * 10:
        np.testing.assert_array_equal(NativeBackend(threads).fuse_layers(layers, (800, 800))[0], expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_gil_is_released(threads):
    # A Python thread that held the GIL through the call would leave no time stamp between its start and its end,
    # except one or two taken just before or after.
    backend = NativeBackend(threads)
    layers = [maps(seed, 1, 56, 56) for seed in range(4)]
    stamps: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            stamps.append(time.perf_counter())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        begin = time.perf_counter()
        backend.fuse_layers(layers, (4000, 4000), "log_exp")
        end = time.perf_counter()
    finally:
        stop.set()
        watcher.join()
    assert sum(begin < stamp < end for stamp in stamps) >= 5


FORKING = """
import os, sys
import numpy as np
from camrt.kernels.native_backend import NativeBackend
backend = NativeBackend(4)
maps = [np.random.default_rng(0).random((4, 56, 56), dtype=np.float32)]
expected = backend.fuse_layers(maps, (800, 800))[0]
for _ in range(3):
    child = os.fork()
    if child == 0:
        same = all(np.array_equal(backend.fuse_layers(maps, (800, 800))[0], expected) for _ in range(5))
        del backend
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert np.array_equal(backend.fuse_layers(maps, (800, 800))[0], expected)
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    flags = ["-S"] if sys.flags.no_site else []
    return subprocess.run(
        [sys.executable, *flags, "-W", "ignore", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_children_of_fork_can_use_the_backend():
    process = run_python(FORKING)
    assert process.returncode == 0, process.stderr


DIGEST = """
import hashlib
from camrt.kernels import _native
from camrt.kernels.native_backend import NativeBackend
from tests.kernels.test_native import everything
digest = hashlib.sha256(b"".join(result.tobytes() for result in everything(NativeBackend(2)))).hexdigest()
print(_native.cpu_features()[0], digest)
"""


def test_every_instruction_set_gives_the_same_bits():
    expected = {}
    for variant in AVAILABLE:
        process = run_python(DIGEST, CAMRT_CPU=variant)
        assert process.returncode == 0, process.stderr
        active, digest = process.stdout.split()
        expected[active] = digest
    assert list(expected) == AVAILABLE
    assert len(set(expected.values())) == 1


def test_an_unknown_instruction_set_is_an_error():
    code = "from camrt.kernels import get_backend; get_backend('native')"
    process = run_python(code, CAMRT_CPU="quantum")
    assert process.returncode == 1
    assert "BackendUnavailableError" in process.stderr
    assert "CAMRT_CPU is 'quantum'; expected baseline, avx2 or avx512" in process.stderr


def test_description_and_status_name_the_instruction_set():
    assert ACTIVE in NativeBackend(3).description
    assert NativeBackend(3).description.endswith("threads=3")
    statuses = {status.name: status for status in available_backends()}
    assert statuses["native"].available
    assert ACTIVE in statuses["native"].detail
    assert statuses["reference"].available


@pytest.mark.parametrize("threads", [-1, 1025])
def test_impossible_numbers_of_threads(threads):
    with pytest.raises(InvalidInputError, match=f"threads is {threads}"):
        NativeBackend(threads)


def test_unknown_backend():
    with pytest.raises(BackendUnavailableError, match=r"'abacus'.*reference, native"):
        get_backend("abacus")


def test_the_extension_checks_shapes_itself():
    kernels = _native.Kernels(1)
    array = np.zeros((2, 3, 4, 4), np.float32)
    with pytest.raises(ValueError, match="N is neither 1 nor M"):
        kernels.layer_maps([array], [array[:1]], _native.Rule.gradcam)
    with pytest.raises(ValueError, match="activations do not have their shape's size"):
        kernels.channel_weights(array[:, :2].copy(), array[:, :, :2].copy(), _native.Rule.gradcam)
    with pytest.raises(ValueError, match="rank 4, expected 3"):
        kernels.normalize(array)
    with pytest.raises(ValueError, match="empty axis"):
        kernels.resize(array[0, :, :0].copy(), 4, 4)
    with pytest.raises(ValueError, match="different numbers of maps"):
        kernels.fuse_layers([array[0], array[0, :1]], 4, 4, _native.Fusion.product, _native.Order.normalize_twice)
    with pytest.raises(TypeError):
        kernels.normalize(array[0].astype(np.float64))


@pytest.mark.parametrize("order", [_native.Order.normalize_twice, _native.Order.resize_once])
@pytest.mark.parametrize("size", [(1, (1 << 24) + 1), ((1 << 24) + 1, 1), (1, (1 << 18) + 1)])
def test_the_kernel_itself_refuses_to_fuse_what_is_too_wide(order: _native.Order, size: tuple[int, int]) -> None:
    kernels = _native.Kernels(1)
    layers = [np.zeros((1, 1 << 10, 1), np.float32)]
    with pytest.raises(ValueError, match="too wide for so many rows"):
        kernels.fuse_layers(layers, *size, _native.Fusion.product, order)
    assert kernels.fuse_layers(layers, 1, 1 << 16, _native.Fusion.product, order)[0].shape == (1, 1, 1 << 16)
