"""Graphs cut to the outputs asked for: only what is needed, the weights by reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import camrt
from camrt.bundle import Bundle
from camrt.errors import InvalidModelError, UnsupportedModelError
from camrt.runtime.pruning import PrunableModel
from tests.exporter.graphs import GraphWriter, edit_model, residual_classifier, small_classifier


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return residual_classifier(tmp_path_factory.mktemp("pruning") / "source.onnx")


@pytest.fixture(scope="module")
def bundle(source: Path) -> Bundle:
    return camrt.export(source, source.with_name("bundle.onnx"))


@pytest.fixture
def model(bundle: Bundle) -> PrunableModel:
    return PrunableModel(bundle.path)


def pruned(model: PrunableModel, *outputs: str, cut_at: str | None = None) -> onnx.GraphProto:
    content, _ = model.pruned(outputs, cut_at)
    return onnx.load_model_from_string(content).graph


def backward_nodes(graph: onnx.GraphProto) -> set[str]:
    return {node.name for node in graph.node if node.name.startswith("camrt/")}


def layer_outputs(bundle: Bundle, *names: str) -> list[str]:
    layers = [bundle.manifest.layer(name) for name in names]
    return ["class_index_out", *(output for layer in layers for output in (layer.activations, layer.gradients))]


def test_the_prediction_graph_has_exactly_the_nodes_of_the_source(
    source: Path, bundle: Bundle, model: PrunableModel
) -> None:
    graph = pruned(model, bundle.manifest.logits)
    assert sorted(node.name for node in graph.node) == sorted(node.name for node in onnx.load(source).graph.node)
    assert [value.name for value in graph.input] == ["image"]
    assert [value.name for value in graph.output] == ["logits"]
    assert not backward_nodes(graph)


def test_only_the_backward_of_the_layers_asked_for_is_left(bundle: Bundle, model: PrunableModel) -> None:
    counts = [
        len(backward_nodes(pruned(model, *layer_outputs(bundle, *names))))
        for names in (["stage3"], ["stage2"], ["stage1"], ["stage3", "stage2"], ["stage3", "stage2", "stage1"])
    ]
    deepest, middle, finest, two, everything = counts
    assert deepest < middle < finest
    assert middle == two  # the way to stage2 passes stage3
    assert everything == finest == len(backward_nodes(onnx.load(bundle.path).graph))
    convolutions = [
        sum(node.op_type == "Conv" for node in pruned(model, bundle.manifest.layer(name).gradients).node)
        for name in ("stage3", "stage2", "stage1")
    ]
    forward = sum(node.op_type == "Conv" for node in pruned(model, "logits").node)
    assert convolutions[0] == forward


def test_a_pruned_graph_has_no_dead_node(bundle: Bundle, model: PrunableModel) -> None:
    graph = pruned(model, "logits", *layer_outputs(bundle, "stage2"))
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    assert all(any(output in used for output in node.output) for node in graph.node)
    assert {tensor.name for tensor in graph.initializer} <= used
    produced = {name for node in graph.node for name in node.output}
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    assert used <= produced | given | {""}


def test_large_weights_are_references_to_shared_arrays(bundle: Bundle, model: PrunableModel) -> None:
    content, names = model.pruned(["logits"])
    graph = onnx.load_model_from_string(content).graph
    external = {t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    assert external == set(names) == {name for name in model.weights if name in {t.name for t in graph.initializer}}
    assert all(model.weights[name].nbytes > 1024 for name in names)
    assert len(content) < bundle.path.stat().st_size / 4


def test_weights_that_the_outputs_do_not_need_are_left_out(bundle: Bundle, model: PrunableModel) -> None:
    _, names = model.pruned(["logits"], bundle.manifest.layer("stage2").activations)
    assert names
    assert all(name.startswith("s3") or name.startswith("fc") for name in names)


def test_a_graph_cut_at_a_layer_starts_there(bundle: Bundle, model: PrunableModel) -> None:
    cut = bundle.manifest.layer("stage2").activations
    graph = pruned(model, "logits", cut_at=cut)
    assert [value.name for value in graph.input] == [cut]
    assert all(node.name.startswith("s3") or node.name in ("average", "flat", "logits") for node in graph.node)


def test_a_way_around_the_cut_is_refused(source: Path, tmp_path: Path) -> None:
    bundle = camrt.export(source, tmp_path / "bundle.onnx", ["s2b2_relu"])
    with pytest.raises(UnsupportedModelError, match="goes around"):
        PrunableModel(bundle.path).pruned(["logits"], "activations/s2b2_relu")


def test_a_graph_inside_a_node_keeps_what_it_takes_from_outside(tmp_path: Path) -> None:
    w = GraphWriter()
    w.add("Relu", "r1", w.conv("c1", "image", (3, 4), 3, 2))
    out = [onnx.helper.make_tensor_value_info("chosen", onnx.TensorProto.FLOAT, None)]
    branches = {
        f"{name}_branch": onnx.helper.make_graph([onnx.helper.make_node(op, ["r1"], ["chosen"])], name, [], out)
        for name, op in (("then", "Relu"), ("else", "Neg"))
    }
    w.add("If", "branch", w.constant("condition", np.array(True)), **branches)
    w.classify("branch", 4)
    path = w.save(tmp_path / "model.onnx")
    graph = pruned(PrunableModel(path), "logits")
    assert {node.name for node in graph.node} == {"c1", "r1", "branch", "average", "flat", "logits"}


def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("not a model\n" * 30)
    for bad in (path, tmp_path / "missing.onnx", tmp_path):
        with pytest.raises(InvalidModelError):
            PrunableModel(bad)


def test_a_weight_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    def shorten(proto: onnx.ModelProto) -> None:
        proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]

    with pytest.raises(InvalidModelError, match="weight"):
        PrunableModel(edit_model(small_classifier(tmp_path / "source.onnx"), shorten))
