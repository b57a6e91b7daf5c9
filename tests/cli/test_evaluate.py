from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from camrt.cli import main
from camrt.datasets import SyntheticShapes
from camrt.evaluation.runner import NoProgress
from camrt.evaluation.runner import run as measure_chunks
from camrt.evaluation.store import RunFolder
from tests.cli.test_cli import Result, error_of
from tests.evaluation.fixtures import open_session, write_small_bundle

QUICK = ("--threads", "1", "--resamples", "20")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as caught:
            main(["evaluate", *(str(argument) for argument in arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Result(caught.value.code or 0, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index, item in enumerate(SyntheticShapes("test", 5, 64)):
        Image.fromarray(item.image).save(folder / f"{index}.png")
    return folder


def subprocess_run(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """A process that SIGINT reaches, also where the tests run as a job in the background, which ignores it."""
    command = [sys.executable, "-m", "camrt", "evaluate", *map(str, arguments)]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a child inherits
    try:
        return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for_parts(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob("parts/part-*.parquet"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestRuns:
    def test_a_folder(self, run, bundle: Path, images: Path, tmp_path: Path) -> None:
        arguments = [bundle, images, *QUICK, "--method", "refinecam,gradcam", "--metrics", "arcc", "--metrics", "road"]
        result = run(*arguments)
        assert result.code == 0
        assert result.err == ""
        for name in ("report.html", "report.md", "summary.csv", "problems.csv", "measurements.parquet"):
            assert (tmp_path / "evaluation" / name).is_file()
            assert name in result.out
        assert "refinecam(gradcam++, product) all" in result.out
        assert "5 evaluated, 5 chosen, 5 found" in result.out
        report = (tmp_path / "evaluation" / "report.md").read_text()
        assert f"camrt evaluate {bundle} {images} --method refinecam,gradcam --metrics arcc --metrics road" in report

    def test_json(self, run, bundle: Path, images: Path, tmp_path: Path) -> None:
        (tmp_path / "bad").mkdir()
        for path in images.iterdir():
            (tmp_path / "bad" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "bad" / "broken.jpg").write_text("no")
        arguments = [
            "bad",
            *QUICK,
            "--method",
            "gradcam",
            "--metrics",
            "arcc",
            "--baselines",
            "ones",
            "--name",
            "a name",
        ]
        document = run(bundle, *arguments, "--json").document
        assert document["run"]["name"] == "a name"
        assert document["images"] == 5
        assert [row["explainer"]["label"] for row in document["ranking"]] == ["gradcam stage3", "ones"]
        assert document["problem_counts"] == {"unreadable image": 1}
        assert document["problems"][0]["name"] == "broken.jpg"
        table = pq.read_table(document["files"]["measurements"])
        scores = [row["score"] for row in table.to_pylist() if row["method"] == "gradcam"]
        assert document["ranking"][0]["means"]["arcc"]["value"] == pytest.approx(np.mean(scores))

    def test_names_that_are_no_utf8(self, run, bundle: Path, images: Path, tmp_path: Path) -> None:
        folder = tmp_path / os.fsdecode(b"caf\xe9")
        folder.mkdir()
        (folder / "0.png").write_bytes((images / "0.png").read_bytes())
        (folder / os.fsdecode(b"bad\xff.png")).write_text("no image")
        own = folder / os.fsdecode(b"b\xe9.onnx")
        own.write_bytes(bundle.read_bytes())
        arguments = [own, folder, *QUICK, "--out", folder / "out", "--method", "gradcam", "--metrics", "complexity"]
        for _ in range(2):
            result = run(*arguments)
            assert result.code == 0, result.err
            assert "b\\udce9.onnx" in result.out
        document = run(*arguments, "--json").document
        assert "bad\\udcff.png" in [problem["name"] for problem in document["problems"]]
        assert "caf\\udce9" in document["run"]["command"]
        for name in ("report.md", "report.html"):
            assert "caf\\udce9" in (folder / "out" / name).read_text(encoding="utf-8")

    def test_a_stopped_run_with_a_name_that_is_no_utf8_goes_on(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / os.fsdecode(b"bad\xff.png")).write_text("no image")
        session = open_session(bundle, tmp_path / "run", data=str(tmp_path), methods="gradcam")
        for _ in range(2):
            with RunFolder.open(tmp_path / "run", session.identity(), session.chunks) as folder:
                measure_chunks(session, folder, NoProgress())
                (problem,) = folder.problems()
                assert "bad\\udcff.png" in problem.detail

    def test_the_recorded_command_keeps_zeros(self, run, bundle: Path, images: Path) -> None:
        arguments = [bundle, images, "--resamples", "20", "--method", "gradcam", "--metrics", "complexity"]
        command = run(*arguments, "--seed", "0", "--threads", "0", "--json").document["run"]["command"]
        assert "--seed 0 " in command
        assert command.endswith("--threads 0")

    def test_the_synthetic_benchmark_with_the_embedded_model(self, run) -> None:
        arguments = ["--synthetic", "--images", "6", "--metrics", "arcc,complexity,mass_iou", "--layers", "all,each"]
        arguments += ["--method", "refinecam,gradcam++", "--baselines", "random,ones", "--batch-size", "6"]
        result = run(*arguments, *QUICK)
        assert result.code == 0
        for words in (
            "Which metric without ground truth agrees with the ground truth?",
            "arcc ↑ per layer and fused",
            "mass_iou ↑ per layer and fused",
            "small",
            "without baselines",
        ):
            assert words in result.out
        document = run(*arguments, *QUICK, "--json").document
        agreement = {row["metric"]: row for row in document["agreement"]}
        assert set(agreement) == {"arcc", "complexity"}
        assert set(agreement["arcc"]["by_group"]) <= {"small", "medium", "large"}
        assert agreement["arcc"]["mean"]["value"] > 0
        families = document["refinement"]["mass_iou"]
        assert [row["explainer"]["layers"] for row in families][:2] == [["stage4"], ["stage3"]]
        assert families[-1]["explainer"]["method"] == "refinecam"

    def test_a_yaml_file_and_flags_that_win(self, run, bundle: Path, images: Path, tmp_path: Path) -> None:
        (tmp_path / "run.yaml").write_text(
            f"bundle: {bundle}\ndata: {images}\nmetrics: [complexity]\nthreads: 1\nresamples: 20\nseed: 1\n"
            "explainers:\n- {method: refinecam, base_method: gradcam, fusion: max, layers: top}\n- {baseline: half}\n"
        )
        document = run("--config", "run.yaml", "--seed", "2", "--json").document
        assert document["run"]["seed"] == 2
        labels = {row["explainer"]["label"] for row in document["ranking"]}
        assert labels == {"refinecam(gradcam, max) top", "half"}


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "nothing to evaluate on"),
            (["--synthetic", "images"], "Give one of them"),
            (["images", "images"], "2 folders of images"),
            (["missing"], "missing is not a folder"),
            (["empty"], "empty has no image"),
            (["images", "--method", "magic"], "magic"),
            (["images", "--metrics", "magic"], "magic"),
            (["images", "--baselines", "magic"], "magic"),
            (["images", "--layers", "all,stage1"], "mixes all with names"),
            (["images", "--layers", "stage9"], "stage9"),
            (["images", "--metrics", "mass_iou"], "mass_iou compare with object masks"),
            (["images", "--class", "best"], "class_choice is 'best'"),
            (["images", "--class", "label"], "None of the 1 images"),
            (["--synthetic", "--split", "exam"], "exam"),
            (["images", "--config", "bad.yaml"], "Unknown key 'metricks'"),
            (["images", "--out", "photo.png"], "Cannot make the folder photo.png"),
        ],
    )
    def test_they_are_one_line(self, run, bundle: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
        for name in ("empty", "images"):
            (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
        Image.new("RGB", (40, 40)).save(tmp_path / "images" / "a.png")
        (tmp_path / "bad.yaml").write_text("metricks: [arcc]")
        assert message in error_of(run(bundle, *arguments, *QUICK))

    def test_another_configuration_needs_fresh(self, run, bundle: Path, images: Path) -> None:
        arguments = [bundle, images, *QUICK, "--method", "gradcam", "--metrics", "complexity"]
        assert run(*arguments).code == 0
        assert "seed was 0, is 1 now" in error_of(run(*arguments, "--seed", "1"))
        assert run(*arguments, "--seed", "1", "--fresh").code == 0
        assert "metrics had complexity; metrics has arcc now" in error_of(
            run(bundle, images, *QUICK, "--seed", "1", "--method", "gradcam", "--metrics", "arcc")
        )


STOPPED = ("--synthetic", "--images", 14, "--batch-size", 2, "--method", "refinecam,gradcam", *QUICK, "--out", "run")
STOPPED += ("--metrics", "arcc,average_drop,mass_iou", "--baselines", "random")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    process = subprocess_run(folder, *STOPPED)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return folder / "run"


class TestInterruptions:
    """Runs of a subprocess that are stopped half-way, against one that is not."""

    def test_killed_and_resumed_the_table_is_the_same(self, whole: Path, tmp_path: Path) -> None:
        process = subprocess_run(tmp_path, *STOPPED)
        wait_for_parts(process, tmp_path / "run", 2)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "run" / "measurements.parquet").exists()
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "parts").glob("part-*.parquet")}
        assert 2 <= len(kept) < 7
        again = subprocess_run(tmp_path, *STOPPED)
        wait_for_parts(again, tmp_path / "run", len(kept) + 1)
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        _, errors = again.communicate(timeout=120)
        assert again.returncode == 0, errors
        table = pq.read_table(tmp_path / "run" / "measurements.parquet")
        assert table.num_rows == 14 * 3 * 3
        assert table.equals(pq.read_table(whole / "measurements.parquet"), check_metadata=True)
        for name in ("measurements.parquet", "summary.csv"):
            assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()

    def test_interrupted_it_says_how_to_go_on(self, tmp_path: Path) -> None:
        process = subprocess_run(tmp_path, *STOPPED)
        wait_for_parts(process, tmp_path / "run", 1)
        os.kill(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert output == ""
        assert errors.startswith(
            "interrupted: what is measured is kept in run; go on with the same command: camrt evaluate"
        )
        assert "Traceback" not in errors
        assert list((tmp_path / "run" / "parts").glob("part-*.parquet"))


@pytest.mark.parametrize("name", ["run.json", "report.md", "measurements.parquet"])
def test_the_configuration_and_the_bundle_are_not_replaced(
    run, bundle: Path, images: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "run").mkdir()
    config = tmp_path / "run" / name
    config.write_text(f"bundle: {bundle}\ndata: {images}\nmethods: [gradcam]\nmetrics: [complexity]\nout: run\n")
    before = config.read_text()
    message = error_of(run("--config", config, "--fresh", *QUICK))
    assert f"would replace {config}" in message
    assert config.read_text() == before
    config.unlink()
    kept = tmp_path / "kept.onnx"
    kept.write_bytes(bundle.read_bytes())
    config.symlink_to(kept)
    arguments = [kept, images, *QUICK, "--method", "gradcam", "--metrics", "complexity", "--out", "run", "--fresh"]
    assert f"would replace {kept}" in error_of(run(*arguments))
    assert kept.read_bytes() == bundle.read_bytes()


def test_a_finished_run_only_gets_a_new_report(run, bundle: Path, images: Path, tmp_path: Path) -> None:
    arguments = [bundle, images, *QUICK, "--method", "gradcam", "--metrics", "complexity"]
    assert run(*arguments).code == 0
    table = tmp_path / "evaluation" / "measurements.parquet"
    before = table.stat().st_mtime_ns
    (tmp_path / "evaluation" / "report.html").unlink()
    assert run(*arguments, "--name", "renamed").code == 0
    assert table.stat().st_mtime_ns == before
    assert "renamed" in (tmp_path / "evaluation" / "report.html").read_text()


def test_a_terminal_gets_a_bar_with_the_time_left(bundle: Path, images: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "camrt", "evaluate", bundle, images, *QUICK, "--metrics", "arcc", "--json"]
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm-256color"}
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=follower, env=environment, cwd=tmp_path, check=False
    )
    progress = b""
    while select.select([leader], [], [], 0)[0]:
        progress += os.read(leader, 4096)
    os.close(follower)
    os.close(leader)
    assert done.returncode == 0
    progress = progress.decode()
    assert "evaluating" in progress
    assert "of 20 explanations" in progress
    assert "left" in progress
    assert json.loads(done.stdout)["images"] == 5
