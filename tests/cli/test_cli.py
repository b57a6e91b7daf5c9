from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import camrt
from camrt.cam import CAM_METHODS, Perturbation, available_methods
from camrt.cli import main
from camrt.preprocess import Preprocessing
from tests.small_network import CLASSES, HEIGHT, WIDTH, write_small_network
from tests.test_preprocess import png_header

NAMES = ["disc", "square", "Dreieck ▲", "ring"]


class Result:
    """What one command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> dict:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Result(caught.value.code or 0, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_network(tmp_path_factory.mktemp("models") / "small.onnx")


@pytest.fixture(scope="module")
def bundle(model: Path) -> Path:
    return camrt.export(
        model,
        model.with_name("bundle.onnx"),
        ["stage2", "stage3"],
        preprocess=Preprocessing((HEIGHT, WIDTH), "letterbox"),
        class_names=NAMES,
    ).path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (45, 33, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def error_of(result: Result) -> str:
    """The error of a command that failed: one line on stderr, nothing on stdout."""
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    return result.err


class TestRoot:
    def test_version(self, run) -> None:
        expected = f"camrt {version('camrt')}\n"
        assert run("version").out == expected
        assert run("--version").out == expected
        assert run("version", "--json").document == {"version": version("camrt")}

    def test_help_names_every_command(self, run) -> None:
        result = run("--help")
        assert result.code == 0
        for command in ("layers", "export", "explain", "check", "doctor", "version"):
            assert command in result.out

    @pytest.mark.parametrize("arguments", [["explian"], ["layers"], ["explain", "--top-k", "0"], ["check", "--nope"]])
    def test_wrong_usage(self, run, arguments: list[str]) -> None:
        result = run(*arguments)
        assert (result.code, result.out) == (2, "")
        assert "Usage" in result.err

    def test_heavy_packages_wait_for_the_command(self) -> None:
        code = "import sys, camrt.cli; print({'numpy', 'onnx', 'onnxruntime', 'PIL', 'rich.table'} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "set()"

    def test_python_dash_m(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "camrt", "explain", str(tmp_path / "missing.onnx"), "x.png"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "missing.onnx" in done.stderr


class TestLayers:
    def test_text_and_json(self, run, model: Path) -> None:
        text = run("layers", model)
        assert text.code == 0
        document = run("layers", model, "--json").document
        assert document["model"] == str(model)
        assert {"stage1", "stage2", "stage3"} <= {layer["name"] for layer in document["layers"]}
        automatic = [layer["name"] for layer in document["layers"] if layer["auto"]]
        starred = [line.split()[1] for line in text.out.splitlines() if line.startswith("*")]
        assert starred == automatic
        assert automatic

    def test_what_a_position_sees(self, run, model: Path) -> None:
        layers = {layer["name"]: layer for layer in run("layers", model, "--json").document["layers"]}
        assert layers["stage1"]["receptive_field"] == [3, 3]
        assert layers["stage3"]["receptive_field"] == [18, 18]
        assert "18x18" in run("layers", model).out

    def test_values_that_are_not_listed_can_be_shown(self, run, model: Path) -> None:
        few = run("layers", model, "--json").document["layers"]
        every = run("layers", model, "--all", "--json").document["layers"]
        assert [layer for layer in every if layer in few] == few

    def test_files_that_are_no_models(self, run, model: Path, tmp_path: Path) -> None:
        (tmp_path / "text.onnx").write_text("This is not a model.")
        (tmp_path / "short.onnx").write_bytes(model.read_bytes()[:-2000])
        for name in ("text.onnx", "short.onnx", "missing.onnx"):
            assert name in error_of(run("layers", name))

    def test_wrong_size(self, run, model: Path) -> None:
        assert "224x" in error_of(run("layers", model, "--size", "224x"))


class TestExport:
    def test_map_and_lowering(self, run, model: Path, tmp_path: Path) -> None:
        options = ["--emit", "map", "--base", "layercam", "--fusion", "mean", "--no-lowering"]
        text = run("export", model, "-o", "map.onnx", *options)
        assert (text.code, text.err) == (0, "")
        assert "layercam, mean, normalize_twice" in text.out
        document = run("export", model, "-o", "map.onnx", *options, "--json").document
        assert document["manifest"]["saliency"]["output"] == "saliency_map"
        assert camrt.Bundle.open(tmp_path / "map.onnx").manifest.saliency is not None
        assert "layercam" in error_of(run("export", model, "-o", "no.onnx", "--emit", "map", "--base", "scorecam"))
        assert "emit" in error_of(run("export", model, "-o", "no.onnx", "--fusion", "mean"))

    def test_text(self, run, model: Path, tmp_path: Path) -> None:
        result = run("export", model, "-o", "made.onnx", "--layers", "stage3,stage1")
        assert result.code == 0
        assert camrt.Bundle.open(tmp_path / "made.onnx").manifest.layer_names == ("stage3", "stage1")
        assert "made.onnx" in result.out

    def test_json_with_names_and_preprocessing(self, run, model: Path, tmp_path: Path) -> None:
        preprocessing = Preprocessing((HEIGHT, WIDTH), "crop", 50, interpolation="bicubic")
        (tmp_path / "p.json").write_text(json.dumps(preprocessing.to_dict()))
        (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n\n", encoding="utf-8-sig")  # as Windows writes it
        result = run("export", model, "-o", "m.onnx", "--preprocess", "p.json", "--class-names", "names.txt", "--json")
        manifest = camrt.Bundle.open(tmp_path / "m.onnx").manifest
        assert manifest.class_names == tuple(NAMES)
        assert Preprocessing.from_dict(manifest.preprocessing) == preprocessing
        assert result.document["manifest"]["class_names"] == NAMES
        assert result.document["bytes"] == (tmp_path / "m.onnx").stat().st_size

    def test_json_list_of_names(self, run, model: Path, tmp_path: Path) -> None:
        (tmp_path / "names.json").write_text(json.dumps(NAMES))
        assert run("export", model, "-o", "m.onnx", "--class-names", "names.json").code == 0
        assert camrt.Bundle.open(tmp_path / "m.onnx").manifest.class_names == tuple(NAMES)

    def test_files_of_another_kind(self, run, model: Path, tmp_path: Path) -> None:
        (tmp_path / "list.json").write_text("[1, 2]")
        (tmp_path / "broken.json").write_text("{")
        (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
        (tmp_path / "two.txt").write_text("a\nb")
        cases = {
            ("--class-names", "list.json"): "no JSON list of strings",
            ("--class-names", "broken.json"): "broken.json is no JSON",
            ("--class-names", "latin.txt"): "no UTF-8",
            ("--class-names", "two.txt"): "2 class names",
            ("--class-names", "missing.txt"): "Cannot read missing.txt",
            ("--preprocess", "list.json"): "no JSON object",
            ("--preprocess", "imagenet2"): "Unknown preprocessing preset",
            ("--layers", "stage9"): "stage9",
        }
        for arguments, message in cases.items():
            assert message in error_of(run("export", model, "-o", "m.onnx", *arguments))
        assert not (tmp_path / "m.onnx").exists()

    def test_no_input_is_replaced(self, run, model: Path, tmp_path: Path) -> None:
        preprocessing = Preprocessing((HEIGHT, WIDTH), "crop", 50)
        (tmp_path / "p.json").write_text(json.dumps(preprocessing.to_dict()))
        (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
        (tmp_path / "model.onnx").write_bytes(model.read_bytes())
        for name in ("model.onnx", "p.json", "names.txt"):
            before = (tmp_path / name).read_bytes()
            arguments = ["-o", name, "--preprocess", "p.json", "--class-names", "names.txt"]
            assert f"would replace {name}" in error_of(run("export", "model.onnx", *arguments))
            assert (tmp_path / name).read_bytes() == before

    def test_an_error_is_one_document_with_json(self, run, tmp_path: Path) -> None:
        (tmp_path / "text.onnx").write_text("no")
        result = run("export", "text.onnx", "-o", "m.onnx", "--json")
        assert result.code == 2
        assert result.document["error"]["type"] == "InvalidModelError"
        assert "text.onnx" in result.err


class TestExplain:
    def test_text(self, run, bundle: Path, image: Path, tmp_path: Path) -> None:
        result = run("explain", bundle, image, "--out", "a folder/with a long name " + "x" * 150)
        assert result.code == 0
        lines = dict(line.split(maxsplit=1) for line in result.out.splitlines() if line)
        overlay = tmp_path / lines["overlay"]
        with Image.open(overlay) as picture, Image.open(image) as photo:
            assert picture.size == photo.size
            assert not np.array_equal(np.asarray(picture), np.asarray(photo))
        assert any(name in lines["class"] for name in NAMES)
        assert lines["probability"].endswith(" %")
        for stage in ("decode", "inference", "kernels", "overlay", "total"):
            assert f"{stage} " in lines["time"]

    def test_the_embedded_model_and_sample(self, run) -> None:
        document = run("explain", "--sample", "--json").document
        (explanation,) = document["images"][0]["explanations"]
        assert explanation["class_name"]
        assert explanation["probability"] > 0.9
        assert explanation["degenerate"] == []
        assert Path(explanation["overlay"]).is_file()

    def test_json(self, run, bundle: Path, image: Path) -> None:
        document = run("explain", bundle, image, "--json").document
        (entry,) = document["images"]
        (explanation,) = entry["explanations"]
        assert entry["image"] == str(image)
        assert explanation["size"] == [45, 33]
        assert explanation["class_name"] == NAMES[explanation["class_index"]]
        assert explanation["method"] == "refinecam"
        assert Path(explanation["overlay"]).is_file()
        assert document["failed"] == []

    def test_the_overlay_is_the_one_of_the_api(self, run, bundle: Path, image: Path) -> None:
        arguments = ["--method", "layercam", "--layers", "stage2", "--colormap", "jet", "--opacity", "0.9"]
        document = run("explain", bundle, image, *arguments, "--json").document
        (expected,) = camrt.Explainer(bundle).explain_images([image], method="layercam", target_layers=["stage2"])
        (explanation,) = document["images"][0]["explanations"]
        assert explanation["layers"] == {"stage2": [16, 20]}
        with Image.open(explanation["overlay"]) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(expected.overlay(image, "jet", 0.9)))

    def test_every_method(self, run, model: Path, image: Path, tmp_path: Path) -> None:
        how = tmp_path / "preprocessing.json"
        how.write_text(json.dumps(Preprocessing((HEIGHT, WIDTH), "letterbox").to_dict()))
        second = tmp_path / "second.onnx"
        exported = run("export", model, "-o", second, "--preprocess", how, "--shapley", "--json").document
        assert all(layer["hessian_vectors"] for layer in exported["manifest"]["target_layers"])
        explainer = camrt.Explainer(second)
        shown = run("explain", "--help").out
        for method in available_methods(explainer.manifest, explainer.manifest.layer_names[:1]):
            assert method in shown
            arguments = ["--method", method, "--out", tmp_path / method]
            arguments += ["--channels", "5"] if CAM_METHODS[method].expensive else []
            document = run("explain", second, image, *arguments, "--json").document
            (explanation,) = document["images"][0]["explanations"]
            (expected,) = explainer.explain_images([image], method=method, perturbation=Perturbation(5))
            assert (explanation["method"], explanation["degenerate"]) == (method, list(expected.degenerate))
            with Image.open(explanation["overlay"]) as picture:
                assert np.array_equal(np.asarray(picture), np.asarray(expected.overlay(image)))

    def test_classes_by_index_rank_and_name(self, run, bundle: Path, image: Path) -> None:
        arguments = ["--class", "1", "--class", "-1", "--class", NAMES[2]]
        (entry,) = run("explain", bundle, image, *arguments, "--json").document["images"]
        top = run("explain", bundle, image, "--top-k", CLASSES, "--json").document["images"][0]["explanations"]
        chosen = [explanation["class_index"] for explanation in entry["explanations"]]
        assert chosen == [1, top[0]["class_index"], 2]
        assert sorted(explanation["class_index"] for explanation in top) == list(range(CLASSES))
        probabilities = [explanation["probability"] for explanation in top]
        assert probabilities == sorted(probabilities, reverse=True)
        assert len({explanation["overlay"] for explanation in top}) == CLASSES

    def test_a_folder_and_names_that_collide(self, run, bundle: Path, image: Path, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for name in ("photo.png", "PHOTO2.WEBP", "photo.jpeg"):
            Image.open(image).save(tmp_path / "in" / name)
        (tmp_path / "in" / "notes.txt").write_text("not an image")
        document = run("explain", bundle, "in", image, "--json").document
        overlays = {entry["explanations"][0]["overlay"] for entry in document["images"]}
        assert len(document["images"]) == len(overlays) == 4
        assert all(Path(overlay).is_file() for overlay in overlays)

    def test_a_bad_image_among_good_ones(self, run, bundle: Path, image: Path, tmp_path: Path) -> None:
        (tmp_path / "bad.png").write_text("no")
        (tmp_path / "huge.png").write_bytes(png_header(20000, 20000))
        (tmp_path / "dot.png").write_bytes(b"")
        Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
        result = run("explain", bundle, "bad.png", image, "huge.png", "dot.png", "missing.png", "--json")
        assert result.code == 2
        assert [entry["image"] for entry in result.document["images"]] == [str(image)]
        failed = ["bad.png", "huge.png", "dot.png", "missing.png"]
        assert [entry["image"] for entry in result.document["failed"]] == failed
        assert result.err.count("error: ") == 4
        assert all(name in result.err for name in failed)
        assert "400000000 pixels" in result.err

    def test_output_size_input_shows_what_the_model_sees(self, run, bundle: Path, image: Path) -> None:
        result = run("explain", bundle, image, "--output-size", "input", "--json")
        (explanation,) = result.document["images"][0]["explanations"]
        assert explanation["size"] == [HEIGHT, WIDTH]
        with Image.open(explanation["overlay"]) as picture:
            assert picture.size == (WIDTH, HEIGHT)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "No image to explain"),
            (["empty"], "The folder empty has no image"),
            (["photo.jpg", "other.onnx"], "other.onnx is no image. Give one bundle, first"),
            (["model.onnx.bundle", "photo.jpg"], "model.onnx.bundle is no image. Give one bundle, first"),
            (["photo.jpg", "--class", "Katze"], "Katze"),
            (["photo.jpg", "--class", "4"], "4"),
            (["photo.jpg", "--top-k", "5"], "4 classes"),
            (["photo.jpg", "--class", "1", "--top-k", "2"], "Give one of them"),
            (["photo.jpg", "--method", "magic"], "magic"),
            (["photo.jpg", "--base", "magic"], "magic"),
            (["photo.jpg", "--method", "shapleycam"], "camrt export --shapley"),
            (["photo.jpg", "--base", "cam"], "cam needs a layer"),
            (["photo.jpg", "--fusion", "magic"], "magic"),
            (["photo.jpg", "--layers", "stage1"], "it has stage3, stage2"),
            (["photo.jpg", "--colormap", "rainbow"], "turbo, jet"),
            (["photo.jpg", "--output-size", "huge"], "original or input"),
            (["photo.jpg", "--backend", "abacus"], "abacus"),
            (["photo.jpg", "--provider", "abacus"], "abacus"),
            (["photo.jpg", "--out", "photo.jpg"], "Cannot make the folder photo.jpg"),
            (["photo.jpg", "--model", "shapes"], "Without --server there is no use for --model"),
            (["photo.jpg", "--tls"], "no use for --tls"),
            (["photo.jpg", "--tls-ca", "ca.pem", "--tls-key", "key.pem"], "no use for --tls-ca, --tls-key"),
            (["photo.jpg", "--tls-cert", "cert.pem"], "no use for --tls-cert"),
            (["photo.jpg", "--token-file", "missing"], "no use for --token-file"),
            (["photo.jpg", "--timeout", "60"], "no use for --timeout"),
            (["photo.jpg", "--channels", "5"], "'gradcam++' does not try channels"),
            (["photo.jpg", "--channels", "5", "--method", "layercam"], "'layercam' does not try channels"),
            (["photo.jpg", "--method", "gradcam", "--base", "layercam"], "no use for --base"),
            (["photo.jpg", "--method", "gradcam", "--base", "layercam", "--fusion", "mean"], "--base, --fusion"),
        ],
    )
    def test_errors(self, run, bundle: Path, image: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
        (tmp_path / "empty").mkdir()
        assert message in error_of(run("explain", bundle, *arguments))

    @pytest.mark.parametrize("command", ["explain", "evaluate"])
    def test_an_empty_path_is_not_the_current_folder(self, run, bundle: Path, image: Path, command: str) -> None:
        for arguments in ([""], [bundle, ""]):
            result = run(command, *arguments, "--json")
            assert (result.code, result.out) == (2, "")
            assert "The path is empty" in result.err
        assert not Path("explanations").exists()
        assert run("explain", bundle, ".").code == 0

    def test_an_overlay_never_replaces_what_is_explained(self, run, bundle: Path, image: Path) -> None:
        assert run("explain", bundle, image, "--out", ".").code == 0
        overlay = image.with_name("photo.overlay.png")
        before = overlay.read_bytes()
        message = error_of(run("explain", bundle, image, overlay, "--out", ".", "--opacity", "0.1"))
        assert "The overlay photo.overlay.png would replace" in message
        assert "Give another --out" in message
        assert overlay.read_bytes() == before
        assert run("explain", bundle, image, overlay, "--out", "elsewhere").code == 0
        assert run("explain", bundle, image, "--out", ".", "--opacity", "0.1").code == 0
        assert overlay.read_bytes() != before

    @pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
    @pytest.mark.parametrize("kept", ["photo.jpg", "bundle.onnx"])
    def test_an_overlay_does_not_follow_a_link_to_an_input(
        self, run, bundle: Path, image: Path, tmp_path: Path, link: str, kept: str
    ) -> None:
        (tmp_path / "bundle.onnx").write_bytes(bundle.read_bytes())
        (tmp_path / "out").mkdir()
        getattr(tmp_path / "out" / "photo.overlay.png", link)(tmp_path / kept)
        before = (tmp_path / kept).read_bytes()
        assert kept in error_of(run("explain", "bundle.onnx", image, "--out", "out"))
        assert (tmp_path / kept).read_bytes() == before

    def test_a_bundle_without_preprocessing_takes_a_preset(self, run, model: Path, image: Path, tmp_path: Path) -> None:
        plain = camrt.export(model, tmp_path / "plain.onnx", ["stage3"]).path
        assert "preprocess" in error_of(run("explain", plain, image))
        assert run("explain", plain, image, "--preprocess", "unit").code == 0

    def test_a_model_that_is_no_bundle(self, run, model: Path, image: Path) -> None:
        assert "camrt export" in error_of(run("explain", model, image))


class TestCheck:
    def test_a_right_bundle(self, run, bundle: Path, model: Path) -> None:
        result = run("check", bundle, "--against", model)
        assert result.code == 0
        assert "FAILED" not in result.out
        assert "not checked" not in result.out
        document = run("check", bundle, "--json").document
        assert document["passed"] is True
        assert [row["name"] for row in document["rows"] if row["passed"] is None] == ["original outputs"]

    def test_a_wrong_bundle_exits_with_1(self, run, bundle: Path, tmp_path: Path) -> None:
        other = write_small_network(tmp_path / "other.onnx", seed=1)
        result = run("check", bundle, "--against", other)
        assert result.code == 1
        assert "FAILED  original outputs" in result.out

    def test_files_that_are_no_bundles(self, run, model: Path, tmp_path: Path) -> None:
        (tmp_path / "text.onnx").write_text("This is not a model.")
        assert "text.onnx" in error_of(run("check", "text.onnx"))
        assert "no manifest" in error_of(run("check", model))


class TestDoctor:
    def test_json(self, run) -> None:
        document = run("doctor", "--json").document
        assert document["versions"]["numpy"] == np.__version__
        assert {row["name"] for row in document["backends"]} == {"reference", "native", "cuda"}
        assert next(row for row in document["providers"] if row["name"] == "cpu")["available"] is True
        for row in document["backends"] + document["providers"]:
            assert row["detail"]

    def test_text_is_not_wrapped_when_it_is_no_terminal(self, run) -> None:
        document = run("doctor", "--json").document
        lines = run("doctor").out.splitlines()
        for row in document["backends"] + document["providers"]:
            assert any(line.split()[:1] == [row["name"]] and row["detail"] in line for line in lines)

    def test_a_broken_default_exits_with_1(self, run, monkeypatch: pytest.MonkeyPatch) -> None:
        from camrt.runtime.providers import ProviderStatus

        missing = (ProviderStatus("cpu", False, "not here"),)
        monkeypatch.setattr("camrt.runtime.available_providers", lambda: missing)
        result = run("doctor")
        assert result.code == 1
        assert "not here" in result.out


def test_a_terminal_gets_the_same_facts_in_colour(bundle: Path, image: Path) -> None:
    """Through a pseudo-terminal of 60 columns, where a progress bar runs on stderr and long paths are not cut."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "60", "TERM": "xterm-256color"}
    command = [
        sys.executable,
        "-m",
        "camrt",
        "explain",
        str(bundle),
        str(image),
        str(image),
        "--out",
        str(image.parent),
    ]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=follower, env=environment, cwd=image.parent, check=False, text=True
    )
    os.close(follower)
    progress = os.read(leader, 100_000).decode()
    os.close(leader)
    assert done.returncode == 0
    assert "explaining" in progress
    assert f"overlay      {image.parent / 'photo.overlay.png'}\n" in done.stdout
    assert f"overlay      {image.parent / 'photo-2.overlay.png'}\n" in done.stdout
    assert "\x1b" not in done.stdout
