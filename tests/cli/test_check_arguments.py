"""What ``camrt check`` refuses, and that its JSON is JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import camrt
from camrt.cli import main
from camrt.cli._console import print_json
from tests.exporter.graphs import small_classifier


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = small_classifier(tmp_path_factory.mktemp("models") / "source.onnx")
    return camrt.export(source, source.with_name("bundle.onnx")).path


def exit_code(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


@pytest.mark.parametrize("compared", [False, True], ids=["alone", "against"])
def test_a_negative_seed_is_one_message(compared: bool, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    against = ["--against", bundle] if compared else []
    assert exit_code("check", bundle, "--seed", "-1", *against) == 2
    error = capsys.readouterr().err
    assert "--seed" in error
    assert "Traceback" not in error


def refused(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def test_a_bundle_with_nan_gives_strict_json(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proto = onnx.load(bundle)
    gradients = camrt.Bundle.open(bundle).manifest.target_layers[0].gradients
    for node in proto.graph.node:
        node.output[:] = ["right" if name == gradients else name for name in node.output]
    proto.graph.initializer.append(numpy_helper.from_array(np.full(1, np.nan, np.float32), "nan"))
    proto.graph.node.append(helper.make_node("Add", ["right", "nan"], [gradients]))
    onnx.save(proto, tmp_path / "nan.onnx")
    assert exit_code("check", tmp_path / "nan.onnx", "--json") == 1
    document = json.loads(capsys.readouterr().out, parse_constant=refused)
    rows = {row["name"]: row for row in document["rows"]}
    assert rows["activations and gradients finite"]["passed"] is False
    assert rows["several images in one run"]["value"] is None


def test_print_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("nan"), 1.5, (float("-inf"),)], "b": {"c": float("inf"), "d": "NaN"}, "e": None})
    document = json.loads(capsys.readouterr().out, parse_constant=refused)
    assert document == {"a": [None, 1.5, [None]], "b": {"c": None, "d": "NaN"}, "e": None}


def test_print_json_escapes_names_that_are_no_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"image": "bad\udcff.jpg"})
    out = capsys.readouterr().out
    assert "bad\\udcff.jpg" in out
    assert json.loads(out) == {"image": "bad\udcff.jpg"}
