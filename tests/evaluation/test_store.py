from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from camrt.datasets import Problem
from camrt.evaluation.store import COLUMNS, RunFolder, RunFolderError

IDENTITY = {"bundle": "abc", "data": {"items": 6, "name": "d"}, "metrics": ["arcc", "road"], "seed": 0}


def rows(chunk: int, count: int = 2) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [None] * count for name in COLUMNS}
    columns["item"] = [f"item {chunk}.{row}" for row in range(count)]
    columns["score"] = [chunk + 0.5, float("nan")][:count]
    return columns


def test_parts_become_one_table_in_the_order_of_chunks(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", IDENTITY, 3) as folder:
        for chunk in (2, 0, 1):
            folder.write(chunk, rows(chunk), [Problem("bad", f"image {chunk}")] if chunk else [])
        assert folder.done() == {0, 1, 2}
        path = folder.finish()
        assert [problem.name for problem in folder.problems()] == ["image 1", "image 2"]
    assert [path.name for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()] == [
        ".lock",
        "measurements.parquet",
        "run.json",
    ]
    table = pq.read_table(path)
    assert table.column_names == list(COLUMNS)
    assert table.column("item").to_pylist() == [f"item {chunk}.{row}" for chunk in range(3) for row in range(2)]


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, IDENTITY, 3) as folder:
        folder.write(1, rows(1), [])
    (tmp_path / "parts" / "part-000000.parquet.partial").write_bytes(b"cut off")
    with RunFolder.open(tmp_path, IDENTITY, 3) as folder:
        assert folder.done() == {1}
        assert not list(tmp_path.rglob("*.partial"))
        with pytest.raises(RunFolderError, match=r"part-000000\.parquet is missing or damaged"):
            folder.finish()
        assert not folder.table_path.exists()
        folder.write(0, rows(0), [])
        folder.write(2, rows(2, 0), [Problem("bad", "all of them")])
        folder.finish()
    with RunFolder.open(tmp_path, IDENTITY, 3) as folder:
        assert folder.done() == {0, 1, 2}
        assert pq.read_table(folder.finish()).num_rows == 4
        assert folder.problems() == [Problem("bad", "all of them")]


def test_a_crash_while_writing_leaves_the_part_out(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, IDENTITY, 2) as folder:
        folder.write(0, rows(0), [])
        before = (tmp_path / "parts" / "part-000000.parquet").read_bytes()
        broken = {**rows(0), "score": ["no number", "at all"]}
        with pytest.raises(ValueError, match="no number"):
            folder.write(0, broken, [])
        assert (tmp_path / "parts" / "part-000000.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 1}, "seed was 0, is 1 now"),
        ({"data": {"items": 7, "name": "d"}}, r"data\.items was 6, is 7 now"),
        ({"metrics": ["arcc", "l2"]}, "metrics had road; metrics has l2 now"),
        ({"metrics": ["road", "arcc"]}, "metrics has another order"),
        ({"target": "logit"}, "target was None, is 'logit' now"),
    ],
)
def test_another_run_is_refused_with_the_difference(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with RunFolder.open(tmp_path, IDENTITY, 3) as folder:
        folder.write(0, rows(0), [])
    with (
        pytest.raises(RunFolderError, match=told),
        RunFolder.open(tmp_path, {**IDENTITY, **change}, 3),
    ):
        pass
    with RunFolder.open(tmp_path, {**IDENTITY, **change}, 3, fresh=True) as folder:
        assert folder.done() == set()
    with pytest.raises(RunFolderError), RunFolder.open(tmp_path, IDENTITY, 3):
        pass


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, IDENTITY, 1) as folder:
        folder.write(0, rows(0), [])
        (tmp_path / "parts" / "part-000000.parquet").write_bytes(b"PAR1 no")
        with pytest.raises(RunFolderError, match="Delete it and run again"):
            folder.finish()


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"run\.json is damaged"), RunFolder.open(tmp_path, IDENTITY, 1):
        pass


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    with (
        RunFolder.open(tmp_path, IDENTITY, 1),
        pytest.raises(RunFolderError, match="Another run writes to"),
        RunFolder.open(tmp_path, IDENTITY, 1),
    ):
        pass
    with RunFolder.open(tmp_path, IDENTITY, 1) as folder:
        assert folder.done() == set()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="Cannot make the folder"), RunFolder.open(tmp_path / "file", IDENTITY, 1):
        pass
