"""benchmarks/gpu_check.py and bench_gpu.py, as far as they run without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench_gpu, gpu_check, gpu_sessions
from benchmarks.gpu_outcomes import Outcome, Report
from camrt.explainer import Explainer, embedded_bundle_path
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
    for tool in gpu_check.SANITIZERS:
        outcome = gpu_check.STEPS[tool]()
        assert outcome.status == "not done"
        assert "compute-sanitizer is not installed" in outcome.reason


PASSED = Outcome("passed", "", {"comparisons": 47})
MISSING = Outcome("not done", "compute-sanitizer is not installed")
FAILED = Outcome("failed", "1 failed")


@pytest.fixture
def check(backend: KernelBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs gpu_check with these outcomes; its exit code and its report."""
    monkeypatch.setattr(gpu_check, "get_backend", lambda _name: backend)

    def run(outcomes: dict[str, Outcome], *arguments: str) -> tuple[int, dict]:
        steps = {name: partial(outcomes.get, name, PASSED) for name in gpu_check.STEPS}
        monkeypatch.setattr(gpu_check, "STEPS", steps)
        path = tmp_path / "report.json"
        return gpu_check.main(["--json", str(path), *arguments]), json.loads(path.read_text())

    return run


def test_a_complete_check(check, capsys: pytest.CaptureFixture[str]):
    code, report = check({}, "--strict")
    assert (code, report["complete"]) == (0, True)
    assert report["passed"] == ["agreement", "sessions", "memcheck", "racecheck", "synccheck", "benchmark"]
    assert report["figures"]["memcheck"] == {"comparisons": 47}
    assert capsys.readouterr().out.splitlines()[-1] == "Complete: all 6 steps passed."


def test_a_step_that_was_not_done_is_never_hidden(check, capsys: pytest.CaptureFixture[str]):
    code, report = check({"memcheck": MISSING, "racecheck": MISSING})
    assert (code, report["complete"]) == (0, False)
    assert report["not done"] == dict.fromkeys(("memcheck", "racecheck"), "compute-sanitizer is not installed")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("NOT COMPLETE, still unproven: memcheck (not done: compute-sanitizer is not installed);")
    assert check({"memcheck": MISSING}, "--strict")[0] == 1


def test_what_fails_fails(check, capsys: pytest.CaptureFixture[str]):
    code, report = check({"racecheck": FAILED, "benchmark": MISSING})
    assert (code, report["complete"], report["failed"]) == (1, False, {"racecheck": "1 failed"})
    assert "racecheck (failed); benchmark (not done" in capsys.readouterr().out.splitlines()[-1]
    assert check({"agreement": MISSING})[0] == 1  # without it nothing is proved


def test_parts_count_as_steps(check):
    parts = {"torch-cam, batch 1": Outcome("not done", "ImportError: torchcam")}
    code, report = check({"benchmark": Outcome("passed", parts=parts)})
    assert (code, report["complete"]) == (0, False)
    assert report["not done"] == {"benchmark: torch-cam, batch 1": "ImportError: torchcam"}


def test_a_check_that_is_cut_off_leaves_a_report_that_says_so(tmp_path: Path):
    path = tmp_path / "folder" / "report.json"
    Report({}, ["agreement", "memcheck"], path).add("agreement", PASSED)
    report = json.loads(path.read_text())
    assert report["not done"] == {"memcheck": "the check ended before it"}
    assert (report["complete"], report["passed"]) == (False, ["agreement"])


class Process:
    """What subprocess.run returns, or what it writes."""

    def __init__(self, code: int = 0, out: str = "", report: dict | None = None) -> None:
        self.returncode, self.stdout, self.stderr, self.report = code, out, "", report

    def __call__(self, command: list[str], **_: object) -> Process:
        if self.report is not None:
            Path(command[-1]).write_text(json.dumps(self.report))
        return self


ROWS = [
    {"contender": "camrt", "batch": 1, "seconds": 0.01, "skipped": None},
    {"contender": "torch-cam", "batch": 1, "seconds": None, "skipped": "ModuleNotFoundError: torchcam"},
    {"contender": "camrt, TensorRT", "batch": 1, "seconds": None, "skipped": "ParityError: explains otherwise"},
]


@pytest.mark.parametrize(
    ("step", "process", "status", "parts"),
    [
        ("memcheck", Process(0, "47 comparisons on H100"), "passed", {}),
        ("memcheck", Process(0, "nothing ran"), "failed", {}),
        ("memcheck", Process(9, "47 comparisons on H100"), "failed", {}),
        ("agreement", Process(0, "12 passed, 3 deselected"), "passed", {}),
        ("agreement", Process(0, "no tests ran"), "failed", {}),
        ("agreement", Process(1, "1 failed, 11 passed"), "failed", {}),
        (
            "agreement",
            Process(0, "SKIPPED [2] a.py:3: why\n9 passed, 2 skipped"),
            "passed",
            {"skipped tests": "not done"},
        ),
        ("benchmark", Process(1), "failed", {}),
        ("benchmark", Process(0, report={"refinecam": ROWS[:1]}), "passed", {}),
        (
            "benchmark",
            Process(0, report={"refinecam": ROWS}),
            "passed",
            {"torch-cam, batch 1": "not done", "camrt, TensorRT, batch 1": "failed"},
        ),
    ],
)
def test_what_becomes_of_a_step(
    step: str, process: Process, status: str, parts: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(gpu_check.subprocess, "run", process)
    outcome = gpu_check.STEPS[step]()
    assert outcome.status == status
    assert {name: part.status for name, part in outcome.parts.items()} == parts


def test_a_step_that_takes_too_long_has_failed(monkeypatch: pytest.MonkeyPatch):
    def slow(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(gpu_check.subprocess, "run", slow)
    assert gpu_check.benchmark() == Outcome("failed", "It took longer than 1800 s.")


@pytest.mark.slow
def test_small_cases_agree(backend: KernelBackend):
    assert gpu_check.run_small_cases(backend) == 74


@pytest.mark.slow
def test_kernel_benchmark(backend: KernelBackend, device: EmulatedDevice):
    assert isinstance(backend, CudaBackend)
    seconds = iter(range(1, 100))

    def timer(call) -> float:
        call()
        return float(next(seconds))

    def replay(call) -> float | None:
        return next(replayed)

    replayed = iter([None, *[0.5] * 100])

    rows = bench_gpu.bench_kernels(backend, device, timer, replay, (1, 2), [(3, 4), (2, 9)], 16, 1024, 3)
    assert [row["kernel"] for row in rows].count("fuse_layers product") == 3
    assert rows[0] == {
        "kernel": "copy",
        "batch": 0,
        "bytes": 2048,
        "seconds": 1.0,
        "replay_seconds": None,
        "bytes_per_second": 2048.0,
        "share": 1.0,
    }
    assert rows[1]["replay_seconds"] is None
    assert rows[1]["bytes_per_second"] == rows[1]["bytes"] / rows[1]["seconds"]
    masked = next(row for row in rows if row["kernel"] == "masked_images")
    assert masked["bytes_per_second"] * masked["replay_seconds"] == 4 * 7 * 16 * 16
    assert masked["share"] == masked["bytes_per_second"] / 2048


def test_the_sessions_step_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    bundles = {"fp32": embedded_bundle_path()}
    monkeypatch.setattr(gpu_sessions, "make_bundles", lambda _folder: (bundles, np.zeros((1, 3, 224, 224), np.float32)))
    assert gpu_sessions.main([]) == 2
    assert "BackendUnavailableError: Provider 'cuda'" in capsys.readouterr().err


def test_two_engines_that_compute_the_same_pass(tmp_path: Path):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 3, 224, 224), dtype=np.float32)
    one, other = Explainer(threads=1), Explainer(threads=1, backend="reference")
    report = {
        "fp32": {
            "correlations": gpu_sessions.correlations(one, other, images, ("gradcam++", "scorecam")),
            **gpu_sessions.details(one, other, one, images, tmp_path),
        },
        "fp16": {"correlations": {}},
    }
    assert gpu_sessions.failures(report) == []
    assert report["fp32"]["correlations"].keys() == {"gradcam++", "scorecam"}
    assert set(report["fp32"]) >= {"outputs", "batch", "classes", "graphs", "threads", "threads, recorded", "arcc"}


def good_report() -> dict:
    fp32 = dict.fromkeys(("batch", "classes", "graphs", "threads", "threads, recorded", "arcc"), 0.0)
    host = {"copies": {"DtoH": [200704, 4]}, "expected": [4, 200704, 8]}
    both = dict.fromkeys(gpu_sessions.HOST_COPIES, host)
    return {
        "fp32": {**fp32, "correlations": {"gradcam": 1.0}, "outputs": {"logits": 1e-6}, **both},
        "fp16": {"correlations": {"gradcam": 0.995}},
    }


@pytest.mark.parametrize(
    ("precision", "key", "value", "said"),
    [
        ("fp32", "correlations", {"gradcam": 0.998}, "fp32: gradcam correlates by 0.9980"),
        ("fp16", "correlations", {"gradcam": float("nan")}, "fp16: gradcam correlates by nan"),
        ("fp32", "outputs", {"logits": 1e-3}, "logits is off by 1.0e-03"),
        ("fp32", "threads, recorded", 0.1, "threads, recorded: maps change by 1.0e-01"),
        ("fp32", "arcc", float("nan"), "ARCC is off by nan"),
        *(
            ("fp32", name, {"copies": {"DtoH": [8, 8, 6]}, "expected": [6, 8]}, f"{name}: copies to it of [8] bytes")
            for name in gpu_sessions.HOST_COPIES
        ),
    ],
)
def test_what_is_not_as_on_the_cpu_is_a_failure(precision: str, key: str, value: object, said: str):
    assert gpu_sessions.failures(good_report()) == []
    report = good_report()
    report[precision][key] = value
    assert gpu_sessions.failures(report) == [said]


@pytest.mark.parametrize(
    ("process", "status", "reason"),
    [
        (Process(0, report={"fp32": {}}), "passed", ""),
        (Process(1, report={"fp32": {}}), "failed", ""),
        (Process(0), "failed", ""),
        (Process(2), "not done", "no reason was given"),
    ],
)
def test_what_becomes_of_the_sessions_step(process, status, reason, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_check.subprocess, "run", process)
    outcome = gpu_check.check_sessions()
    assert (outcome.status, outcome.reason, outcome.parts) == (status, reason, {})


def test_copies_that_could_not_be_counted_are_not_done(monkeypatch: pytest.MonkeyPatch):
    report = {"fp32": {"host: not done": "ImportError: torch"}}
    monkeypatch.setattr(gpu_check.subprocess, "run", Process(0, report=report))
    outcome = gpu_check.check_sessions()
    assert outcome.status == "passed"
    assert outcome.parts == {"copies to the host": Outcome("not done", "ImportError: torch")}


def test_stages_of_a_call_are_those_of_all_its_images():
    explained = Explainer(threads=1).explain(np.zeros((2, 3, 224, 224), np.float32))
    found = bench_gpu.stages(explained)
    assert found.keys() == explained[0].timings.keys()
    assert found["inference"] == pytest.approx(2 * explained[0].timings["inference"])
    assert bench_gpu.stages(np.zeros(3)) == {}


def test_environment_variables_are_set_within_a_context(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CAMRT_CUDA_GRAPHS", raising=False)
    with bench_gpu.environment(CAMRT_CUDA_GRAPHS="1"):
        assert os.environ["CAMRT_CUDA_GRAPHS"] == "1"
    assert "CAMRT_CUDA_GRAPHS" not in os.environ
