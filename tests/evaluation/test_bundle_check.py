from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import camrt
from camrt.errors import BundleError, InvalidModelError
from camrt.evaluation import CheckReport, CheckRow, check_bundle, finite_differences
from camrt.evaluation.second_order_check import check_second_order
from camrt.preprocess import random_inputs
from camrt.runtime import open_session
from tests.exporter.graphs import small_classifier
from tests.exporter.precision_models import embedded_source
from tests.small_network import write_small_network


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_network(tmp_path_factory.mktemp("models") / "small.onnx")


@pytest.fixture(scope="module")
def bundle(model: Path) -> Path:
    return camrt.export(model, model.with_name("bundle.onnx"), ["stage1", "pool1", "stage2", "stage3"]).path


def row(report: CheckReport, name: str) -> CheckRow:
    return next(row for row in report.rows if row.name == name)


def edited(bundle: Path, path: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    proto = onnx.load(bundle)
    edit(proto)
    onnx.save(proto, path)
    return path


def insert_after(name: str, op: str, *operands: np.ndarray, **attributes: object) -> Callable[[onnx.ModelProto], None]:
    """An edit that puts one more node between a graph output and what computes it."""

    def edit(proto: onnx.ModelProto) -> None:
        graph = proto.graph
        for node in graph.node:
            node.output[:] = [f"{name}/right" if output == name else output for output in node.output]
            node.input[:] = [f"{name}/right" if value == name else value for value in node.input]
        operand_names = [f"{name}/operand{i}" for i in range(len(operands))]
        graph.initializer.extend(numpy_helper.from_array(a, n) for a, n in zip(operands, operand_names, strict=True))
        graph.node.append(helper.make_node(op, [f"{name}/right", *operand_names], [name], **attributes))

    return edit


def test_a_right_bundle_passes(bundle: Path, model: Path) -> None:
    report = check_bundle(bundle, against=model)
    assert report.passed, report
    assert row(report, "original outputs").value <= 1e-6
    for layer in ("stage1", "pool1", "stage2", "stage3"):
        assert row(report, f"gradients of {layer}").passed is True
        assert row(report, f"gradients of {layer} differ").passed is True
        assert row(report, f"map of {layer} differs").passed is True
    assert row(report, "saliency map differs").passed is True
    assert json.loads(json.dumps(report.to_dict()))["passed"] is True


def test_a_linear_end_is_no_constant_explanation(bundle: Path) -> None:
    linear = row(check_bundle(bundle), "gradients of stage3 differ")
    assert linear.passed is True
    assert "linear from here on" in linear.detail


def test_the_same_seed_gives_the_same_report(bundle: Path) -> None:
    assert check_bundle(bundle, seed=3) == check_bundle(bundle, seed=3)


@pytest.mark.parametrize("layer", ["stage1", "pool1", "stage2", "stage3"])
def test_scaled_gradients_fail(layer: str, bundle: Path, tmp_path: Path) -> None:
    edit = insert_after(f"gradients/{layer}", "Mul", np.array(1.1, np.float32))
    report = check_bundle(edited(bundle, tmp_path / "b.onnx", edit))
    assert not report.passed
    assert row(report, f"gradients of {layer}").passed is False
    others = {"stage1", "pool1", "stage2", "stage3"} - {layer}
    assert all(row(report, f"gradients of {other}").passed for other in others)


@pytest.mark.parametrize(("uncertainty", "verdict"), [(0.02, False), (0.03, None)])
def test_differences_that_are_no_clearer_than_the_error_say_nothing(
    uncertainty: float, verdict: bool | None, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = finite_differences._Agreement(0.025, uncertainty, "some directions")
    monkeypatch.setattr(finite_differences, "_compare_gradients", lambda *_: found)
    gradients = row(check_bundle(bundle), "gradients of stage1")
    assert gradients.passed is verdict
    assert "0.03" in gradients.detail if verdict is None else gradients.value == 0.025


def test_mirrored_gradients_fail(bundle: Path, tmp_path: Path) -> None:
    ends = (np.array([value], np.int64) for value in (-1, -(2**31), 3, -1))
    report = check_bundle(edited(bundle, tmp_path / "b.onnx", insert_after("gradients/stage2", "Slice", *ends)))
    assert row(report, "gradients of stage2").passed is False


def test_gradients_that_ignore_the_image_fail(bundle: Path, tmp_path: Path) -> None:
    nothing = edited(bundle, tmp_path / "0.onnx", insert_after("gradients/stage2", "Mul", np.array(0, np.float32)))
    weights = np.random.default_rng(0).standard_normal((1, 16, 16, 20)).astype(np.float32)

    def add_weights(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.append(numpy_helper.from_array(weights, "constant"))
        proto.graph.node[-1].output[0] = "zeros"
        proto.graph.node.append(helper.make_node("Add", ["zeros", "constant"], ["gradients/stage2"]))

    report = check_bundle(edited(nothing, tmp_path / "b.onnx", add_weights))
    assert row(report, "gradients of stage2").passed is False
    assert row(report, "gradients of stage2 differ").passed is False
    assert row(report, "gradients of stage1 differ").passed is True


@pytest.fixture(scope="module")
def second_order(model: Path) -> Path:
    layers = ["stage1", "pool1", "stage2", "stage3"]
    return camrt.export(model, model.with_name("second.onnx"), layers, second_order=True).path


def test_second_derivatives(second_order: Path, bundle: Path) -> None:
    report = check_bundle(second_order)
    assert report.passed, report
    for layer in ("stage1", "pool1", "stage2", "stage3"):
        assert row(report, f"target gradients of {layer}").passed is True
        assert row(report, f"Hessian products of {layer}").passed is True
    assert not any("Hessian" in one.name for one in check_bundle(bundle).rows)


def test_second_derivatives_of_independent_classes(tmp_path: Path) -> None:
    source = small_classifier(tmp_path / "sigmoid.onnx", head="Sigmoid")
    report = check_bundle(camrt.export(source, tmp_path / "bundle.onnx", second_order=True).path)
    assert report.passed, report
    assert row(report, "target gradients of r2").passed is row(report, "Hessian products of r2").passed is True


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    source, arguments = embedded_source(folder)
    return camrt.export(source, folder / "bundle.onnx", second_order=True, **arguments).path


@pytest.mark.parametrize(("damage", "verdict"), [(1.0, True), (1.1, None)])
def test_second_derivatives_behind_many_kinks(
    damage: float, verdict: bool | None, shapes: Path, tmp_path: Path
) -> None:
    """ReLUs switch at every step, so that only the formula for linear pieces tells."""
    edit = insert_after("hessian_vectors/stage2", "Mul", np.array(damage, np.float32))
    session = open_session(edited(shapes, tmp_path / "b.onnx", edit), threads=1)
    images = random_inputs(session.manifest.input_shape, session.manifest.preprocessing, 2, np.random.default_rng(0))
    rows = check_second_order(session, images, 3, np.random.default_rng(1))
    assert {one.name: one.passed for one in rows}["Hessian products of stage2"] is verdict
    assert {one.name: one.passed for one in rows}["Hessian products of stage4"] is True


@pytest.mark.parametrize("layer", ["stage1", "stage3"])
@pytest.mark.parametrize("damage", [1.1, 0.0, -1.0])
def test_wrong_hessian_products_fail(layer: str, damage: float, second_order: Path, tmp_path: Path) -> None:
    edit = insert_after(f"hessian_vectors/{layer}", "Mul", np.array(damage, np.float32))
    report = check_bundle(edited(second_order, tmp_path / "b.onnx", edit))
    assert [one.name for one in report.rows if one.passed is False] == [f"Hessian products of {layer}"]


def test_wrong_target_gradients_fail(second_order: Path, tmp_path: Path) -> None:
    edit = insert_after("target_gradients/stage2", "Mul", np.array(1.1, np.float32))
    report = check_bundle(edited(second_order, tmp_path / "b.onnx", edit))
    assert row(report, "target gradients of stage2").passed is False
    assert row(report, "target gradients of stage1").passed is True


@pytest.mark.parametrize("fusion", ["product", "mean"])
def test_the_map_in_the_graph(fusion: str, model: Path, tmp_path: Path) -> None:
    made = camrt.export(model, tmp_path / "map.onnx", emit="map", base_method="layercam", fusion=fusion).path
    found = row(check_bundle(made), "map in the graph")
    assert (found.passed, found.value) == (True, pytest.approx(0, abs=1e-5))
    assert f"layercam, {fusion}, normalize_twice" in found.detail
    edit = insert_after("saliency_map", "Mul", np.array(0.999, np.float32))
    report = check_bundle(edited(made, tmp_path / "darker.onnx", edit))
    assert [one.name for one in report.rows if one.passed is False] == ["map in the graph"]
    assert row(report, "map in the graph").value == pytest.approx(1e-3, rel=0.1)
    flags = check_bundle(edited(made, tmp_path / "flags.onnx", insert_after("saliency_map_degenerate", "Not")))
    assert row(flags, "map in the graph").passed is False
    assert "other layers are degenerate" in row(flags, "map in the graph").detail


def test_without_a_map_in_the_graph_nothing_is_said(bundle: Path) -> None:
    assert not any(one.name == "map in the graph" for one in check_bundle(bundle).rows)


def test_other_outputs_fail(bundle: Path, model: Path, tmp_path: Path) -> None:
    edit = insert_after("probabilities", "Mul", np.array(1.00001, np.float32))
    report = check_bundle(edited(bundle, tmp_path / "b.onnx", edit), against=model)
    assert row(report, "original outputs").passed is False
    assert row(report, "original outputs").value == pytest.approx(1e-5, rel=0.1)


def test_another_source_model_is_noticed(bundle: Path, model: Path, tmp_path: Path) -> None:
    def rename(proto: onnx.ModelProto) -> None:
        proto.producer_name = "somebody else"

    same_weights = edited(model, tmp_path / "renamed.onnx", rename)
    compared = row(check_bundle(bundle, against=same_weights), "original outputs")
    assert compared.passed is True
    assert "not the one that was exported" in compared.detail


def test_without_a_source_the_outputs_are_not_checked(bundle: Path) -> None:
    report = check_bundle(bundle)
    assert row(report, "original outputs").passed is None
    assert "--against" in row(report, "original outputs").detail
    assert report.passed


def test_files_that_are_no_bundles(model: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no manifest"):
        check_bundle(model)
    (tmp_path / "text.onnx").write_text("This is not a model.")
    with pytest.raises(InvalidModelError, match=r"text\.onnx"):
        check_bundle(tmp_path / "text.onnx")
    with pytest.raises(InvalidModelError, match=r"text\.onnx"):
        check_bundle(bundle, against=tmp_path / "text.onnx")
