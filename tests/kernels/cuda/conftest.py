from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from camrt.kernels import KernelBackend
from camrt.kernels.backend import KERNEL_BACKENDS
from camrt.kernels.cuda.backend import CudaBackend
from tests.kernels.cuda.emulation import EmulatedDevice, build_host_kernels, one_thread

EMULATED = "cuda-emulated"
# What takes long in the emulation: whole images for several maps, and the largest layers.
LONG = ("(224, 224)-3]", "(224, 224)-1]", "(1, 1, 64, 56, 56)", "(1, 1, 700, 14, 15)")
KEPT = ("normalize_twice-product-[(56, 56)", "gradcam++-(1, 1, 700, 14, 15)", "layercam-(1, 1, 700, 14, 15)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        here = item.path.parent == Path(__file__).parent
        if here and any(part in item.name for part in LONG) and not any(part in item.name for part in KEPT):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDevice:
    return EmulatedDevice(build_host_kernels(tmp_path_factory.mktemp("kernels")))


@pytest.fixture
def backend(device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[KernelBackend]:
    """The CUDA backend on an emulated device."""
    backend = CudaBackend(device=device)
    backend.name = EMULATED
    monkeypatch.setitem(KERNEL_BACKENDS, EMULATED, lambda _threads: backend)
    with one_thread.modules():
        yield backend


@pytest.fixture
def any_backend(backend: KernelBackend) -> KernelBackend:
    return backend
