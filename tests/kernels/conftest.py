from __future__ import annotations

import pytest

from camrt.kernels import KernelBackend, get_backend
from camrt.kernels.backend import KERNEL_BACKENDS


@pytest.fixture(params=[name for name in KERNEL_BACKENDS if name != "reference"])
def backend(request: pytest.FixtureRequest) -> KernelBackend:
    """Every backend but the reference, on two threads."""
    return get_backend(request.param, 2)


@pytest.fixture(params=list(KERNEL_BACKENDS))
def any_backend(request: pytest.FixtureRequest) -> KernelBackend:
    return get_backend(request.param)


@pytest.fixture
def reference() -> KernelBackend:
    return get_backend("reference")
