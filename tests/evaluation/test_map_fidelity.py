"""The comparison of a bundle's maps with those of the fp32 bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import camrt
from camrt.bundle import Bundle
from camrt.errors import ImageError, InvalidInputError, MethodNotFoundError
from camrt.evaluation import check_bundle, map_fidelity
from camrt.evaluation.map_fidelity import DEFAULT_METHODS, FUSED, FidelityRow
from camrt.preprocess import Preprocessing, folder_inputs
from tests.small_network import HEIGHT, WIDTH, write_small_network

LAYERS = ["stage3", "stage2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fidelity")


def exported(folder: Path, name: str, seed: int = 0, **arguments: object) -> Bundle:
    source = write_small_network(folder / f"{name}.source.onnx", seed)
    arguments = {"preprocess": Preprocessing((HEIGHT, WIDTH)), "target_layers": LAYERS, **arguments}
    return camrt.export(source, folder / f"{name}.onnx", **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plain(folder: Path) -> Bundle:
    return exported(folder, "plain")


@pytest.fixture(scope="module")
def half(folder: Path) -> Bundle:
    return exported(folder, "half", precision="fp16")


def with_noise(bundle: Bundle, path: Path, amount: float) -> Path:
    """The bundle with noise in its first weights."""
    model = onnx.load(bundle.path)
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.name == "w1":
            weights = numpy_helper.to_array(tensor)
            noise = np.random.default_rng(0).standard_normal(weights.shape).astype(np.float32) * weights.std()
            model.graph.initializer[index].CopyFrom(numpy_helper.from_array(weights + amount * noise, "w1"))
    onnx.save(model, path)
    return path


def test_a_bundle_agrees_with_itself(plain: Bundle) -> None:
    report = map_fidelity(plain.path, plain.path, samples=3)
    assert [(row.method, row.layer) for row in report.rows] == [
        (method, layer) for method in DEFAULT_METHODS for layer in (*plain.manifest.layer_names, FUSED)
    ]
    assert [row.lowest for row in report.rows] == pytest.approx([1.0] * len(report.rows))
    assert (report.top1_agreement, report.logit_error, report.images) == (1.0, 0.0, 3)
    assert report.passed


def test_noise_in_the_weights_shows(plain: Bundle, folder: Path) -> None:
    slight, strong = (
        map_fidelity(with_noise(plain, folder / f"noise{amount}.onnx", amount), plain.path, samples=4)
        for amount in (1e-3, 1.0)
    )
    assert slight.passed
    assert not strong.passed
    for one, other in zip(slight.rows, strong.rows, strict=True):
        assert 1 >= one.mean > other.mean >= other.lowest
    assert 0 < slight.logit_error < strong.logit_error


def test_fp16_passes_with_its_own_threshold(plain: Bundle, half: Bundle) -> None:
    report = map_fidelity(half.path, plain.path, samples=4)
    assert (report.precision, report.threshold) == ("fp16", 0.99)
    assert report.passed
    assert 0 < report.logit_error < 0.01


def test_the_verdict_is_about_the_fused_maps_of_the_default_method(plain: Bundle) -> None:
    report = map_fidelity(plain.path, plain.path, samples=2, methods=["gradcam++"])
    low = FidelityRow("gradcam", FUSED, 0.1, 0.0)
    assert replace(report, rows=(*report.rows, low)).passed
    assert not replace(report, rows=(low,)).passed
    assert not replace(report, rows=(*report.rows, replace(low, method="gradcam++"))).passed


def test_pictures_of_a_folder(plain: Bundle, half: Bundle, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "deeper").mkdir()
    for number in range(5):
        picture = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        picture.save(tmp_path / ("deeper" if number % 2 else ".") / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    report = map_fidelity(half.path, plain.path, images=tmp_path, samples=10, methods=["layercam"])
    assert (report.images, report.source) == (5, str(tmp_path))
    assert map_fidelity(half.path, plain.path, images=tmp_path, samples=2, methods=["layercam"]).images == 2
    (tmp_path / "broken.png").write_bytes(b"no png")
    with pytest.raises(ImageError):
        map_fidelity(half.path, plain.path, images=tmp_path, samples=10)


def test_bundles_that_do_not_belong_together(plain: Bundle, half: Bundle, folder: Path, tmp_path: Path) -> None:
    other = exported(folder, "other", target_layers=["stage3"])
    with pytest.raises(InvalidInputError, match="layer_names"):
        map_fidelity(other.path, plain.path)
    with pytest.raises(InvalidInputError, match="no reference"):
        map_fidelity(plain.path, half.path)
    with pytest.raises(InvalidInputError, match="no image"):
        map_fidelity(half.path, plain.path, images=tmp_path)


def test_a_report_is_json(plain: Bundle, half: Bundle) -> None:
    report = map_fidelity(half.path, plain.path, samples=2, methods=["gradcam"])
    document = json.loads(json.dumps(report.to_dict()))
    assert document["rows"][-1]["layer"] == FUSED
    assert document["passed"] is True


def test_the_check_of_a_rounded_bundle_leaves_out_what_rounding_hides(half: Bundle) -> None:
    report = check_bundle(half.path, samples=3)
    assert report.passed
    rows = {row.name: row for row in report.rows}
    assert rows["original outputs"].passed is None
    assert rows["gradients of stage2"].passed is None
    assert rows["gradients of stage3 differ"].passed is None  # linear from there on
    assert rows["saliency map differs"].passed is True


def test_methods_that_cannot_be_compared_are_no_pass(plain: Bundle) -> None:
    def compare(methods: object) -> None:
        map_fidelity(plain.path, plain.path, samples=1, methods=methods)  # type: ignore[arg-type]

    with pytest.raises(MethodNotFoundError, match=r"nonsense.*Choose one of"):
        compare(["nonsense"])
    with pytest.raises(MethodNotFoundError, match="nonsense"):
        compare(["gradcam", "nonsense"])
    with pytest.raises(InvalidInputError, match=r"\['gradcam'\]"):
        compare("gradcam")
    for unusable in ([], ["ablationcam"], ["shapleycam"]):  # expensive; no second derivatives
        with pytest.raises(InvalidInputError, match=r"None of the methods .* Choose from .*gradcam"):
            compare(unusable)


def test_methods_that_a_bundle_lacks_are_left_out(plain: Bundle) -> None:
    report = map_fidelity(plain.path, plain.path, samples=1, methods=["shapleycam", "layercam"])
    assert {row.method for row in report.rows} == {"layercam"}


@pytest.mark.parametrize(("arguments", "message"), [({"samples": 0}, "samples is 0"), ({"seed": -1}, "seed is -1")])
def test_numbers_that_cannot_be(arguments: dict[str, int], message: str, plain: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=message):
        map_fidelity(plain.path, plain.path, **arguments)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=message):
        map_fidelity(plain.path, plain.path, images=tmp_path, **arguments)  # type: ignore[arg-type]


def test_a_report_that_compared_nothing_did_not_pass(plain: Bundle) -> None:
    report = map_fidelity(plain.path, plain.path, samples=1, methods=["gradcam"])
    assert report.passed
    assert not replace(report, rows=()).passed
    assert not replace(report, rows=report.rows[:-1]).passed  # no fused maps


def test_numbers_that_are_not_finite_are_null(plain: Bundle) -> None:
    report = map_fidelity(plain.path, plain.path, samples=1, methods=["gradcam"])
    broken = replace(report, logit_error=float("nan"), rows=(FidelityRow("gradcam", FUSED, float("inf"), 0.5),))
    document = json.loads(json.dumps(broken.to_dict(), allow_nan=False))
    assert document["logit_error"] is None
    assert document["rows"] == [{"method": "gradcam", "layer": FUSED, "mean": None, "lowest": 0.5}]


def picture(path: Path, width: int = 50, height: int = 40) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 99, np.uint8)).save(path)


def test_folders_and_hidden_files_are_no_pictures(plain: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / ".data"  # the folder that was named may be hidden
    folder.mkdir()
    picture(folder / "one.png")
    picture(folder / ".thumbnails" / "two.png")
    (folder / "._one.png").write_bytes(b"what macOS leaves behind")
    (folder / "folder.png").mkdir()
    picture(folder / "folder.png" / "three.png")
    assert len(folder_inputs(folder, plain.manifest.preprocessing)) == 2
    with pytest.raises(InvalidInputError, match="no image"):
        folder_inputs(folder / ".thumbnails" / "two.png", plain.manifest.preprocessing)


@pytest.mark.parametrize("wrong", ["broken", "elongated"])
def test_a_picture_that_cannot_be_used_is_named(wrong: str, tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    if wrong == "broken":
        (tmp_path / "broken.png").write_bytes(b"no png")
    else:
        picture(tmp_path / "elongated.png", 30_000, 2)
    with pytest.raises(ImageError, match=rf"{wrong}\.png.*take the file out of the folder") as caught:
        folder_inputs(tmp_path, Preprocessing((224, 224), "crop", resize_to=256).to_dict())
    assert str(caught.value).count(f"{wrong}.png") == 1
