"""``camrt export --precision``, ``camrt check --against BUNDLE``, ``camrt build`` and the GPU part of ``camrt doctor``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camrt.bundle import Bundle
from camrt.cli import main
from camrt.errors import BackendUnavailableError
from camrt.runtime import gpu, gpu_pieces
from camrt.runtime.cuda_driver import CudaDriver
from camrt.runtime.tensorrt import session
from tests.runtime.fake_gpu import FakeLibrary, FakeTensorRt
from tests.small_network import write_small_network


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        blobs = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        blobs.resize((60, 48), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def fp32(run, tmp_path: Path) -> Path:
    write_small_network(tmp_path / "small.onnx")
    code, _, error = run("export", "small.onnx", "-o", "fp32.onnx", "--layers", "stage2,stage3", "--preprocess", "unit")
    assert code == 0, error
    return tmp_path / "fp32.onnx"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_export_and_compare(precision: str, run, fp32: Path, pictures: Path) -> None:
    arguments = ("--layers", "stage2,stage3", "--preprocess", "unit", "--precision", precision)
    code, out, error = run("export", "small.onnx", "-o", "low.onnx", *arguments, "--calibration", pictures)
    assert code == 0, error
    assert precision in out
    assert Bundle.open("low.onnx").manifest.precision == precision
    code, out, _ = run("check", "low.onnx", "--against", fp32, "--images", pictures)
    assert "top-1 agreement" in out
    assert "gradcam++" in out
    assert "fused" in out
    assert code == (0 if "passed: fused" in out else 1)
    again, text, _ = run("check", "low.onnx", "--against", fp32, "--images", pictures, "--json")
    document = json.loads(text)
    assert (again, document["precision"], document["images"]) == (code, precision, 6)
    assert document["passed"] is (code == 0)


def test_int8_without_pictures_is_one_message(run, fp32: Path) -> None:
    code, _, error = run("export", "small.onnx", "-o", "low.onnx", "--precision", "int8", "--preprocess", "unit")
    assert code == 2
    assert "--calibration FOLDER" in error
    assert not Path("low.onnx").exists()


def test_pictures_need_a_second_bundle(run, fp32: Path, pictures: Path) -> None:
    code, _, error = run("check", fp32, "--images", pictures)
    assert code == 2
    assert "--against" in error


def test_build(run, fp32: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = FakeLibrary()
    module, driver = FakeTensorRt(library), CudaDriver(library)
    monkeypatch.setattr(session, "load_tensorrt", lambda: module)
    monkeypatch.setattr(session, "cuda_driver", lambda: driver)
    arguments = ("--batch", "1,2", "--cache", tmp_path / "engines")
    code, out, error = run("build", fp32, *arguments, "--json")
    assert code == 0, error
    document = json.loads(out)
    assert min(document["parity"]["correlations"].values()) > 0.999
    assert len(list((tmp_path / "engines").glob("*.engine"))) == 2
    builds = len(module.calls)
    code, out, _ = run("build", fp32, *arguments)
    assert code == 0
    assert "maps of stage3" in out
    assert not [call for call in module.calls[builds:] if call[0] == "build"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ((1, 16), True, True, Path("engines"))),
        (("--batch", "2", "--no-tf32", "--no-cuda-graphs", "--cache", "other"), ((2,), False, False, Path("other"))),
    ],
)
def test_build_takes_its_options_from_where_a_server_does(
    run, fp32: Path, arguments: tuple, expected: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ENGINE_BATCH": "1,16", "CUDA_GRAPHS": "1", "TF32": "1", "ENGINE_CACHE": "engines"}.items():
        monkeypatch.setenv(f"CAMRT_{name}", value)
    asked = []

    def build(_path, _provider, options, _layers) -> None:
        asked.append((options.batches, options.cuda_graphs, options.tf32, options.cache))
        raise BackendUnavailableError("There is no GPU.", "")

    monkeypatch.setattr(gpu, "build_gpu_engines", build)
    assert run("build", fp32, *arguments)[0] == 2
    assert asked == [expected]


def test_build_names_what_it_cannot_do(run, fp32: Path) -> None:
    assert "tensorrt-ort" in run("build", fp32, "--provider", "cpu")[2]
    assert "camrt[tensorrt]" in run("build", fp32)[2] or "driver" in run("build", fp32)[2]
    code, _, error = run("build", fp32, "--precision", "int8")
    assert code == 2
    assert "--calibration" in error
    assert "1,8" in run("build", fp32, "--batch", "8,1")[2]


def test_build_makes_the_fp16_bundle(run, fp32: Path) -> None:
    code, _, error = run("build", fp32, "--precision", "fp16")
    made = Bundle.open("fp32.fp16.onnx")
    assert made.manifest.precision == "fp16"
    assert code == 2  # no TensorRT here
    assert "TensorRT" in error


def test_doctor_explains_every_piece_of_a_gpu(run, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["NVIDIA driver", "CUDA runtime", "cuBLAS", "cuDNN", "onnxruntime-gpu", "tensorrt", "cupy", "numba", "nvcc"]
    monkeypatch.setattr(gpu_pieces.shutil, "which", lambda name: None)
    monkeypatch.setattr(gpu_pieces, "_distribution", lambda names: None)

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(gpu_pieces.ctypes, "CDLL", missing)
    gpu_pieces.cuda_driver.cache_clear()
    code, out, _ = run("doctor", "--json")
    gpu_pieces.cuda_driver.cache_clear()
    rows = {row["name"]: row for row in json.loads(out)["gpu"]}
    assert list(rows) == names
    for name, row in rows.items():
        assert not row["available"]
        assert any(word in row["detail"] for word in ("pip install", "Install", "install")), name
    assert code == 0  # a GPU is no need


def test_doctor_shows_a_driver(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_pieces, "cuda_driver", lambda: CudaDriver(FakeLibrary()))
    _, out, _ = run("doctor")
    assert "Fake GPU, compute capability 9.0, driver" in out
