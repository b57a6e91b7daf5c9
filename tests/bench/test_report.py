"""Reports: what is written can be read and compared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from camrt.bench import Report, compare_reports, load_report
from camrt.bench.environment import available_cores, describe_machine, pinned, quiet_notes
from camrt.bench.limits import machine_limits
from camrt.bench.plots import series
from camrt.bench.report import Row, Table, cell
from camrt.errors import InvalidInputError

MACHINE = {"processor": "P", "cores": 2, "system": "S"}


def report(*rows: Row, kind: str = "latency", machine: dict[str, object] | None = None) -> Report:
    table = Table("Latency", list(rows), "the prediction of as many images", ("batch",))
    return Report(kind, "camrt bench", machine or MACHINE, {}, [table], {"gemm_gflops": 50.0}, ["a note"])


def row(batch: int, median: float, ratio: float | None = None) -> Row:
    found: Row = {"method": "refinecam", "batch": batch, "calls": 9, "median_ms": median}
    return found if ratio is None else {**found, "ratio": ratio}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = report(row(1, 10.0), row(4, 30.0))
    files = written.write(tmp_path / "out")
    assert [file.name for file in files] == ["latency.json", "latency.md", "latency_1.png"]
    assert load_report(files[0]) == written
    earlier = json.loads(files[0].read_text())
    earlier["tables"][0]["sweep"] = "batch"
    files[0].write_text(json.dumps(earlier))
    assert load_report(files[0]) == written
    assert "| refinecam | 4 | 9 | 30.0 |" in files[1].read_text()
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_files_that_are_no_report_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="Check the path"):
        load_report(tmp_path / "absent.json")
    path = tmp_path / "other.json"
    rows = ({"batch": 1, "median_ms": "fast"}, {"batch": None}, 7)
    documents = [{**report(row(1, 1.0)).to_json(), "tables": [{"title": "T", "rows": [one]}]} for one in rows]
    documents.append({**report(row(1, 1.0)).to_json(), "environment": None})
    for text in (
        *map(json.dumps, documents),
        "{",
        "[]",
        '{"schema": 1}',
        '{"schema": 1, "kind": "latency", "tables": [{"no": 1}]}',
    ):
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


def test_missing_rows_are_named() -> None:
    old, new = report(row(1, 1.0), row(2, 1.0)), report(row(1, 1.0), *(row(batch, 2.0) for batch in range(4, 11)))
    notes = compare_reports(old, new)[1]
    assert notes[0] == "Only in the old report: Latency (method refinecam, batch 2)."
    assert notes[1].startswith("Only in the new report: Latency (method refinecam, batch 4); ")
    assert notes[1].endswith("; and 2 more.")


def test_only_ratios_are_compared_with_another_machine() -> None:
    old = report(row(1, 10.0, 1.0), row(4, 30.0, 3.0))
    new = report(row(1, 90.0, 1.0), row(4, 270.0, 3.0), machine={**MACHINE, "processor": "Q"})
    changes, notes = compare_reports(old, new)
    assert [(change.figure, change.verdict) for change in changes] == [("ratio", "same")]
    assert "processor: 'P' then 'Q'; only ratios are compared." in notes
    times = report(row(1, 90.0), machine={**MACHINE, "cores": 4})
    with pytest.raises(InvalidInputError, match="only times of different machines"):
        compare_reports(report(row(1, 10.0)), times)


def test_ratios_to_a_prediction_come_before_ratios_to_another_line() -> None:
    old = report({**row(1, 10.0, 1.0), "to_prediction": 2.0}, {**row(2, 10.0, 0.5), "to_prediction": 1.0})
    new = report({**row(1, 10.0, 1.0), "to_prediction": 3.0}, {**row(2, 10.0, 0.4), "to_prediction": 1.0})
    changes, _ = compare_reports(old, new)
    assert [(change.figure, change.verdict) for change in changes] == [
        ("to_prediction", "slower"),
        ("median_ms", "same"),
    ]


def test_another_unit_or_baseline_is_refused() -> None:
    micro: Row = {"method": "refinecam", "batch": 1, "calls": 9, "median_us": 1e4}
    with pytest.raises(
        InvalidInputError, match=r"batch 1\): the old report has median_ms where the new one has median_us"
    ):
        compare_reports(report(row(1, 10.0)), report(micro))
    other = report(row(1, 10.0))
    other.tables[0] = Table("Latency", other.tables[0].rows, "torch")
    with pytest.raises(
        InvalidInputError, match="ratios to 'the prediction of as many images' in the old report, to 'torch'"
    ):
        compare_reports(report(row(1, 10.0)), other)


def test_a_figure_that_is_no_number_does_not_lose_the_others(tmp_path: Path) -> None:
    written = report(row(1, float("nan")), row(4, 30.0))
    found = load_report(written.write(tmp_path)[0])
    assert found.tables[0].rows == [{"method": "refinecam", "batch": 1, "calls": 9}, row(4, 30.0)]


def kernels(native: float, reference: float, machine: dict[str, object] | None = None) -> Report:
    rows: list[Row] = []
    for backend, threads, median in (("native", 2, native), ("reference", 1, reference)):
        labels: Row = {"kernel": "fuse_layers", "batch": 1, "backend": backend, "threads": threads}
        rows.append({**labels, "calls": 3, "median_ms": median, "ratio": median / native})
    return Report("kernels", "", machine or MACHINE, {}, [Table("Kernels", rows, "native")])


def test_a_native_kernel_is_compared_with_the_reference() -> None:
    faster, slower = ((0.5, 100.0), "faster"), ((2.0, 100.0), "slower")
    for (native, reference), verdict in (faster, slower):
        changes, _ = compare_reports(kernels(1.0, 100.0), kernels(native, reference))
        assert [(change.figure, change.verdict) for change in changes] == [
            ("to_reference", verdict),
            ("median_ms", "same"),
        ]
    (change,) = compare_reports(kernels(1.0, 100.0), kernels(3.0, 300.0, {**MACHINE, "cores": 64}))[0]
    assert (change.figure, change.verdict) == ("to_reference", "same")


def throughput(times: dict[int, float], machine: dict[str, object] | None = None) -> Report:
    first = next(iter(times.values()))
    rows = [row(batch, median, median / first) for batch, median in times.items()]
    return Report("throughput", "", machine or MACHINE, {}, [Table("Throughput", rows, "the first line")])


def test_what_one_line_of_throughput_gains_is_no_loss_of_another() -> None:
    changes, _ = compare_reports(throughput({1: 10.0, 2: 20.0}), throughput({1: 5.0, 2: 20.0}))
    assert [(change.figure, change.verdict) for change in changes] == [("median_ms", "faster"), ("median_ms", "same")]


def test_another_first_line_of_throughput_changes_no_verdict() -> None:
    changes, _ = compare_reports(throughput({1: 10.0, 2: 20.0, 4: 40.0}), throughput({2: 20.0, 4: 40.0}))
    assert [(change.figure, change.verdict) for change in changes] == [("median_ms", "same")] * 2


def test_throughput_of_another_machine_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="only times of different machines"):
        compare_reports(throughput({1: 10.0, 2: 20.0}), throughput({1: 1.0, 2: 2.0}, {**MACHINE, "cores": 64}))


def test_means_over_other_networks_are_not_compared() -> None:
    mean: Row = {"batch": 1, "key": "camrt", "models": 1, "to_prediction": 2.0}
    old, new = (
        Report(
            "peers",
            "",
            MACHINE,
            {"models": [name]},
            [Table("Means", [{**mean, "to_prediction": value}]), Table("Every network", [row(1, 10.0)])],
        )
        for name, value in (("a", 2.0), ("b", 3.0))
    )
    changes, notes = compare_reports(old, new)
    assert [change.table for change in changes] == ["Every network"]
    assert "Means are of other networks; they are not compared." in notes


@pytest.mark.parametrize("median", [0.0, float("nan"), float("inf")])
def test_a_figure_that_is_no_time_is_refused(median: float) -> None:
    for old, new in ((median, 1.0), (1.0, median)):
        with pytest.raises(InvalidInputError, match=r"batch 1\): median_ms is"):
            compare_reports(report(row(1, old)), report(row(1, new)))


@pytest.mark.parametrize("name", ["kernels", "latency", "peers", "peers_16", "peer_servers", "server", "sizes"])
def test_kept_reports_are_the_same_as_themselves(name: str) -> None:
    kept = load_report(Path(__file__).parents[2] / "benchmarks" / "results" / f"{name}.json")
    changes, _ = compare_reports(kept, kept)
    assert {change.verdict for change in changes} == {"same"}


def test_another_bundle_is_told() -> None:
    old, new = report(row(1, 10.0)), report(row(1, 10.0))
    old.settings["bundle"], new.settings["bundle"] = "a.onnx", "b.onnx"
    assert "bundle: 'a.onnx' then 'b.onnx'." in compare_reports(old, new)[1]


def test_every_swept_label_has_a_plot_of_the_lines_that_vary_in_it(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"method": "prediction", "batch": 1, "layers": 0, "median_ms": 1.0},
        {"method": "refinecam", "batch": 4, "layers": 4, "median_ms": 8.0},
        {"method": "refinecam", "batch": 1, "layers": 4, "median_ms": 2.0},
        {"method": "refinecam", "batch": 1, "layers": 2, "median_ms": 1.5},
    ]
    table = Table("Latency", rows, sweep=("batch", "classes", "layers"))
    assert series(table, "batch") == {"refinecam, layers 4": [(1, 2.0), (4, 8.0)]}
    assert series(table, "layers") == {"refinecam, batch 1": [(2, 1.5), (4, 2.0)]}
    files = Report("latency", "", MACHINE, {}, [table]).write(tmp_path)
    assert [file.name for file in files] == ["latency.json", "latency.md", "latency_1.png", "latency_2.png"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (4, "4"), ("a", "a"), (0.0, "0"), (123.4, "123"), (1.234, "1.23"), (0.01234, "0.0123")],
)
def test_cells_have_three_digits(value: object, text: str) -> None:
    assert cell(value) == text


def test_the_machine_is_described_and_a_busy_one_is_told() -> None:
    machine = describe_machine()
    assert machine["cores"] == available_cores()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", machine["date"])
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


def test_limits_that_take_too_long_are_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camrt.bench.limits._TIMEOUT_SECONDS", 0.001)
    with pytest.raises(InvalidInputError, match="not measured within"):
        machine_limits(1)


def test_limits_are_measured_in_a_process_of_their_own() -> None:
    limits = machine_limits(1)
    assert limits["gemm_gflops"] > 1
    assert limits["copy_gbytes"] > 0.1
