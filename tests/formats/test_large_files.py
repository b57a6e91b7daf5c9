"""Time and memory of an export, each measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import camrt
from tests.exporter.graphs import GraphWriter
from tests.formats.checks import check_outputs
from tests.models import export_onnx, make_model

pytestmark = pytest.mark.slow

MEASURE = """
import json, pathlib, sys, time
import camrt, onnx, onnx_ir
started = time.process_time()
bundle = camrt.export(sys.argv[1], sys.argv[2])
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
peak = next(line.split()[1] for line in lines if line.startswith("VmHWM"))  # getrusage would report the parent's
print(json.dumps({
    "seconds": time.process_time() - started,
    "peak": int(peak) * 1024,
    "layers": len(bundle.manifest.target_layers),
}))
"""


def measured(source: Path) -> dict[str, float]:
    """Processor seconds (the machine may be shared), peak resident bytes, and the number of target layers."""
    command = [sys.executable, "-c", MEASURE, str(source), str(source.with_name("bundle.onnx"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def wide_classifier(path: Path, megabytes: int) -> Path:
    """Convolutions of 1024 channels until the file has the size."""
    w = GraphWriter()
    value = w.add("Relu", "r0", w.conv("c0", "image", (3, 64), 3, 2))
    channels, weights, number = 64, 0, 0
    while weights < megabytes << 20:
        number += 1
        stride = 2 if number in (1, 3, 5) else 1
        value = w.add("Relu", f"r{number}", w.conv(f"c{number}", value, (channels, 1024), 3, stride))
        weights += channels * 1024 * 9 * 4
        channels = 1024
    w.classify(value, channels)
    return w.save(path, ("N", 3, 64, 64))


def test_a_file_of_300_megabytes(tmp_path: Path) -> None:
    source = wide_classifier(tmp_path / "source.onnx", 300)
    size = source.stat().st_size
    assert size > 300 << 20
    result = measured(source)
    assert result["layers"] >= 2
    assert result["seconds"] < 60
    assert result["peak"] < 8 * size
    assert source.with_name("bundle.onnx").stat().st_size <= 1.1 * size


def test_resnet50(tmp_path: Path) -> None:
    source = export_onnx(make_model("resnet50"), tmp_path / "source.onnx", "dynamo")
    result = measured(source)
    assert result["layers"] == 4
    assert result["seconds"] < 5
    assert result["peak"] < 1.5e9


def test_weights_outside_the_file(tmp_path: Path) -> None:
    """A model of two files, as exporters write them from a certain size on."""
    inner, outer = wide_classifier(tmp_path / "inner.onnx", 60), tmp_path / "outer.onnx"
    onnx.save(onnx.load(inner), outer, save_as_external_data=True, location="outer.bin")
    bundle = camrt.export(outer, tmp_path / "bundle.onnx")
    (tmp_path / "outer.bin").unlink()
    check_outputs(inner, bundle)
