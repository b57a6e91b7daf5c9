"""A network at several image sizes: what is in the table, and what is refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import camrt
from camrt.bench import load_report
from camrt.bench.sizes import bench_sizes
from camrt.bench.workload import Workload
from camrt.cli import main
from camrt.errors import InvalidInputError
from tests.small_network import write_small_network


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One network for images of 64 x 96 and of 32 x 48."""
    folder = tmp_path_factory.mktemp("sizes")
    model = onnx.load(write_small_network(folder / "source.onnx"))
    made = []
    for height, width in ((64, 96), (32, 48)):
        dimensions = model.graph.input[0].type.tensor_type.shape.dim
        dimensions[2].dim_value, dimensions[3].dim_value = height, width
        onnx.save(model, folder / "sized.onnx")
        path = folder / f"{height}.bundle.onnx"
        camrt.export(folder / "sized.onnx", path, preprocess="unit")
        made.append(path)
    return made


def test_lines_are_ordered_by_size_and_compared_with_the_smallest(bundles: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "sizes", *map(str, bundles), "--threads", "1", "--rounds", "2", "--out", str(tmp_path)])
    assert not caught.value.code
    (table,) = load_report(tmp_path / "sizes.json").tables
    expected = [(pixels, method) for pixels in (32 * 48, 64 * 96) for method in ("prediction", "refinecam")]
    assert [(row["pixels"], row["method"]) for row in table.rows] == expected
    assert [row["ratio"] for row in table.rows if row["method"] == "prediction"] == [1.0, 1.0]
    smallest, largest = table.rows[1], table.rows[3]
    assert smallest["to_smallest"] == 1.0
    assert largest["to_smallest"] == pytest.approx(float(largest["median_ms"]) / float(smallest["median_ms"]))
    assert (tmp_path / "sizes_1.png").exists()


def test_two_bundles_of_one_size_are_refused(bundles: list[Path]) -> None:
    works = [Workload.of(bundles[0]), Workload.of(bundles[0])]
    with pytest.raises(InvalidInputError, match="6144 pixels"):
        bench_sizes(works, 1, 1, lambda _: None)
