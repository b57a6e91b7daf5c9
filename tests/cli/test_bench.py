"""``camrt bench`` with few rounds: what is printed and written, not how fast it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from camrt.bench import load_report
from camrt.cli import main
from camrt.errors import InvalidInputError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["bench", *(str(argument) for argument in arguments)])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


def test_latency_sweeps_and_reports_stages_and_shares(run: Run, tmp_path: Path) -> None:
    sweeps = ("--method", "refinecam,gradcam", "--batch", "1,2", "--classes", "3", "--layers", "2")
    code, _, _ = run("latency", "--threads", "1", *sweeps, "--rounds", "2", "--out", tmp_path)
    assert code == 0
    report = load_report(tmp_path / "latency.json")
    latencies, stages, shares = report.tables
    lines = {(row["method"], row["batch"], row["classes"], row["layers"]) for row in latencies.rows}
    assert lines == {
        *(("prediction", batch, 1, 0) for batch in (1, 2)),
        *(("refinecam", batch, 1, 4) for batch in (1, 2)),
        *(("gradcam", batch, 1, 1) for batch in (1, 2)),
        ("refinecam", 1, 3, 4),
        ("gradcam", 1, 3, 1),
        ("refinecam", 1, 1, 2),
    }
    assert all(row["ratio"] == 1.0 for row in latencies.rows if row["method"] == "prediction")
    assert {"decode", "preprocess", "forward", "backward", "kernels", "encode"} <= stages.rows[0].keys()
    assert all(0 < float(row["share_of_gemm_peak"]) < 1.5 for row in shares.rows)
    assert {(row["method"], row["batch"]) for row in shares.rows} == {
        (method, batch) for method in ("prediction", "refinecam") for batch in (1, 2)
    }
    assert (tmp_path / "latency_1.png").exists()


def test_throughput_counts_the_images_of_all_instances(run: Run) -> None:
    code, out, _ = run(
        "throughput", "--threads", "1", "--batch", "1,2", "--instances", "1,2", "--rounds", "2", "--json"
    )
    assert code == 0
    (table,) = json.loads(out)["tables"]
    assert [(row["instances"], row["batch"]) for row in table["rows"]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for row in table["rows"]:
        images = row["instances"] * row["batch"]
        assert row["images_per_second"] == pytest.approx(1e3 * images / row["median_ms"])


def test_a_server_is_started_loaded_and_stopped(run: Run) -> None:
    code, out, _ = run("server", "--threads", "1", "--callers", "2", "--seconds", "0.5", "--json")
    assert code == 0
    (table,) = json.loads(out)["tables"]
    assert [(row["where"], row["callers"]) for row in table["rows"]] == [("in process", 1), ("server", 2)]
    assert all(row["images_per_second"] > 0 for row in table["rows"])


@pytest.mark.slow
def test_kernels_are_timed_on_both_backends(run: Run) -> None:
    code, out, _ = run("kernels", "--threads", "1", "--rounds", "2", "--json")
    assert code == 0
    (table,) = json.loads(out)["tables"]
    kernels = {row["kernel"] for row in table["rows"]}
    assert {"layer_maps gradcam++", "fuse_layers product", "perturbation_batch"} <= kernels
    assert {row["backend"] for row in table["rows"]} == {"native", "reference"}


@pytest.mark.parametrize(
    ("command", "measures"),
    [
        ("latency", "limits.machine_limits"),
        ("kernels", "limits.machine_limits"),
        ("throughput", "throughput.bench_throughput"),
        ("sizes", "sizes.bench_sizes"),
        ("server", "serving.bench_server"),
    ],
)
def test_the_machine_is_described_before_anything_is_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, measures: str
) -> None:
    order: list[str] = []

    def stop(*_: object) -> None:
        order.append("measured")
        raise InvalidInputError("stopped")

    monkeypatch.setattr("camrt.bench.environment.describe_machine", lambda: order.append("described"))
    monkeypatch.setattr(f"camrt.bench.{measures}", stop)
    run(command, *(["a.onnx"] if command == "sizes" else []))
    assert order == ["described", "measured"]


def test_a_report_says_how_busy_the_machine_was_before(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    load = [0.0]

    def measure(*_: object) -> tuple[list[object], list[str]]:
        load[0] = 99.0
        return [], []

    monkeypatch.setattr("camrt.bench.throughput.bench_throughput", measure)
    monkeypatch.setattr("os.getloadavg", lambda: (load[0], 0.0, 0.0))
    document = json.loads(run("throughput", "--threads", "1", "--json")[1])
    assert document["environment"]["load_average"] == 0.0
    assert not any("load average" in note for note in document["notes"])


def test_compare_exits_with_one_where_something_got_slower(run: Run, tmp_path: Path) -> None:
    run("throughput", "--threads", "1", "--batch", "1", "--rounds", "1", "--out", tmp_path)
    path = tmp_path / "throughput.json"
    assert run("compare", path, path)[0] == 0
    document = json.loads(path.read_text())
    document["tables"][0]["rows"][0]["median_ms"] *= 2
    slower = tmp_path / "slower.json"
    slower.write_text(json.dumps(document))
    code, out, _ = run("compare", path, slower, "--json")
    assert code == 1
    assert json.loads(out)["changes"][0]["verdict"] == "slower"
    assert run("compare", slower, path)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("latency", "--batch", "1,x"), "Give whole numbers"),
        (("latency", "--threads", "9999"), "cores"),
        (("latency", "--layers", "9", "--threads", "1"), "9 layers of 4"),
        (("compare", "absent.json", "absent.json"), "Check the path"),
    ],
)
def test_wrong_options_are_one_message(run: Run, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err
