"""``camrt bench latency`` on a bundle of tensors, and what is refused before anything is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

import camrt
from camrt.bench import load_report
from camrt.bench.latency import Sweep, bench_latency
from camrt.bench.workload import Workload
from camrt.cli import main
from camrt.errors import InvalidInputError
from tests.small_network import CLASSES, write_small_network


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latency")
    return Path(camrt.export(write_small_network(folder / "source.onnx"), folder / "bundle.onnx").path)


def test_a_bundle_of_tensors_has_no_stages_and_the_report_says_so(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "latency", str(bundle), "--threads", "1", "--rounds", "2", "--out", str(tmp_path)])
    assert not caught.value.code
    report = load_report(tmp_path / "latency.json")
    assert [table.title for table in report.tables] == ["Latency", "Share of the machine's limits"]
    assert any("try --preprocess" in note for note in report.notes)


def test_more_classes_than_the_network_has_are_refused(bundle: Path) -> None:
    with pytest.raises(InvalidInputError, match=f"{CLASSES + 1} classes of {CLASSES}"):
        bench_latency(Workload.of(bundle), Sweep(classes=(CLASSES + 1,)), {}, lambda _: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--provider", ""), "--provider names nothing"),
        (("--method", ","), "--method names nothing"),
        (("--method", "refinecam,nonsense"), "Unknown CAM method 'nonsense'"),
    ],
)
def test_names_are_checked_before_anything_is_timed(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("camrt.bench.limits.machine_limits", lambda _: pytest.fail("measured"))
    with pytest.raises(SystemExit) as caught:
        main(["bench", "latency", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camrt.bench.limits.machine_limits", lambda _: pytest.fail("measured"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as caught:
        main(["bench", "latency", "--out", str(tmp_path / "file" / "folder")])
    assert caught.value.code == 2
    assert "Choose another folder" in capsys.readouterr().err
