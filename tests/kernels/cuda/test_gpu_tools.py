"""benchmarks/gpu_check.py and bench_gpu.py, as far as they run without a GPU."""

from __future__ import annotations

import sys

import pytest

from benchmarks import bench_gpu, gpu_check
from camrt.kernels import KernelBackend, get_backend
from camrt.kernels.cuda.backend import CudaBackend
from tests.kernels.cuda.emulation import EmulatedDevice


@pytest.mark.parametrize("tool", [bench_gpu, gpu_check], ids=["bench_gpu", "gpu_check"])
def test_without_a_gpu_the_tools_say_so(tool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "cupy", None)
    get_backend.cache_clear()
    assert tool.main([]) == 2
    assert "need CuPy" in capsys.readouterr().err


def test_environment_and_missing_tools(backend: KernelBackend, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert gpu_check.environment(backend)["nvidia-smi"] == "not found"
    report = gpu_check.check_sanitizer()
    assert not report["done"]
    assert "compute-sanitizer is not installed" in report["reason"]


@pytest.mark.slow
def test_small_cases_agree(backend: KernelBackend):
    assert gpu_check.run_small_cases(backend) == 47


@pytest.mark.slow
def test_kernel_benchmark(backend: KernelBackend, device: EmulatedDevice):
    assert isinstance(backend, CudaBackend)
    seconds = iter(range(1, 100))

    def timer(call) -> float:
        call()
        return float(next(seconds))

    rows = bench_gpu.bench_kernels(backend, device, timer, (1, 2), [(3, 4), (2, 9)], 16, 1024)
    assert [row["kernel"] for row in rows].count("fuse_layers product") == 2
    assert rows[0] == {"kernel": "copy", "batch": 0, "seconds": 1.0, "bytes_per_second": 2048.0, "share": 1.0}
    masked = next(row for row in rows if row["kernel"] == "masked_images")
    assert masked["bytes_per_second"] * masked["seconds"] == 4 * 7 * 16 * 16
    assert masked["share"] == masked["bytes_per_second"] / 2048
