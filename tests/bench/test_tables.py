"""Tables of documents: made from the reports of a run, and the same as those that are kept."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import history, tables
from benchmarks.tables import NOT_MEASURED, TABLES, Run, fill
from camrt.bench import Report
from camrt.bench.report import Row, Table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "docs" / "performance.md", ROOT / "docs" / "gpu.md")
MACHINE = {"date": "2026-01-02", "processor": "P", "cores": 2, "system": "S"}


def document(name: str) -> str:
    return f"before\n\n<!-- bench: {name} -->\nold\n<!-- /bench -->\n\nafter\n"


def write(folder: Path, kind: str, *found: Table) -> Run:
    Report(kind, f"run {kind}", MACHINE, {}, list(found), notes=["busy"]).write(folder)
    return Run(folder)


def server(ratio: float) -> Table:
    rows: list[Row] = [
        {"server": "camrt", "camrt_is_faster_by": 1.0, "p50_ms": 100.0},
        {"server": "grpc", "camrt_is_faster_by": ratio, "p50_ms": 620.0},
    ]
    return Table("Servers", rows)


def test_the_documents_show_the_run_that_is_kept() -> None:
    for path in (*DOCUMENTS, ROOT / "README.md"):
        assert fill(path.read_text(), Run(RESULTS)) == path.read_text()
    named = {name for path in DOCUMENTS for name in re.findall(r"<!-- bench: (\S+) -->", path.read_text())}
    assert named == TABLES.keys() - {"summary"}


def test_a_table_is_replaced_between_its_marks_and_nothing_else_changes(tmp_path: Path) -> None:
    text = fill(document("servers"), write(tmp_path, "peer_servers", server(5.0)))
    assert text.startswith("before\n\n<!-- bench: servers -->\n`run peer_servers`: 2026-01-02, P, 2 cores; ")
    assert "| bare grpc.aio servicer | 0.20 | 6.20 |\n<!-- /bench -->\n\nafter\n" in text
    assert fill(text, Run(tmp_path)) == text


def test_goals_say_what_was_met(tmp_path: Path) -> None:
    means: list[Row] = [
        {"batch": 16, "key": "pytorch_grad_cam", "models": 6, "mean_ratio": 14.9, "goal": 15.0},
        {"batch": 16, "key": "torchcam_best", "models": 6, "mean_ratio": 2.5, "goal": 2.5},
        {"batch": 16, "key": "camrt", "models": 6, "mean_ratio": 1.0},
    ]
    write(tmp_path, "peers_16", Table("Geometric means over the networks", means))
    text = fill(document("goals"), write(tmp_path, "peer_servers", server(10.0)))
    assert "| pytorch-grad-cam as in its README, batch 16, 6 networks | at least 15 | 14.90 | no |" in text
    assert "| torch-cam at its best, batch 16, 6 networks | at least 2.5 | 2.50 | yes |" in text
    assert "| serving, bare grpc.aio servicer | at least 10 | 10.00 | yes |" in text
    assert "ARCC" not in text


def test_a_peer_that_did_not_run_is_refused_and_a_mean_says_of_how_many(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"model": "a", "key": "camrt", "ratio": 1.0},
        {"model": "b", "key": "camrt", "ratio": 1.0},
        {"model": "a", "key": "captum", "ratio": 1.5},
        {"model": "b", "key": "captum", "why_not": "ValueError: no"},
    ]
    means: list[Row] = [
        {"key": "camrt", "models": 2, "mean_ratio": 1.0},
        {"key": "captum", "models": 1, "mean_ratio": 1.5},
    ]
    found = (Table("Every network", rows), Table("Geometric means over the networks", means))
    text = fill(document("peers"), write(tmp_path, "peers", *found))
    assert "| b | 1.00 | refused |\n| geometric mean | 1.00 | 1.50 (of 1) |" in text


def test_what_the_run_has_not_measured_is_said(tmp_path: Path) -> None:
    for name in TABLES:
        assert fill(document(name), Run(tmp_path)) == document(name).replace("old", NOT_MEASURED)


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(SystemExit, match="no table is called 'nothing'"):
        fill(document("nothing"), Run(RESULTS))


def test_check_fails_until_the_document_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "peer_servers", server(5.0))
    path = tmp_path / "page.md"
    path.write_text(document("servers"))
    monkeypatch.setattr(sys, "argv", ["tables", str(tmp_path), "--check", str(path)])
    with pytest.raises(SystemExit, match="figures of another run"):
        tables.main()
    monkeypatch.setattr(sys, "argv", ["tables", str(tmp_path), "--write", str(path), "--check", str(path)])
    tables.main()
    assert "old" not in path.read_text()


def test_history_compares_with_the_last_run_of_the_same_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "history.jsonl"
    others = [
        {"date": "2025-01-01", "commit": "one", "processor": "P", "cores": 2, "ratios": {"server grpc": 4.0}},
        {"date": "2025-01-01", "commit": "two", "processor": "Q", "cores": 2, "ratios": {"server grpc": 9.0}},
    ]
    kept.write_text("".join(json.dumps(line) + "\n" for line in others))
    write(tmp_path, "peer_servers", server(5.0))
    means: list[Row] = [{"batch": 1, "key": "captum", "models": 1, "mean_ratio": 1.23456}]
    write(tmp_path, "peers", Table("Geometric means over the networks", means))
    monkeypatch.setattr(sys, "argv", ["history", str(tmp_path), str(kept)])
    history.main()
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert lines[:2] == others
    assert lines[2]["ratios"] == {"peers captum": 1.235, "server grpc": 5.0}
    assert (lines[2]["date"], lines[2]["processor"]) == ("2026-01-02", "P")
    assert "+25.0% since one" in capsys.readouterr().out


def test_a_folder_without_reports_has_no_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["history", str(tmp_path), str(tmp_path / "history.jsonl")])
    with pytest.raises(SystemExit, match="no report with ratios"):
        history.main()
    assert not (tmp_path / "history.jsonl").exists()
