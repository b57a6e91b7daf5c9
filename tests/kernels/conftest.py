from __future__ import annotations

import pytest

from camrt.kernels import KernelBackend, available_backends, get_backend

# A machine without a GPU runs the CUDA kernels too: tests/kernels/cuda emulates one.
WORKING = [status.name for status in available_backends() if status.available]


@pytest.fixture(params=[name for name in WORKING if name != "reference"])
def backend(request: pytest.FixtureRequest) -> KernelBackend:
    """Every backend but the reference, on two threads."""
    return get_backend(request.param, 2)


@pytest.fixture(params=WORKING)
def any_backend(request: pytest.FixtureRequest) -> KernelBackend:
    return get_backend(request.param)


@pytest.fixture
def reference() -> KernelBackend:
    return get_backend("reference")
