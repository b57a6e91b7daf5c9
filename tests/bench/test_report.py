"""Reports: what is written can be read and compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from camrt.bench import Report, compare_reports, load_report
from camrt.bench.environment import available_cores, describe_machine, pinned, quiet_notes
from camrt.bench.limits import machine_limits
from camrt.bench.report import Row, Table, cell
from camrt.errors import InvalidInputError

MACHINE = {"processor": "P", "cores": 2, "system": "S"}


def report(*rows: Row, kind: str = "latency", machine: dict[str, object] | None = None) -> Report:
    table = Table("Latency", list(rows), "the first line", "batch")
    return Report(kind, "camrt bench", machine or MACHINE, {}, [table], {"gemm_gflops": 50.0}, ["a note"])


def row(batch: int, median: float, ratio: float | None = None) -> Row:
    found: Row = {"method": "refinecam", "batch": batch, "calls": 9, "median_ms": median}
    return found if ratio is None else {**found, "ratio": ratio}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = report(row(1, 10.0), row(4, 30.0))
    files = written.write(tmp_path / "out")
    assert [file.name for file in files] == ["latency.json", "latency.md", "latency_1.png"]
    assert load_report(files[0]) == written
    assert "| refinecam | 4 | 9 | 30.0 |" in files[1].read_text()
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_files_that_are_no_report_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="Check the path"):
        load_report(tmp_path / "absent.json")
    path = tmp_path / "other.json"
    for text in ("{", "[]", '{"schema": 1}', '{"schema": 1, "kind": "latency", "tables": [{"no": 1}]}'):
        path.write_text(text)
        with pytest.raises(InvalidInputError, match="no report"):
            load_report(path)
    path.write_text(json.dumps({**report(row(1, 1.0)).to_json(), "schema": 99}))
    with pytest.raises(InvalidInputError, match="schema 99"):
        load_report(path)


def test_ratios_are_compared_where_there_are_some_and_medians_elsewhere() -> None:
    old = report(row(1, 10.0, 1.0), row(4, 30.0, 3.0), row(8, 50.0))
    new = report(row(1, 20.0, 1.0), row(4, 60.0, 3.0), row(8, 40.0))
    changes, notes = compare_reports(old, new)
    assert [(change.figure, change.verdict) for change in changes] == [
        ("median_ms", "slower"),
        ("ratio", "same"),
        ("median_ms", "faster"),
    ]
    assert notes == ["new report: a note"]


def test_the_limit_decides_what_counts_as_slower() -> None:
    old, new = report(row(1, 10.0)), report(row(1, 10.9))
    assert compare_reports(old, new)[0][0].verdict == "same"
    assert compare_reports(old, new, limit=0.05)[0][0].verdict == "slower"


def test_reports_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="like with like"):
        compare_reports(report(row(1, 1.0)), report(row(1, 1.0), kind="server"))
    with pytest.raises(InvalidInputError, match="no row in common"):
        compare_reports(report(row(1, 1.0)), report(row(2, 1.0)))


def test_another_machine_and_missing_rows_are_told() -> None:
    other = report(row(1, 1.0), row(4, 2.0), machine={**MACHINE, "processor": "Q"})
    notes = compare_reports(report(row(1, 1.0), row(2, 1.0)), other)[1]
    assert any("only ratios compare" in note for note in notes)
    assert "1 rows only in the old report, 1 only in the new one." in notes


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (4, "4"), ("a", "a"), (0.0, "0"), (123.4, "123"), (1.234, "1.23"), (0.01234, "0.0123")],
)
def test_cells_have_three_digits(value: object, text: str) -> None:
    assert cell(value) == text


def test_the_machine_is_described_and_a_busy_one_is_told() -> None:
    machine = describe_machine()
    assert machine["cores"] == available_cores()
    assert "cpu" in machine["providers"]
    assert "onnxruntime" in machine["packages"]
    assert quiet_notes({"load_average": 0.0, "cores": 2}) == []
    assert "load average was 3.00" in quiet_notes({"load_average": 3.0, "cores": 2})[0]
    assert "powersave" in quiet_notes({"load_average": 0.0, "cores": 2, "frequency_governor": "powersave"})[0]


def test_pinning_holds_inside_and_ends_outside() -> None:
    before = available_cores()
    with pinned(1):
        assert available_cores() == 1
    assert available_cores() == before
    with pytest.raises(InvalidInputError, match="cores"), pinned(before + 1):
        pass


def test_limits_are_measured_in_a_process_of_their_own() -> None:
    limits = machine_limits(1)
    assert limits["gemm_gflops"] > 1
    assert limits["copy_gbytes"] > 0.1
