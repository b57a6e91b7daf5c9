"""The emulation finds what it is there to find."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.cuda.emulation import HOST

KERNELS = """
#include "shim.hpp"
__global__ void missed(float* values) {
    if (threadIdx.x < 32) {
        __syncthreads();
    }
    values[threadIdx.x] = 1.0F;
}
__global__ void race(float* values) {
    __shared__ float last;
    last = static_cast<float>(threadIdx.x);
    __syncthreads();
    values[threadIdx.x] = last;
}
__global__ void exchange(float* values) {
    values[threadIdx.x] = __shfl_xor_sync(0xffffffffU, values[threadIdx.x], 5) + (blockIdx.x == 1 ? 100.0F : 0.0F);
}
CAMRT_HOST_KERNEL(missed)
CAMRT_HOST_KERNEL(race)
CAMRT_HOST_KERNEL(exchange)
extern "C" void set_order(int order) { host::block.order = order; }
"""
RUN = """
import ctypes, sys, numpy
values = numpy.zeros(64, numpy.float32)
address = ctypes.c_void_p(values.ctypes.data)
ctypes.CDLL(sys.argv[1]).host_missed((ctypes.c_uint * 6)(1, 1, 1, 64, 1, 1), (ctypes.c_void_p * 1)(ctypes.addressof(address)))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    folder = tmp_path_factory.mktemp("emulation")
    (folder / "kernels.cpp").write_text(KERNELS)
    options = ["-std=c++20", "-fPIC", "-shared", "-U_FORTIFY_SOURCE", f"-I{HOST}"]
    output = folder / "kernels.so"
    subprocess.run([compiler, *options, str(folder / "kernels.cpp"), "-o", str(output)], check=True)
    return output


def run(library: Path, kernel: str, blocks: int, order: int = 0) -> np.ndarray:
    loaded = ctypes.CDLL(str(library))
    values = np.arange(64, dtype=np.float32)
    address = ctypes.c_void_p(values.ctypes.data)
    loaded.set_order(order)
    dims = (ctypes.c_uint * 6)(blocks, 1, 1, 64, 1, 1)
    loaded[f"host_{kernel}"](dims, (ctypes.c_void_p * 1)(ctypes.addressof(address)))
    return values


def test_a_missed_barrier_ends_the_run(library: Path):
    done = subprocess.run([sys.executable, "-c", RUN, str(library)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "some threads wait at a barrier that others never reach" in done.stderr


def test_a_race_depends_on_the_order(library: Path):
    assert (run(library, "race", 1) == 63).all()
    assert (run(library, "race", 1, order=1) == 0).all()
    assert len({float(run(library, "race", 1, order=order)[0]) for order in range(6)}) > 3


def test_lanes_exchange_values(library: Path):
    for order in range(4):
        np.testing.assert_array_equal(run(library, "exchange", 1, order), np.arange(64) ^ 5)
    np.testing.assert_array_equal(run(library, "exchange", 2), np.arange(64) + 100)
