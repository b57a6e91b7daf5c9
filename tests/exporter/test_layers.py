"""Which layers ``auto`` picks, and how names, patterns and module paths find one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import camrt
from camrt.errors import InvalidInputError, LayerNotFoundError, UnsupportedModelError
from camrt.exporter import LayerCandidate, list_layers
from camrt.runtime import open_session
from tests.exporter.graphs import (
    GraphWriter,
    channels_last_classifier,
    edit_model,
    initializers,
    mobile_classifier,
    node_named,
    plain_classifier,
    residual_classifier,
    small_classifier,
)


def exported_layers(source: Path, layers: str | list[str]) -> tuple[str, ...]:
    return camrt.export(source, source.with_suffix(".bundle.onnx"), layers).manifest.layer_names


def candidate(source: Path, name: str) -> LayerCandidate:
    return next(item for item in list_layers(source) if item.name == name)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (small_classifier, ("r4", "r2")),
        (residual_classifier, ("stage3", "stage2", "stage1")),
        (mobile_classifier, ("block6_out", "block4_out", "block2_out")),
        (plain_classifier, ("relu5b", "relu4b", "relu3b", "relu2b")),
        (channels_last_classifier, ("tail",)),
    ],
    ids=["small", "residual", "mobile", "plain", "channels-last"],
)
def test_auto_takes_the_stage_ends(build: Callable[[Path], Path], expected: tuple[str, ...], tmp_path: Path) -> None:
    source = build(tmp_path / "source.onnx")
    assert exported_layers(source, "auto") == expected
    assert tuple(item.name for item in list_layers(source) if item.auto)[::-1] == expected


def test_auto_takes_at_most_the_four_coarsest(tmp_path: Path) -> None:
    source = plain_classifier(tmp_path / "source.onnx", stages=6, size=64)
    assert exported_layers(source, "auto") == ("relu6b", "relu5b", "relu4b", "relu3b")
    assert "4 coarsest" in candidate(source, "relu2b").reason


def test_reasons_and_strides_are_told(tmp_path: Path) -> None:
    source = residual_classifier(tmp_path / "source.onnx")
    stem, end = candidate(source, "stem_relu"), candidate(source, "stage2")
    assert not stem.auto
    assert "stem" in stem.reason
    assert (end.auto, end.shape, end.stride, end.layout) == (True, (12, 4, 4), (8.0, 8.0), "NCHW")
    assert end.reason == "last value at 4x4"
    assert candidate(source, "s2b1_out").reason == "not the end of its stage"


def test_the_first_stage_of_a_network_without_stem_is_left_out(tmp_path: Path) -> None:
    source = plain_classifier(tmp_path / "source.onnx")
    assert "image's resolution" in candidate(source, "relu1b").reason
    assert "relu1b" not in exported_layers(source, "auto")


def test_values_inside_a_residual_block_are_no_candidates(tmp_path: Path) -> None:
    names = {item.name for item in list_layers(residual_classifier(tmp_path / "source.onnx"))}
    assert "s2b2_relu" not in names
    assert {"s2b1_out", "stage2"} <= names


def test_a_value_inside_a_block_can_be_named_all_the_same(tmp_path: Path) -> None:
    source = residual_classifier(tmp_path / "source.onnx")
    assert exported_layers(source, ["s2b2_relu"]) == ("s2b2_relu",)


def test_layers_come_coarse_to_fine_and_of_equal_size_the_deeper_first(tmp_path: Path) -> None:
    source = residual_classifier(tmp_path / "source.onnx")
    assert exported_layers(source, ["stage1", "s2b1_out", "stage3", "stage2"]) == (
        "stage3",
        "stage2",
        "s2b1_out",
        "stage1",
    )


def test_one_name_a_node_name_and_a_repeated_name(tmp_path: Path) -> None:
    source = residual_classifier(tmp_path / "source.onnx")
    assert exported_layers(source, "stage2") == ("stage2",)
    assert exported_layers(source, ["stage2", "stage2"]) == ("stage2",)
    assert exported_layers(source, ["s2b2_end"]) == ("s2b2_end",)  # the node that makes the value stage2


def test_two_names_of_one_value_give_two_equal_layers(tmp_path: Path) -> None:
    source = residual_classifier(tmp_path / "source.onnx")
    bundle = camrt.export(source, tmp_path / "bundle.onnx", ["stage2", "s2b2_end"])
    assert {layer.value for layer in bundle.manifest.target_layers} == {"stage2"}
    session = open_session(bundle.path, threads=1)
    inputs = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    first, second = session.run(inputs, np.array([1]), bundle.manifest.layer_names).layers
    np.testing.assert_array_equal(first.gradients, second.gradients)
    for layer in (first, second):
        logits = session.run_from_layer(layer.name, layer.activations)
        np.testing.assert_allclose(logits, session.predict(inputs), atol=1e-6)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["stage*"], ("stage3", "stage2", "stage1")),
        (["stage[13]"], ("stage3", "stage1")),
        (["s?b1_out"], ("s3b1_out", "s2b1_out", "s1b1_out")),
        (["stage3", "stage*"], ("stage3", "stage2", "stage1")),
    ],
)
def test_glob_patterns(patterns: list[str], expected: tuple[str, ...], tmp_path: Path) -> None:
    assert exported_layers(residual_classifier(tmp_path / "source.onnx"), patterns) == expected


@pytest.mark.parametrize("name", ["stage33", "Stage3", "no/such*", "", "logits2"])
def test_an_unknown_name_is_answered_with_suggestions(name: str, tmp_path: Path) -> None:
    source = residual_classifier(tmp_path / "source.onnx")
    with pytest.raises(LayerNotFoundError) as caught:
        exported_layers(source, ["stage1", name])
    assert repr(name) in caught.value.message
    assert "stage1, s2b1_add" in caught.value.next_step
    if name.lower().startswith("stage"):
        hint = caught.value.next_step.partition("?")[0]
        assert hint.startswith("Did you mean stage3")
        assert len(set(hint.split(" or "))) == len(hint.split(" or "))


@pytest.mark.parametrize("name", ["flat", "linear", "logits"])
def test_a_value_without_positions_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="four axes"):
        exported_layers(small_classifier(tmp_path / "source.onnx"), [name])


def test_a_layer_off_the_path_is_not_found(tmp_path: Path) -> None:
    def side_branch(proto: onnx.ModelProto) -> None:
        proto.graph.node.append(helper.make_node("Neg", ["r2"], ["aside"], "aside_node"))
        proto.graph.output.append(helper.make_tensor_value_info("aside", 1, ["N", 4, 8, 8]))

    source = edit_model(small_classifier(tmp_path / "source.onnx"), side_branch)
    with pytest.raises(LayerNotFoundError):
        exported_layers(source, ["aside"])


def test_no_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LayerNotFoundError):
        exported_layers(small_classifier(tmp_path / "source.onnx"), [])


def test_a_network_without_stages_lists_its_candidates(tmp_path: Path) -> None:
    w = GraphWriter()
    w.classify(w.add("Relu", "only", w.conv("c1", "image", (3, 4))), 4)
    source = w.save(tmp_path / "source.onnx")
    with pytest.raises(UnsupportedModelError, match="only"):
        exported_layers(source, "auto")
    assert exported_layers(source, ["only"]) == ("only",)


# Layouts


def test_channels_last_layers_come_out_upright(tmp_path: Path) -> None:
    """Activations of "tail" are the transposed value; an image bright at one place is bright there in the map."""
    source = channels_last_classifier(tmp_path / "source.onnx", height=16, width=24)
    bundle = camrt.export(source, tmp_path / "bundle.onnx", ["tail", "block", "norm2", "act"])
    layouts = {layer.name: (layer.layout, layer.shape) for layer in bundle.manifest.target_layers}
    assert layouts == {
        "tail": ("NHWC", (6, 4, 6)),
        "norm2": ("NHWC", (6, 4, 6)),
        "block": ("NCHW", (6, 4, 6)),
        "act": ("NHWC", (12, 4, 6)),
    }
    image = np.zeros((1, 3, 16, 24), np.float32)
    image[..., 4:8, 16:20] = np.random.default_rng(0).standard_normal((3, 4, 4))
    session = open_session(bundle.path, threads=1)
    empty = session.run(np.zeros_like(image), np.array([0]), bundle.manifest.layer_names)
    seen = session.run(image, np.array([0]), bundle.manifest.layer_names)
    for layer, nothing in zip(seen.layers, empty.layers, strict=True):
        assert layer.activations.shape == (1, *layouts[layer.name][1]) == layer.gradients.shape
        rows, columns = np.nonzero(np.abs(layer.activations - nothing.activations).sum(axis=(0, 1)))
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 2, 3, 5)  # the 3x3 around the patch (1, 4)


def test_the_gradient_of_a_channels_last_layer(tmp_path: Path) -> None:
    bundle = camrt.export(channels_last_classifier(tmp_path / "source.onnx"), tmp_path / "bundle.onnx", ["tail"])
    weights = {tensor.name: tensor for tensor in onnx.load(tmp_path / "source.onnx").graph.initializer}
    expected = onnx.numpy_helper.to_array(weights["fc"])[2] / 24
    inputs = np.random.default_rng(0).standard_normal((2, 3, 16, 24)).astype(np.float32)
    outputs = open_session(bundle.path, threads=1).run(inputs, np.array([2, 2]), ["tail"])
    gradients = outputs.layers[0].gradients
    np.testing.assert_allclose(gradients, np.broadcast_to(expected[:, None, None], gradients.shape), atol=1e-7)


def test_a_layout_that_cannot_be_inferred_is_refused(tmp_path: Path) -> None:
    def through_reshape(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.extend(initializers({"to": np.array([-1, 8, 8, 4]), "back": np.array([-1, 4, 8, 8])}))
        proto.graph.node.insert(4, helper.make_node("Reshape", ["r2", "to"], ["odd"], "odd_node"))
        proto.graph.node.insert(5, helper.make_node("Relu", ["odd"], ["odd_relu"], "odd_relu_node"))
        proto.graph.node.insert(6, helper.make_node("Reshape", ["odd_relu", "back"], ["even"], "even_node"))
        node_named(proto, "conv3").input[0] = "even"

    source = edit_model(small_classifier(tmp_path / "source.onnx"), through_reshape)
    with pytest.raises(UnsupportedModelError, match=r"odd_relu.*cannot be inferred") as caught:
        exported_layers(source, ["odd_relu"])
    assert "r4" in caught.value.next_step
    assert exported_layers(source, ["r4", "r2"]) == ("r4", "r2")


def test_a_transpose_without_permutation_is_refused_as_a_layer(tmp_path: Path) -> None:
    def reverse(proto: onnx.ModelProto) -> None:
        proto.graph.node.insert(4, helper.make_node("Transpose", ["r2"], ["reversed"], "reverse"))
        proto.graph.node.insert(5, helper.make_node("Transpose", ["reversed"], ["again"], "again_node"))
        node_named(proto, "conv3").input[0] = "again"

    source = edit_model(small_classifier(tmp_path / "source.onnx"), reverse)
    with pytest.raises(UnsupportedModelError, match="'reversed'"):
        exported_layers(source, ["reversed"])


# Module paths


def torchscript_names(proto: onnx.ModelProto) -> None:
    """As torch.onnx's older exporter names nodes: a Sequential's children repeat its path."""
    scopes = {
        "conv1": "/layer1/layer1.0/conv1/Conv",
        "relu1": "/layer1/layer1.0/relu/Relu",
        "conv2": "/layer1/layer1.1/conv1/Conv",
        "relu2": "/layer1/layer1.1/relu/Relu",
        "conv3": "/backbone/stages/stages.0/conv/Conv",
        "relu3": "/backbone/stages/stages.0/act/Relu",
        "conv4": "/backbone/stages/stages.1/conv/Conv",
        "relu4": "/backbone/stages/stages.1/act_1/Relu",
        "pool": "/pool/GlobalAveragePool",
        "flatten": "/Flatten",
        "linear": "/fc/Gemm",
    }
    for node in proto.graph.node:
        node.name = scopes[node.name]


def dynamo_scopes(proto: onnx.ModelProto) -> None:
    """As torch.onnx's newer exporter records them: a list in the metadata of each node."""
    scopes = {
        "conv1": ["", "layer1", "layer1.0", "layer1.0.conv1", "conv2d"],
        "relu1": ["", "layer1", "layer1.0", "layer1.0.relu", "relu"],
        "conv2": ["", "layer1", "layer1.1", "layer1.1.conv1", "conv2d_1"],
        "relu2": ["", "layer1", "layer1.1", "layer1.1.relu", "relu_1"],
        "conv3": ["", "backbone", "backbone.stages", "backbone.stages.0", "backbone.stages.0.conv", "conv2d_2"],
        "relu3": ["", "backbone", "backbone.stages", "backbone.stages.0", "backbone.stages.0.act", "relu_2"],
        "conv4": ["", "backbone", "backbone.stages", "backbone.stages.1", "backbone.stages.1.conv", "conv2d_3"],
        "relu4": ["", "backbone", "backbone.stages", "backbone.stages.1", "backbone.stages.1.act", "relu_3"],
        "pool": ["", "pool", "mean"],
        "flatten": ["", "flatten"],
        "linear": ["", "fc", "linear"],
    }
    for node in proto.graph.node:
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=repr(scopes[node.name]))
        node.name = f"node_{scopes[node.name][-1]}"


@pytest.mark.parametrize("edit", [torchscript_names, dynamo_scopes], ids=lambda edit: edit.__name__)
def test_module_paths_of_both_exporters(edit: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    source = edit_model(small_classifier(tmp_path / "source.onnx"), edit)
    paths = {
        "layer1": "r2",
        "layer1.1": "r2",
        "layer1.1.relu": "r2",
        "layer1.1.conv1": "c2",
        "layer1.0": "r1",
        "backbone": "r4",
        "backbone.stages": "r4",
        "backbone.stages.1": "r4",
        "backbone.stages.1.act": "r4",
        "backbone.stages.0": "r3",
    }
    for path, value in paths.items():
        bundle = camrt.export(source, tmp_path / "bundle.onnx", [path])
        assert [(layer.name, layer.value) for layer in bundle.manifest.target_layers] == [(path, value)]


@pytest.mark.parametrize("edit", [torchscript_names, dynamo_scopes], ids=lambda edit: edit.__name__)
def test_auto_names_layers_by_the_shortest_module_path(edit: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    source = edit_model(small_classifier(tmp_path / "source.onnx"), edit)
    assert exported_layers(source, "auto") == ("backbone", "layer1")
    assert exported_layers(source, ["layer1.?"]) == ("layer1.0",)
    assert exported_layers(source, ["layer?.1"]) == ("layer1.1",)
    with pytest.raises(LayerNotFoundError, match="Did you mean layer1"):
        exported_layers(source, ["layer11"])


def test_the_image_size_of_a_listing(tmp_path: Path) -> None:
    source = small_classifier(tmp_path / "source.onnx", size=("H", "W"))
    listed = list_layers(source, (np.int64(32), np.int32(16)))  # type: ignore[arg-type]
    assert next(item.shape for item in listed if item.name == "r2") == (4, 16, 8)
    for wrong in (32, (32,), (32, 0), (True, 32), (32.0, 32)):
        with pytest.raises(InvalidInputError, match="image_size"):
            list_layers(source, wrong)  # type: ignore[arg-type]
