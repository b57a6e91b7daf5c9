"""``camrt bench kernels``: every line says how many images it works on."""

from __future__ import annotations

from pathlib import Path

import pytest

import camrt
from camrt.bench import kernels
from camrt.bench.kernels import bench_kernels
from camrt.bench.turns import Contender, Measured
from camrt.bench.workload import Workload
from tests.small_network import write_small_network


def test_lines_say_how_many_images_they_work_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def untimed(lines: list[Contender], _: int) -> list[Measured]:
        return [Measured(line.labels, line.images, (0.5,)) for line in lines]

    monkeypatch.setattr(kernels, "take_turns", untimed)
    bundle = Path(camrt.export(write_small_network(tmp_path / "source.onnx"), tmp_path / "bundle.onnx").path)
    (table,), _ = bench_kernels(Workload.of(bundle), 1, 3, 1, {}, lambda _: None)
    images = {str(row["kernel"]): (row["batch"], row["images_per_second"]) for row in table.rows}
    assert images["perturbation_batch"] == (1, 2.0)
    assert images["fuse_layers product"] == images["layer_maps gradcam"] == (3, 6.0)
