"""What the table says of outputs that ONNX Runtime's fusions, or the bundle, change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import camrt
from camrt.evaluation import output_check
from camrt.runtime import open_session
from tests.coverage.check import Result, compare_logits
from tests.coverage.report import status
from tests.exporter.graphs import small_classifier


@pytest.fixture
def bundle(tmp_path: Path) -> camrt.Bundle:
    return camrt.export(small_classifier(tmp_path / "source.onnx"), tmp_path / "bundle.onnx")


def test_the_status_says_at_which_level_outputs_are_the_same() -> None:
    assert status(Result(outputs=9e-7)) == "ok"
    fused = status(Result(outputs=4e-7, level="extended", fused=1.2e-6))
    assert fused == "ok: outputs 4e-07 at level extended, 1.2e-06 at the default level"
    assert status(Result(outputs=1.2e-6, fused=1.2e-6)) == "outputs 1.2e-06"
    assert status(Result(outputs=0, level="extended", fused=1.2e-6, gradients=1e-3)) == "gradients 1.0e-03"
    assert status(Result(outputs=float("nan"))) == "outputs nan"


def logits_off_by(error: float, bundle: camrt.Bundle) -> None:
    """Multiplies the logits that the bundle returns, and nothing else of it."""
    proto = onnx.load(bundle.path)
    node = next(node for node in proto.graph.node if "logits" in node.output)
    for other in proto.graph.node:
        other.input[:] = ["logits/right" if name == "logits" else name for name in other.input]
    node.output[0] = "logits/right"
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1 + error, np.float32), "factor"))
    proto.graph.node.append(helper.make_node("Mul", ["logits/right", "factor"], ["logits"]))
    onnx.save(proto, bundle.path)


@pytest.mark.parametrize("error", [0.0, 2e-6, 5e-5])
def test_a_bundle_that_differs_fails_at_every_level(error: float, bundle: camrt.Bundle) -> None:
    if error:
        logits_off_by(error, bundle)
    images = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    session = open_session(bundle.path, threads=1)
    found = compare_logits(bundle.path.with_name("source.onnx"), bundle, session, images)
    assert found.level == "all"
    assert found.value == pytest.approx(error, rel=0.2, abs=1e-7)
    assert (status(Result(outputs=found.value, level=found.level)) == "ok") is (error == 0)


def test_logits_that_only_fusions_change_are_ok(bundle: camrt.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    session = open_session(bundle.path, threads=1)
    right = session.predict
    monkeypatch.setattr(session, "predict", lambda inputs: right(inputs) * np.float32(1 + 2e-6))
    found = compare_logits(bundle.path.with_name("source.onnx"), bundle, session, images)
    assert (found.level, found.passed) == ("extended", True)
    assert found.by_default == pytest.approx(2e-6, rel=0.2)
    monkeypatch.setattr(output_check, "FUSION_TOLERANCE", 1e-6)
    assert not compare_logits(bundle.path.with_name("source.onnx"), bundle, session, images).passed
