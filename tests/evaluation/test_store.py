from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camrt.datasets import Problem
from camrt.evaluation.store import COLUMNS, RunFolder, RunFolderError, replaced

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


@pytest.mark.parametrize("name", ["measurements.parquet", "parts/part-00000-spark.parquet"])
def test_files_of_something_else_are_refused(tmp_path: Path, name: str) -> None:
    foreign = tmp_path / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("precious")
    with (
        pytest.raises(RunFolderError, match=rf"holds files of something else: {name}.*--fresh"),
        RunFolder.open(tmp_path, IDENTITY, 1),
    ):
        pass
    assert foreign.read_text() == "precious"
    assert not (tmp_path / "run.json").exists()
    with RunFolder.open(tmp_path, IDENTITY, 1, fresh=True) as folder:
        assert folder.done() == set()
    assert not foreign.exists()


def test_only_files_of_a_run_are_cleaned_up(tmp_path: Path) -> None:
    kept = [
        tmp_path / name for name in ("download.partial", "parts/part-one", "parts/part-1.txt", "a/run.json.partial")
    ]
    gone = ["run.json.partial", "measurements.parquet.partial", "parts/part-000002.parquet.partial"]
    for path in [*kept, *(tmp_path / name for name in gone)]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    (tmp_path / "folder.partial").mkdir()
    (tmp_path / "parts" / "part-000003.parquet.partial").mkdir()
    for fresh in (False, True, False):
        with RunFolder.open(tmp_path, IDENTITY, 1, fresh) as folder:
            folder.write(0, rows(0), [])
            folder.finish()
    assert all(path.read_text() == "x" for path in kept)
    assert not any((tmp_path / name).exists() for name in gone)
    assert (tmp_path / "folder.partial").is_dir()


def test_the_lock_cuts_nothing_off_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").write_text("of another program")
    with RunFolder.open(tmp_path / "a", IDENTITY, 1):
        pass
    assert (tmp_path / "a" / ".lock").read_text() == "of another program"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match="Give another --out"), RunFolder.open(tmp_path / "b", IDENTITY, 1):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_links_are_replaced_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    for name in ("file", "file.partial"):
        (tmp_path / name).symlink_to(target)
    with replaced(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert target.read_text() == "precious"
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_a_part_that_cannot_be_read_is_measured_again(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, IDENTITY, 4) as folder:
        for chunk in range(4):
            folder.write(chunk, rows(chunk), [])
        part = tmp_path / "parts" / "part-000000.parquet"
        part.write_bytes(part.read_bytes()[:-50])
        (tmp_path / "parts" / "part-000001.parquet").write_bytes(b"")
        pq.write_table(pa.table({"other": [1]}), tmp_path / "parts" / "part-000002.parquet")
        assert folder.done() == {3}
        for chunk in range(3):
            folder.write(chunk, rows(chunk), [])
        assert pq.read_table(folder.finish()).num_rows == 8


def test_a_chunk_is_one_row_group_however_long_it_is(tmp_path: Path) -> None:
    count = 2**20 + 5
    with RunFolder.open(tmp_path, IDENTITY, 2) as folder:
        columns = {name: pa.nulls(count, getattr(pa, kind)()) for name, kind in COLUMNS.items()}
        folder.write(0, columns, [])
        folder.write(1, rows(1), [])
        assert pq.ParquetFile(tmp_path / "parts" / "part-000000.parquet").num_row_groups == 1
        file = pq.ParquetFile(folder.finish())
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [count, 2]
