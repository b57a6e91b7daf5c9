from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import camrt
from camrt.errors import BundleError, InvalidModelError
from camrt.evaluation import CheckReport, CheckRow, check_bundle, finite_differences, output_check
from camrt.evaluation.batch_check import check_batches
from camrt.evaluation.second_order_check import check_second_order
from camrt.preprocess import random_inputs
from camrt.runtime import Optimization, PlainModel, open_model, open_session
from camrt.types import SessionOutputs
from tests.exporter.graphs import GraphWriter, small_classifier
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


def token_classifier(path: Path, scaled: bool) -> Path:
    """Patches of 4 as tokens (N, 64, 8), a block that ends in "block", mean over tokens, a linear layer.

    ``scaled`` puts a constant factor in front of the linear layer, which is linear too, and no linear head of CAM.
    """
    w = GraphWriter()
    flat = w.add("Reshape", "rows", w.conv("patches", "image", (3, 8), 3, 4), w.constant("to", np.array([0, 8, 64])))
    tokens = w.add("Relu", "tokens", w.add("Transpose", "turned", flat, perm=[0, 2, 1]))
    inner = w.add("Relu", "inner", w.add("MatMul", "mixed", tokens, w.weight("mix", 8, 8)))
    value = w.add(
        "ReduceMean", "mean", w.add("Add", "block", tokens, inner), w.constant("axes", np.array([1])), keepdims=0
    )
    if scaled:
        value = w.add("Mul", "scaled", value, w.constant("factors", np.linspace(0.5, 2, 8, dtype=np.float32)))
    w.add("Gemm", "logits", value, w.weight("fc", 5, 8), w.weight("bias", 5), transB=1)
    return w.save(path)


@pytest.fixture(scope="module", params=[False, True], ids=["linear_head", "scaled"])
def tokens(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = token_classifier(tmp_path_factory.mktemp("tokens") / "source.onnx", request.param)
    bundle = camrt.export(source, source.with_name("bundle.onnx"), ["block", "tokens"])
    end = bundle.manifest.layer("block")
    assert (end.layout, end.linear_head) == ("NLC", not request.param)
    return bundle.path


def test_tokens_in_front_of_a_linear_end(tokens: Path) -> None:
    """The graph cannot start at tokens, so finite differences cannot say that a constant gradient is right."""
    report = check_bundle(tokens, against=tokens.with_name("source.onnx"))
    assert report.passed, report
    assert row(report, "gradients of block").passed is None
    same = row(report, "gradients of block differ")
    assert (same.passed, same.value) == (True, pytest.approx(0, abs=1e-6))
    assert "logits that follow the activations confirm" in same.detail
    assert row(report, "gradients of tokens differ").passed is True


def test_wrong_constant_gradients_of_tokens_are_not_confirmed(tokens: Path, tmp_path: Path) -> None:
    head = camrt.Bundle.open(tokens).manifest.layer("block").linear_head
    edit = insert_after("gradients/block", "Mul", np.array(1.1, np.float32))
    same = row(check_bundle(edited(tokens, tmp_path / "b.onnx", edit)), "gradients of block differ")
    assert same.passed is (False if head else None)
    assert ("do not follow" if head else "cannot be made") in same.detail


def test_several_in_one_run(bundle: Path) -> None:
    report = check_bundle(bundle)
    for name in ("several classes of one image", "several images in one run"):
        assert row(report, name).passed is True
        assert row(report, name).tolerance == 1e-5
        assert row(report, name).value <= 1e-5


def of_the_first(output: str) -> Callable[[onnx.ModelProto], None]:
    """An edit that gives every row of an output what the first row is: a batch that was mixed up."""

    def edit(proto: onnx.ModelProto) -> None:
        insert_after(output, "Add", np.array(0, np.float32))(proto)
        proto.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
        added = proto.graph.node[-1]
        added.output[0] = f"{output}/sum"
        proto.graph.node.extend(
            [
                helper.make_node("Gather", [f"{output}/right", "first"], [f"{output}/first"], axis=0),
                helper.make_node("Mul", [f"{output}/sum", f"{output}/operand0"], [f"{output}/zeros"]),
                helper.make_node("Add", [f"{output}/zeros", f"{output}/first"], [output]),
            ]
        )

    return edit


@pytest.mark.parametrize(
    ("output", "wrong"),
    [
        ("gradients/stage2", {"several classes of one image", "several images in one run"}),
        ("activations/stage2", {"several images in one run"}),
    ],
)
def test_a_batch_that_is_mixed_up_fails(output: str, wrong: set[str], bundle: Path, tmp_path: Path) -> None:
    """One image with one class is right in such a bundle."""
    report = check_bundle(edited(bundle, tmp_path / "b.onnx", of_the_first(output)))
    assert {one.name for one in report.rows if one.passed is False} == wrong


def test_gradients_next_to_a_kink_are_not_compared(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(bundle, threads=1)
    images = random_inputs(session.manifest.input_shape, session.manifest.preprocessing, 3, np.random.default_rng(0))
    right, classes = session.run, np.array([0, 1, 2], np.int64)

    def off_in_a_batch(logits: float, gradients: float) -> tuple[bool | None, ...]:
        def run(inputs: np.ndarray, chosen: np.ndarray, layers: Sequence[str], derivatives: int = 1) -> SessionOutputs:
            found = right(inputs, chosen, layers, derivatives)
            if len(inputs) == 1:
                return found
            moved = [np.where(one.gradients == one.gradients.max(), 1 + gradients, 1) for one in found.layers]
            layers_off = [
                replace(one, gradients=(one.gradients * factor).astype(np.float32))
                for one, factor in zip(found.layers, moved, strict=True)
            ]
            return replace(found, logits=found.logits * np.float32(1 + logits), layers=tuple(layers_off))

        monkeypatch.setattr(session, "run", run)
        return tuple(one.passed for one in check_batches(session, images, classes, exact=True))

    assert off_in_a_batch(0, 0) == (True, True)
    assert off_in_a_batch(2e-6, 1e-3) == (True, None)
    assert off_in_a_batch(0, 1e-3) == (True, False)  # the same forward bits: no kink was crossed
    assert off_in_a_batch(2e-6, 10) == (True, False)
    assert off_in_a_batch(1e-3, 0) == (True, False)


def test_a_rounded_batch_is_measured_only(tmp_path: Path) -> None:
    source = small_classifier(tmp_path / "source.onnx")
    report = check_bundle(camrt.export(source, tmp_path / "bundle.onnx", precision="fp16").path)
    for name in ("several classes of one image", "several images in one run"):
        assert row(report, name).passed is None
        assert row(report, name).value < 1e-2


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


def fused_otherwise(error: float, at: Sequence[str]) -> Callable[..., PlainModel]:
    """open_model, with outputs of the bundle that are off by ``error`` at the given levels of optimization."""

    def opened(path: Path, threads: int = 0, optimization: Optimization = "all") -> PlainModel:
        model = open_model(path, threads, optimization)
        right = model.run

        def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: array * np.float32(1 + error) for name, array in right(inputs).items()}

        if "class_index" in model.input_names and optimization in at:
            model.run = run  # type: ignore[method-assign]
        return model

    return opened


@pytest.mark.parametrize(
    ("error", "at", "level"),
    [(2e-6, ["all"], "extended"), (2e-6, ["all", "extended"], "basic"), (5e-7, ["all", "extended"], None)],
)
def test_what_fusions_make_of_outputs_is_told_apart(
    error: float, at: list[str], level: str | None, bundle: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_check, "open_model", fused_otherwise(error, at))
    outputs = row(check_bundle(bundle, against=model), "original outputs")
    assert (outputs.passed, outputs.tolerance) == (True, 1e-6)
    assert outputs.value <= 1e-6
    assert ("graph optimization level" in outputs.detail) is (level is not None)
    if level is not None:
        assert f"the same at graph optimization level {level}; at the default level 2." in outputs.detail


@pytest.mark.parametrize(
    ("error", "at"), [(2e-6, ["all", "extended", "basic"]), (5e-5, ["all"]), (float("nan"), ["all"])]
)
def test_outputs_that_fusions_do_not_explain_fail(
    error: float, at: list[str], bundle: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_check, "open_model", fused_otherwise(error, at))
    outputs = row(check_bundle(bundle, against=model), "original outputs")
    assert outputs.passed is False
    assert outputs.value > 1e-6
    assert "graph optimization level" not in outputs.detail


def test_slightly_other_outputs_fail_at_every_level(bundle: Path, model: Path, tmp_path: Path) -> None:
    edit = insert_after("probabilities", "Mul", np.array(1.000002, np.float32))
    outputs = row(check_bundle(edited(bundle, tmp_path / "b.onnx", edit), against=model), "original outputs")
    assert outputs.passed is False
    assert outputs.value == pytest.approx(2e-6, rel=0.2)


def test_other_external_data_is_noticed(model: Path, tmp_path: Path) -> None:
    """The model's file stays as it is; a weight in the file beside it changes."""
    source, weights = tmp_path / "model.onnx", tmp_path / "weights.bin"
    onnx.save(onnx.load(model), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    made = camrt.export(source, tmp_path / "bundle.onnx")
    known = row(check_bundle(made.path, against=source), "original outputs")
    assert (known.passed, known.detail) == (True, "8 images")
    content, before = bytearray(weights.read_bytes()), source.read_bytes()
    content[:4] = np.float32(0.5).tobytes()
    weights.write_bytes(content)
    assert source.read_bytes() == before
    changed = row(check_bundle(made.path, against=source), "original outputs")
    assert "not the one that was exported" in changed.detail
    again = camrt.export(source, tmp_path / "again.onnx")
    assert again.manifest.source_sha256 != made.manifest.source_sha256


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
