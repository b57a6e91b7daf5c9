"""Arguments of ``export`` that are none: each is refused by its name, and no bundle is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import camrt
from camrt.errors import CamrtError, InvalidInputError, LayerNotFoundError
from tests.exporter.graphs import edit_model, small_classifier

NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_classifier(tmp_path / "model.onnx")


@pytest.fixture
def sizeless(tmp_path: Path) -> Path:
    return small_classifier(tmp_path / "model.onnx", size=("H", "W"))


def refused(source: Path, **arguments: Any) -> CamrtError:
    with pytest.raises(CamrtError) as caught:
        camrt.export(source, source.with_name("bundle.onnx"), **arguments)
    assert not source.with_name("bundle.onnx").exists()
    assert caught.value.next_step
    return caught.value


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([1, 2, 3, 4, 5], "class name 1 is no text"),
        (["a", None, "c", "d", "e"], "class name None is no text"),
        (["a", "b", "c", "d", "\ud800"], "is no text"),
        ([["a"], "b", "c", "d", "e"], "is no text"),
        (dict.fromkeys(NAMES), "class_names is a dict"),
        ("abcde", "class_names is a str"),
        (iter(NAMES), "class_names is a list_iterator"),
        (5, "class_names is a int"),
        (["a", "b"], "2 class names for a model of 5 classes"),
    ],
)
def test_class_names(names: object, message: str, source: Path) -> None:
    error = refused(source, class_names=names)
    assert isinstance(error, InvalidInputError)
    assert message in error.message


@pytest.mark.parametrize("names", [NAMES, tuple(NAMES), np.array(NAMES), ["", "", "ä", "🐈", "a\nb"]])
def test_class_names_that_a_bundle_keeps(names: Any, source: Path) -> None:
    bundle = camrt.export(source, source.with_name("bundle.onnx"), class_names=names)
    assert camrt.Bundle.open(bundle.path).manifest.class_names == tuple(names)


@pytest.mark.parametrize("size", [16, "16", (16,), (16, 16, 16), (0, 16), (True, True), (16.0, 16.0)])
def test_image_sizes(size: object, sizeless: Path) -> None:
    error = refused(sizeless, image_size=size)
    assert isinstance(error, InvalidInputError)
    assert "image_size is" in error.message


@pytest.mark.parametrize("fields", [{}, {"preprocess": {"size": [16, 24]}}])
def test_a_size_may_be_a_list(fields: Mapping[str, Any], sizeless: Path) -> None:
    bundle = camrt.export(sizeless, sizeless.with_name("bundle.onnx"), image_size=[16, 24], **fields)
    assert bundle.manifest.input_shape == (3, 16, 24)


def test_preprocessing_that_is_none_of_its_forms(source: Path) -> None:
    assert "preprocess is 3" in refused(source, preprocess=3).message


@pytest.mark.parametrize("layers", [[""], "", [], "auto*", ["auto"]])
def test_layers_that_match_nothing(layers: object, source: Path) -> None:
    error = refused(source, target_layers=layers)
    assert isinstance(error, LayerNotFoundError)
    assert "Candidates: " in error.next_step


def test_an_empty_name_is_not_that_of_an_unnamed_node(source: Path) -> None:
    def without_names(proto: onnx.ModelProto) -> None:
        for node in proto.graph.node:
            node.name = ""

    error = refused(edit_model(source, without_names), target_layers=[""])
    assert isinstance(error, LayerNotFoundError)
    assert error.message == "No layer matches ''."


@pytest.mark.parametrize("layers", [[None], 3, None, [3]])
def test_layers_that_are_no_names(layers: object, source: Path) -> None:
    error = refused(source, target_layers=layers)
    assert isinstance(error, InvalidInputError)
    assert "target_layers is" in error.message


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([np.zeros((3, 16, 16)), np.zeros((3, 15, 16))], "no array of numbers"),
        (np.full((2, 3, 16, 16), "x"), "no array of numbers"),
        ({"images": 3}, "no array of numbers"),
        (np.full((2, 3, 16, 16), np.nan), "not finite"),
        (np.full((2, 3, 16, 16), np.inf), "not finite"),
        (np.zeros((2, 16, 16, 3)), "have the shape (2, 16, 16, 3)"),
    ],
)
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_calibration_inputs(calibration: object, message: str, precision: str, source: Path) -> None:
    error = refused(source, calibration=calibration, precision=precision)
    assert isinstance(error, InvalidInputError)
    assert message in error.message


@pytest.mark.parametrize("layers", [("r4", "r2"), np.array(["r2", "r4"]), iter(["r4", "r2"])])
def test_layers_in_any_collection(layers: Any, source: Path) -> None:
    assert camrt.export(source, source.with_name("bundle.onnx"), layers).manifest.layer_names == ("r4", "r2")
