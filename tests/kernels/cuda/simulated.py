"""The Numba kernels in Numba's simulator, where the threads of a block are real: run by test_simulator.py.

NUMBA_ENABLE_CUDASIM=1 must be set before Numba is imported, so this needs a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import config

from camrt.kernels import KernelBackend, get_backend
from camrt.kernels.cuda.backend import CudaBackend
from tests.kernels.arrays import maps
from tests.kernels.cuda.emulation import EmulatedDevice
from tests.kernels.imputation_cases import keep_mask
from tests.kernels.test_perturbation import images, rough

THREADS = 8


class SimulatedDevice(EmulatedDevice):
    """Has no kernels of src/*.cu: what metrics need takes none."""

    def __init__(self, threads: int) -> None:
        self.numba_threads = self.solver_threads = threads
        self.description = "simulated"
        self.copies_to_host = 0
        self.launches: list[str] = []

    def run_numba(self, kernel: Any, grid: Any, threads: int, arguments: Sequence[Any]) -> None:
        kernel[grid, threads](*arguments)


@pytest.fixture(autouse=True)
def often_switched_threads() -> Iterator[None]:
    # The simulator waits for threads that do not get their turn.
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def backend() -> KernelBackend:
    assert config.ENABLE_CUDASIM, f"set NUMBA_ENABLE_CUDASIM=1 to run {Path(__file__).name}"
    return CudaBackend(device=SimulatedDevice(THREADS))


@pytest.fixture
def reference() -> KernelBackend:
    return get_backend("reference")


@pytest.mark.parametrize("values", [maps(1, 2, 5, 7), rough(2, 1, 6, 4), maps(3, 1, 1, 1)], ids=["any", "ties", "one"])
def test_keep_masks(backend: KernelBackend, reference: KernelBackend, values):
    fractions = (0.2, 0.35)
    expected = reference.keep_masks(values, fractions)
    np.testing.assert_array_equal(backend.keep_masks(values, fractions), expected)


@pytest.mark.parametrize("size", [(7, 6), (1, 9)], ids=str)
@pytest.mark.parametrize("mask", ["a fifth at random", "checkerboard", "one pixel in a corner"])
def test_impute(backend: KernelBackend, reference: KernelBackend, mask, size):
    picture, keep = images(4, 1, 2, *size), keep_mask(mask, *size)[None, None]
    expected = reference.impute(picture, keep)
    np.testing.assert_allclose(backend.impute(picture, keep), expected, atol=1e-3 * picture.std())


def test_impute_with_several_warps(reference: KernelBackend):
    picture, keep = images(12, 1, 1, 5, 4), keep_mask("a fifth at random", 5, 4)[None, None]
    result = CudaBackend(device=SimulatedDevice(64)).impute(picture, keep)
    np.testing.assert_allclose(result, reference.impute(picture, keep), atol=1e-3 * picture.std())


def test_perturbation_batch(backend: KernelBackend, reference: KernelBackend):
    pictures, relevance, noise = images(5, 2, 1, 4, 5), maps(6, 2, 4, 5), images(7, 1, 4, 5)
    relevance[1] = 0.5  # nothing is kept
    expected = reference.perturbation_batch(pictures, relevance, [0.5], noise)
    result = backend.perturbation_batch(pictures, relevance, [0.5], noise)
    np.testing.assert_allclose(result, expected, atol=1e-3 * pictures.std())


def test_masked_images(backend: KernelBackend):
    pictures, relevance = images(8, 2, 3, 3, 5), maps(9, 2, 3, 5)
    np.testing.assert_array_equal(backend.masked_images(pictures, relevance), pictures * relevance[:, None])


def test_statistics(backend: KernelBackend, reference: KernelBackend):
    first, second = maps(10, 3, 5, 7), maps(11, 3, 5, 7)
    np.testing.assert_allclose(backend.pearson(first, second), reference.pearson(first, second), atol=1e-12)
    np.testing.assert_allclose(backend.mean_absolute(first), reference.mean_absolute(first), rtol=1e-12)
