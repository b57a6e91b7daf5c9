"""``export`` end to end on small graphs: outputs, class selection, sources of many kinds, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import camrt
from camrt.bundle import MANIFEST_KEY, Bundle
from camrt.errors import (
    CamrtError,
    InvalidInputError,
    InvalidModelError,
    UnsupportedModelError,
    UnsupportedOpError,
)
from camrt.preprocess import Preprocessing
from camrt.runtime import open_model, open_session
from camrt.types import SessionOutputs
from tests.exporter.graphs import (
    GraphWriter,
    channels_last_classifier,
    edit_model,
    initializers,
    mobile_classifier,
    model_proto,
    node_named,
    plain_classifier,
    residual_classifier,
    small_classifier,
)

NETWORKS: dict[str, Callable[[Path], Path]] = {
    "small": small_classifier,
    "residual": residual_classifier,
    "mobile": mobile_classifier,
    "plain": plain_classifier,
    "channels-last": channels_last_classifier,
}


def images(bundle: Bundle, count: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *bundle.manifest.input_shape)).astype(np.float32)


def explain(bundle: Bundle, inputs: np.ndarray, classes: list[int]) -> SessionOutputs:
    return open_session(bundle.path, threads=1).run(inputs, np.asarray(classes, np.int64), bundle.manifest.layer_names)


def exported(source: Path, layers: str | list[str] = "auto", **options: object) -> Bundle:
    return camrt.export(source, source.with_suffix(".bundle.onnx"), layers, **options)


def linear_weight(source: Path) -> np.ndarray:
    return next(numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer if tensor.name == "w5")


def same(actual: SessionOutputs, expected: SessionOutputs, tolerance: float = 1e-6) -> None:
    np.testing.assert_array_equal(actual.class_indices, expected.class_indices)
    np.testing.assert_allclose(actual.logits, expected.logits, rtol=0, atol=tolerance)
    for mine, theirs in zip(actual.layers, expected.layers, strict=True):
        np.testing.assert_allclose(mine.activations, theirs.activations, rtol=0, atol=tolerance)
        np.testing.assert_allclose(mine.gradients, theirs.gradients, rtol=0, atol=tolerance)


# Outputs, size, manifest


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_original_outputs_are_unchanged(network: str, batch: int, tmp_path: Path) -> None:
    source = NETWORKS[network](tmp_path / "source.onnx")
    bundle = exported(source)
    inputs = images(bundle, batch)
    expected = open_model(source, threads=1).run({"image": inputs})
    actual = open_model(bundle.path, threads=1).run({"image": inputs, "class_index": np.full(batch, -1, np.int64)})
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, rtol=0, atol=1e-6 * np.abs(values).max())


@pytest.mark.parametrize("network", NETWORKS)
def test_a_bundle_is_a_valid_model_with_the_outputs_its_manifest_names(network: str, tmp_path: Path) -> None:
    bundle = exported(NETWORKS[network](tmp_path / "source.onnx"))
    proto = onnx.load(bundle.path)
    onnx.checker.check_model(proto, full_check=True)
    manifest = bundle.manifest
    named = [*manifest.outputs, manifest.class_index_output]
    named += [name for layer in manifest.target_layers for name in (layer.activations, layer.gradients)]
    assert sorted(value.name for value in proto.graph.output) == sorted(named)
    assert [value.name for value in proto.graph.input] == [manifest.input_name, manifest.class_index_input]
    declared = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.output}
    for layer in manifest.target_layers:
        assert layer.activations == f"activations/{layer.name}"
        for name, batch in ((layer.activations, "N"), (layer.gradients, "M")):
            assert declared[name][0].dim_param == batch
            assert tuple(dim.dim_value for dim in declared[name][1:]) == layer.shape


def test_only_operators_that_engines_take(tmp_path: Path) -> None:
    forbidden = {"If", "Loop", "Scan", "MaxUnpool", "Col2Im", "ScatterND", "ScatterElements", "ConvInteger"}
    for network, build in NETWORKS.items():
        proto = onnx.load(exported(build(tmp_path / f"{network}.onnx")).path)
        assert {node.domain for node in proto.graph.node} == {""}
        assert 17 <= proto.opset_import[0].version <= 21
        assert not forbidden & {node.op_type for node in proto.graph.node}
        assert all(
            len(node.output) == 1 for node in proto.graph.node if node.op_type in ("MaxPool", "LayerNormalization")
        )


def test_the_bundle_is_hardly_larger_than_the_source(tmp_path: Path) -> None:
    w = GraphWriter()
    value, channels = "image", 3
    for stage, stride in enumerate((2, 1, 2, 1)):
        value = w.add("Relu", f"r{stage}", w.conv(f"c{stage}", value, (channels, 64), 3, stride))
        channels = 64
    w.classify(value, 64)
    source = w.save(tmp_path / "source.onnx")
    assert exported(source).path.stat().st_size <= 1.1 * source.stat().st_size


def test_the_manifest_says_what_was_exported(tmp_path: Path) -> None:
    source = small_classifier(tmp_path / "source.onnx", head="Softmax")
    preprocessing = Preprocessing((16, 16), "letterbox")
    names = ["a", "b", "c", "Dreieck ▲", "e"]
    bundle = exported(source, preprocess=preprocessing, class_names=names)
    assert Bundle.open(bundle.path) == bundle
    manifest = bundle.manifest
    assert manifest.source_name == "source.onnx"
    assert manifest.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (manifest.input_name, manifest.input_shape, manifest.num_classes) == ("image", (3, 16, 16), 5)
    assert (manifest.logits, manifest.head, manifest.probabilities) == ("logits", "softmax", "probabilities")
    assert manifest.outputs == ("probabilities",)
    assert manifest.class_names == tuple(names)
    assert manifest.camrt_version == camrt.__version__
    assert Preprocessing.from_dict(manifest.preprocessing or {}) == preprocessing
    assert [(layer.name, layer.value, layer.shape) for layer in manifest.target_layers] == [
        ("r4", "r4", (6, 4, 4)),
        ("r2", "r2", (4, 8, 8)),
    ]
    stored = {entry.key: entry.value for entry in onnx.load(bundle.path).metadata_props}
    assert json.loads(stored[MANIFEST_KEY])["schema_version"] == 1


def test_other_metadata_of_the_source_stays(tmp_path: Path) -> None:
    source = edit_model(
        small_classifier(tmp_path / "source.onnx"), lambda proto: helper.set_model_props(proto, {"author": "someone"})
    )
    stored = {entry.key: entry.value for entry in onnx.load(exported(source).path).metadata_props}
    assert stored["author"] == "someone"


def test_a_failed_export_leaves_the_old_bundle_and_no_other_file(tmp_path: Path) -> None:
    source = small_classifier(tmp_path / "source.onnx", extra_op="Cos")
    destination = tmp_path / "bundle.onnx"
    destination.write_bytes(b"old")
    with pytest.raises(UnsupportedOpError):
        camrt.export(source, destination, ["r2"])
    assert destination.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.onnx", "source.onnx"]


def test_folders_are_made_and_an_unusable_destination_is_refused(tmp_path: Path) -> None:
    source = small_classifier(tmp_path / "source.onnx")
    bundle = camrt.export(source, str(tmp_path / "new" / "folder" / "bundle.onnx"))
    assert bundle.path.is_file()
    (tmp_path / "taken").mkdir()
    for destination in (tmp_path / "taken", source / "bundle.onnx"):
        with pytest.raises(InvalidInputError, match="Cannot write"):
            camrt.export(source, destination)


def test_export_is_deterministic(tmp_path: Path) -> None:
    source = residual_classifier(tmp_path / "source.onnx")
    first, second = (camrt.export(source, tmp_path / f"{i}.onnx").path.read_bytes() for i in (1, 2))
    assert first == second


# Gradients


def test_the_gradient_of_the_last_layer_is_the_linear_weight(tmp_path: Path) -> None:
    source = small_classifier(tmp_path / "source.onnx")
    bundle = exported(source)
    outputs = explain(bundle, images(bundle), [4, 0, 2])
    expected = linear_weight(source)[[4, 0, 2]] / 16
    gradients = outputs.layers[0].gradients
    np.testing.assert_allclose(gradients, np.broadcast_to(expected[..., None, None], gradients.shape), atol=1e-7)


def in_double(source: Path, start: str) -> onnx.reference.ReferenceEvaluator:
    """The part of a network from one value to the logits, in float64."""
    proto = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(onnx.load(source))).extract_model(
        [start], ["logits"]
    )
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    return onnx.reference.ReferenceEvaluator(proto)


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_equal_central_differences(network: str, tmp_path: Path) -> None:
    source = NETWORKS[network](tmp_path / "source.onnx")
    before_ties = ["conv5b", "conv4b", "conv2b"]  # zeros after ReLU are ties in MaxPool's windows
    bundle = exported(source, before_ties if network == "plain" else "auto")
    outputs = explain(bundle, images(bundle, 1), [3])
    rng = np.random.default_rng(1)
    for layer, described in zip(outputs.layers, bundle.manifest.target_layers, strict=True):
        network_part = in_double(source, described.value)
        step = 1e-7 * rng.standard_normal(layer.activations.shape)
        ends = [layer.activations.astype(np.float64) + sign * step for sign in (1, -1)]
        if described.layout == "NHWC":
            ends = [end.transpose(0, 2, 3, 1) for end in ends]
        high, low = (network_part.run(["logits"], {described.value: end})[0][0, 3] for end in ends)
        scale = 2 * float(np.abs(step * layer.gradients).sum())
        assert abs(high - low - 2 * float((step * layer.gradients).sum())) <= 1e-5 * scale


@pytest.mark.parametrize(
    ("head", "kind"), [("Softmax", "softmax"), ("LogSoftmax", "log_softmax"), ("Sigmoid", "sigmoid")]
)
def test_the_gradient_is_of_the_logit_whatever_the_head(head: str, kind: str, tmp_path: Path) -> None:
    plain = exported(small_classifier(tmp_path / "plain.onnx"))
    source = small_classifier(tmp_path / "headed.onnx", head=head)
    bundle = exported(source)
    inputs = images(bundle)
    same(explain(bundle, inputs, [0, -1, 3]), explain(plain, inputs, [0, -1, 3]))
    assert (bundle.manifest.head, bundle.manifest.logits, bundle.manifest.outputs) == (
        kind,
        "logits",
        ("probabilities",),
    )
    raw = open_model(bundle.path, threads=1).run({"image": inputs, "class_index": np.zeros(3, np.int64)})
    np.testing.assert_array_equal(
        raw["probabilities"], open_model(source, threads=1).run({"image": inputs})["probabilities"]
    )
    assert raw["logits"].shape == (3, 5)


def head_after(*nodes: tuple[str, dict[str, object]]) -> Callable[[onnx.ModelProto], None]:
    """An edit that puts operators behind the logits; the last one makes the output."""

    def edit(proto: onnx.ModelProto) -> None:
        value = "logits"
        for index, (op, attributes) in enumerate(nodes):
            proto.graph.node.append(helper.make_node(op, [value], [f"head{index}"], **attributes))
            value = f"head{index}"
        proto.graph.output[0].name = value

    return edit


@pytest.mark.parametrize(
    "nodes",
    [
        [("Flatten", {}), ("Softmax", {"axis": 1})],
        [("Softmax", {"axis": -1}), ("Identity", {})],
        [("Softmax", {"axis": 1}), ("Flatten", {"axis": 1})],
    ],
)
def test_nodes_around_the_softmax_are_seen_through(nodes: list, tmp_path: Path) -> None:
    source = edit_model(small_classifier(tmp_path / "source.onnx"), head_after(*nodes))
    bundle = exported(source)
    assert bundle.manifest.head == "softmax"
    outputs = explain(bundle, images(bundle, 1), [2])
    np.testing.assert_allclose(outputs.layers[0].gradients[0, :, 0, 0], linear_weight(source)[2] / 16, atol=1e-7)


def test_a_softmax_over_positions_before_it_is_flattened(tmp_path: Path) -> None:
    """(N, K, 1, 1) logits through Softmax over the channels and Flatten, as a fully convolutional classifier ends."""
    w = GraphWriter()
    value = w.add("Relu", "r2", w.conv("c2", w.add("Relu", "r1", w.conv("c1", "image", (3, 6), 3, 2)), (6, 6)))
    value = w.add("GlobalAveragePool", "pool", w.conv("classes", value, (6, 5), 1))
    w.add("Flatten", "probabilities", w.add("Softmax", "softmax", value, axis=1))
    bundle = exported(w.save(tmp_path / "source.onnx", outputs={"probabilities": ["N", 5]}), ["r2"])
    outputs = explain(bundle, images(bundle, 1), [1])
    assert bundle.manifest.head == "softmax"
    expected = w.constants["classes_weight"][1, :, 0, 0] / 256
    np.testing.assert_allclose(outputs.layers[0].gradients[0, :, 3, 3], expected, atol=1e-7)
    probabilities = open_model(bundle.path, threads=1).run({"image": images(bundle, 1), "class_index": np.array([0])})
    np.testing.assert_allclose(probabilities["probabilities"].sum(), 1, atol=1e-6)


# class_index


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(small_classifier(tmp_path_factory.mktemp("export") / "source.onnx"))


def test_ranks_are_resolved_to_classes(bundle: Bundle) -> None:
    inputs = images(bundle, 1)
    logits = open_session(bundle.path, threads=1).predict(inputs)[0]
    ranking = np.argsort(-logits, kind="stable")
    by_rank = explain(bundle, inputs, [-1, -2, -3, -4, -5])
    np.testing.assert_array_equal(by_rank.class_indices, ranking)
    same(explain(bundle, inputs, ranking.tolist()), by_rank)


def test_several_classes_of_one_image_equal_several_runs(bundle: Bundle) -> None:
    inputs, classes = images(bundle, 1), [3, -1, 0, -5, 3]
    together = explain(bundle, inputs, classes)
    assert together.logits.shape == (1, 5)
    assert [layer.activations.shape[0] for layer in together.layers] == [1, 1]
    for m, chosen in enumerate(classes):
        alone = explain(bundle, inputs, [chosen])
        assert together.class_indices[m] == alone.class_indices[0]
        for mine, theirs in zip(together.layers, alone.layers, strict=True):
            np.testing.assert_allclose(mine.gradients[m], theirs.gradients[0], rtol=0, atol=1e-7)
            np.testing.assert_array_equal(mine.activations, theirs.activations)


def test_indices_and_ranks_mix_in_a_batch(bundle: Bundle) -> None:
    inputs = images(bundle, 4, seed=3)
    logits = open_session(bundle.path, threads=1).predict(inputs)
    together = explain(bundle, inputs, [2, -1, -5, 0])
    assert together.class_indices.tolist() == [2, int(logits[1].argmax()), int(logits[2].argmin()), 0]
    for n in range(4):
        alone = explain(bundle, inputs[n : n + 1], [int(together.class_indices[n])])
        for mine, theirs in zip(together.layers, alone.layers, strict=True):
            np.testing.assert_allclose(mine.gradients[n], theirs.gradients[0], rtol=0, atol=1e-7)


def test_ties_are_ranked_by_index(tmp_path: Path) -> None:
    def flatten_scores(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.remove(next(t for t in proto.graph.initializer if t.name == "w5"))
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros((5, 6), np.float32), "w5"))
        proto.graph.initializer.remove(next(t for t in proto.graph.initializer if t.name == "b5"))
        proto.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 2, 1, 2], np.float32), "b5"))

    bundle = exported(edit_model(small_classifier(tmp_path / "source.onnx"), flatten_scores))
    outputs = explain(bundle, images(bundle, 1), [-1, -2, -3, -4, -5])
    assert outputs.class_indices.tolist() == [1, 2, 4, 0, 3]


def test_one_class_only(tmp_path: Path) -> None:
    """A detector of one thing: (N, 1) with a Sigmoid."""
    w = GraphWriter()
    value = w.add("Relu", "r2", w.conv("c2", w.add("Relu", "r1", w.conv("c1", "image", (3, 6), 3, 2)), (6, 6)))
    w.add("Sigmoid", "chance", w.classify(value, 6, 1))
    bundle = exported(w.save(tmp_path / "source.onnx", outputs={"chance": ["N", 1]}))
    outputs = explain(bundle, images(bundle, 2), [0, -1])
    assert outputs.class_indices.tolist() == [0, 0]
    assert np.abs(outputs.layers[0].gradients).max() > 0


# Sources of many kinds


def test_the_class_output_can_be_named(tmp_path: Path) -> None:
    def second_output(proto: onnx.ModelProto) -> None:
        flat = helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["N", 6])
        proto.graph.output.insert(0, flat)

    source = edit_model(small_classifier(tmp_path / "source.onnx"), second_output)
    first, named = exported(source), exported(source, logits="logits")
    assert (first.manifest.logits, first.manifest.num_classes) == ("flat", 6)
    assert (named.manifest.logits, named.manifest.num_classes) == ("logits", 5)
    assert named.manifest.outputs == ("flat", "logits")
    with pytest.raises(UnsupportedModelError, match=r"flat.*logits"):
        exported(source, logits="nowhere")


def test_a_target_layer_may_be_an_output_of_the_source(tmp_path: Path) -> None:
    def feature_output(proto: onnx.ModelProto) -> None:
        proto.graph.output.append(helper.make_tensor_value_info("r2", TensorProto.FLOAT, ["N", 4, 8, 8]))

    bundle = exported(edit_model(small_classifier(tmp_path / "source.onnx"), feature_output))
    assert bundle.manifest.outputs == ("logits", "r2")
    inputs = images(bundle)
    raw = open_model(bundle.path, threads=1).run({"image": inputs, "class_index": np.zeros(3, np.int64)})
    np.testing.assert_array_equal(raw["r2"], raw["activations/r2"])
    session = open_session(bundle.path, threads=1)
    np.testing.assert_allclose(session.run_from_layer("r2", raw["r2"]), session.predict(inputs), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("target", [None, [1, -1], [1, 6], [-1, 6], "batch"])
def test_a_fixed_batch_is_freed(batch: int, target: list[int] | str | None, tmp_path: Path) -> None:
    def reshape(proto: onnx.ModelProto) -> None:
        if target is not None:
            dims = [batch, 6] if target == "batch" else [batch if dim == 1 else dim for dim in target]
            node_named(proto, "flatten").CopyFrom(helper.make_node("Reshape", ["pooled", "to"], ["flat"], "flatten"))
            proto.graph.initializer.extend(initializers({"to": np.array(dims)}))

    fixed = exported(edit_model(small_classifier(tmp_path / "fixed.onnx", batch=batch), reshape))
    free = exported(small_classifier(tmp_path / "free.onnx"))
    same(explain(fixed, images(free), [1, 2, 3]), explain(free, images(free), [1, 2, 3]))


def test_a_batch_that_cannot_be_freed_is_refused(tmp_path: Path) -> None:
    def flatten_everything(proto: onnx.ModelProto) -> None:
        node_named(proto, "flatten").CopyFrom(helper.make_node("Reshape", ["pooled", "to"], ["row"], "flatten"))
        proto.graph.initializer.extend(initializers({"to": np.array([6]), "axis": np.array([0])}))
        proto.graph.node.insert(10, helper.make_node("Unsqueeze", ["row", "axis"], ["flat"], "unsqueeze"))

    source = edit_model(small_classifier(tmp_path / "source.onnx", batch=1), flatten_everything)
    with pytest.raises(UnsupportedModelError, match=r"batch size.*fixed") as caught:
        exported(source)
    assert "dynamic batch" in caught.value.next_step


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (224, 224)),
        ({"image_size": (16, 24)}, (16, 24)),
        ({"preprocess": Preprocessing((24, 16))}, (24, 16)),
        ({"preprocess": "unit", "image_size": (32, 16)}, (32, 16)),
        ({"preprocess": "imagenet"}, (224, 224)),
        ({"preprocess": {"size": [16, 16]}}, (16, 16)),
    ],
)
def test_a_dynamic_image_size_is_fixed(options: dict, expected: tuple[int, int], tmp_path: Path) -> None:
    bundle = exported(small_classifier(tmp_path / "source.onnx", size=("H", "W")), **options)
    assert bundle.manifest.input_shape == (3, *expected)
    outputs = explain(bundle, images(bundle, 1), [0])
    assert outputs.layers[0].activations.shape[2:] == (expected[0] // 4, expected[1] // 4)
    if bundle.manifest.preprocessing is not None:
        assert tuple(bundle.manifest.preprocessing["size"]) == expected


def test_a_preset_takes_the_size_that_the_model_fixes(tmp_path: Path) -> None:
    bundle = exported(small_classifier(tmp_path / "source.onnx", size=(16, 24)), preprocess="imagenet")
    assert bundle.manifest.input_shape == (3, 16, 24)
    assert bundle.manifest.preprocessing is not None
    assert bundle.manifest.preprocessing["size"] == [16, 24]


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": (32, 32)},
        {"preprocess": Preprocessing((32, 32))},
        {"preprocess": Preprocessing((32, 32)), "image_size": (16, 16)},
        {"preprocess": "unit", "image_size": (32, 32)},
        {"preprocess": "no-such-preset"},
        {"preprocess": {"size": [16, 16], "colour": "red"}},
        {"class_names": ["one", "two"]},
        {"image_size": (0, 16)},
        {"image_size": (-16, 16)},
    ],
)
def test_arguments_that_contradict_the_model_are_refused(options: dict, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        exported(small_classifier(tmp_path / "source.onnx"), **options)


def test_an_open_size_with_contradicting_arguments_is_refused(tmp_path: Path) -> None:
    source = small_classifier(tmp_path / "source.onnx", size=("H", "W"))
    with pytest.raises(InvalidInputError, match="32"):
        exported(source, preprocess=Preprocessing((32, 32)), image_size=(16, 16))
    with pytest.raises(InvalidInputError):
        exported(source, image_size=(0, 16))


@pytest.mark.parametrize("opset", [11, 13, 17, 21, 23])
def test_other_opsets_are_converted(opset: int, tmp_path: Path) -> None:
    source = small_classifier(tmp_path / "source.onnx", head="Softmax", opset=opset)
    bundle = exported(source)
    reference = exported(small_classifier(tmp_path / "reference.onnx", head="Softmax"))
    inputs = images(bundle)
    same(explain(bundle, inputs, [1, 2, 3]), explain(reference, inputs, [1, 2, 3]))
    expected = open_model(source, threads=1).run({"image": inputs})["probabilities"]
    raw = open_model(bundle.path, threads=1).run({"image": inputs, "class_index": np.zeros(3, np.int64)})
    np.testing.assert_allclose(raw["probabilities"], expected, rtol=0, atol=1e-6)


def test_an_opset_too_old_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="opset 6"):
        exported(small_classifier(tmp_path / "source.onnx", opset=6))


def test_external_data_is_taken_into_the_bundle(tmp_path: Path) -> None:
    inner = small_classifier(tmp_path / "inner.onnx")
    outer = tmp_path / "outer.onnx"
    onnx.save(onnx.load(inner), outer, save_as_external_data=True, location="outer.data", size_threshold=0)
    bundle = exported(outer)
    reference = exported(inner)
    (tmp_path / "outer.data").unlink()
    same(explain(bundle, images(bundle), [1, 2, 3]), explain(reference, images(bundle), [1, 2, 3]), 0)


def test_missing_external_data_is_refused(tmp_path: Path) -> None:
    outer = tmp_path / "outer.onnx"
    proto = onnx.load(small_classifier(tmp_path / "inner.onnx"))
    onnx.save(proto, outer, save_as_external_data=True, location="outer.data", size_threshold=0)
    (tmp_path / "outer.data").unlink()
    with pytest.raises(InvalidModelError, match=r"outer\.onnx"):
        exported(outer)


def constants_as_nodes(proto: onnx.ModelProto) -> None:
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in proto.graph.initializer]
    nodes += list(proto.graph.node)
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.node.extend(nodes)


def weights_through_identity(proto: onnx.ModelProto) -> None:
    proto.graph.node.insert(0, helper.make_node("Identity", ["w2"], ["w2_copy"], "copy"))
    node_named(proto, "conv2").input[1] = "w2_copy"


def initializers_as_inputs(proto: onnx.ModelProto) -> None:
    proto.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in proto.graph.initializer
    )


def dropout_before_linear(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.extend(initializers({"ratio": np.float32(0.5), "training": np.array(False)}))
    proto.graph.node.insert(10, helper.make_node("Dropout", ["flat", "ratio", "training"], ["dropped", "mask"], "drop"))
    node_named(proto, "linear").input[0] = "dropped"


def nodes_out_of_order(proto: onnx.ModelProto) -> None:
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def nodes_without_names(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        node.name = ""


def stale_shapes(proto: onnx.ModelProto) -> None:
    proto.graph.value_info.append(helper.make_tensor_value_info("r2", TensorProto.FLOAT, [1, 4, 99, 99]))


def local_function(proto: onnx.ModelProto) -> None:
    opset = [helper.make_opsetid("", 18)]
    body = [helper.make_node("Relu", ["x"], ["y"])]
    proto.functions.append(helper.make_function("local", "Activate", ["x"], ["y"], body, opset))
    proto.opset_import.append(helper.make_opsetid("local", 1))
    node_named(proto, "relu2").CopyFrom(helper.make_node("Activate", ["c2"], ["r2"], "relu2", domain="local"))


@pytest.mark.parametrize(
    "edit",
    [
        constants_as_nodes,
        weights_through_identity,
        initializers_as_inputs,
        dropout_before_linear,
        nodes_without_names,
        stale_shapes,
        local_function,
    ],
    ids=lambda edit: edit.__name__,
)
def test_unusual_but_valid_sources_explain_the_same(edit: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    reference = exported(small_classifier(tmp_path / "reference.onnx"), ["r4", "r2"])
    source = edit_model(small_classifier(tmp_path / "source.onnx"), edit)
    bundle = exported(source, ["r4", "r2"])
    assert [value.name for value in onnx.load(bundle.path).graph.input] == ["image", "class_index"]
    same(explain(bundle, images(bundle), [1, 2, -1]), explain(reference, images(bundle), [1, 2, -1]))


def test_dropout_in_training_mode_is_refused(tmp_path: Path) -> None:
    def train(proto: onnx.ModelProto) -> None:
        dropout_before_linear(proto)
        proto.graph.initializer.remove(next(t for t in proto.graph.initializer if t.name == "training"))
        proto.graph.initializer.extend(initializers({"training": np.array(True)}))

    with pytest.raises(UnsupportedOpError, match=r"Dropout.*'drop'.*training mode"):
        exported(edit_model(small_classifier(tmp_path / "source.onnx"), train))


def test_grayscale_input(tmp_path: Path) -> None:
    w = GraphWriter()
    value = w.add("Relu", "r2", w.conv("c2", w.add("Relu", "r1", w.conv("c1", "image", (1, 6), 3, 2)), (6, 6)))
    w.classify(value, 6)
    source = w.save(tmp_path / "source.onnx", ("N", 1, 20, 28))
    bundle = exported(source)
    assert bundle.manifest.input_shape == (1, 20, 28)
    outputs = explain(bundle, images(bundle, 2), [0, -1])
    assert outputs.layers[0].gradients.shape == (2, 6, 10, 14)
    with pytest.raises(InvalidInputError, match="channel"):
        exported(source, preprocess="unit")


def half(proto: onnx.ModelProto) -> None:
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16


def half_inside(proto: onnx.ModelProto) -> None:
    """Half precision between two Casts, as converters make it that keep the types of inputs and outputs."""
    half(proto)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in proto.graph.node:
        node.input[:] = ["image_half" if name == "image" else name for name in node.input]
        node.output[:] = ["logits_half" if name == "logits" else name for name in node.output]
    proto.graph.node.insert(0, helper.make_node("Cast", ["image"], ["image_half"], "down", to=TensorProto.FLOAT16))
    proto.graph.node.append(helper.make_node("Cast", ["logits_half"], ["logits"], "up", to=TensorProto.FLOAT))


@pytest.mark.parametrize("edit", [half, half_inside], ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("network", ["small", "residual", "channels-last"])
def test_a_half_precision_model(network: str, edit: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    single = exported(NETWORKS[network](tmp_path / "single.onnx"))
    bundle = exported(edit_model(NETWORKS[network](tmp_path / "half.onnx"), edit))
    inputs = images(bundle)
    mine, theirs = explain(bundle, inputs, [1, -1, 3]), explain(single, inputs, [1, -1, 3])
    assert mine.logits.dtype == np.float32
    np.testing.assert_allclose(mine.logits, theirs.logits, rtol=0, atol=1e-2 * np.abs(theirs.logits).max())
    for low, high in zip(mine.layers, theirs.layers, strict=True):
        assert low.activations.dtype == low.gradients.dtype == np.float32
        error = np.sqrt(np.mean((low.gradients - high.gradients) ** 2) / np.mean(high.gradients**2))
        assert error <= 0.05


# Refusals


@pytest.mark.parametrize("op", ["Cos", "Sin", "Tan"])
def test_an_operator_without_a_rule_is_named_with_the_layers_that_work(op: str, tmp_path: Path) -> None:
    source = small_classifier(tmp_path / "source.onnx", extra_op=op)
    with pytest.raises(UnsupportedOpError, match=rf"{op} \(node 'extra_node'\)") as caught:
        exported(source, ["r4", "r3", "r2"])
    assert (caught.value.op_type, caught.value.node_name) == (op, "extra_node")
    assert caught.value.working_layers == ("r4", "r3")
    assert "r4, r3" in str(caught.value)
    assert exported(source, list(caught.value.working_layers)).manifest.layer_names == ("r4", "r3")


def test_an_operator_of_another_domain_is_named(tmp_path: Path) -> None:
    def foreign(proto: onnx.ModelProto) -> None:
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        node_named(proto, "relu3").CopyFrom(helper.make_node("Gelu", ["c3"], ["r3"], "foreign", domain="com.microsoft"))
        proto.graph.value_info.append(helper.make_tensor_value_info("r3", TensorProto.FLOAT, ["N", 6, 4, 4]))

    source = edit_model(small_classifier(tmp_path / "source.onnx"), foreign)
    with pytest.raises(CamrtError, match=r"Gelu|shape"):
        exported(source)


def test_no_layer_works(tmp_path: Path) -> None:
    source = edit_model(small_classifier(tmp_path / "source.onnx"), lambda proto: node_named(proto, "flatten").CopyFrom(
        helper.make_node("Reshape", ["ceiled", "to"], ["flat"], "flatten")
    ) or proto.graph.node.insert(9, helper.make_node("Cos", ["pooled"], ["ceiled"], "ceil"))
      or proto.graph.initializer.extend(initializers({"to": np.array([-1, 6])})))  # fmt: skip
    with pytest.raises(UnsupportedOpError, match="None of the target layers asked for works without it") as caught:
        exported(source)
    assert caught.value.working_layers == ()


def test_a_value_captured_by_a_branch_lies_on_the_path(tmp_path: Path) -> None:
    """If takes r2 from the outer graph: without a rule for If the gradient of r2 would miss that way."""

    def branch(proto: onnx.ModelProto) -> None:
        out = [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)]
        then = helper.make_graph([helper.make_node("Relu", ["r2"], ["chosen"])], "then", [], out)
        other = helper.make_graph([helper.make_node("Neg", ["r2"], ["chosen"])], "else", [], out)
        proto.graph.initializer.extend(initializers({"zero": np.float32(0)}))
        proto.graph.node.insert(4, helper.make_node("ReduceMax", ["image"], ["brightest"], "max", keepdims=0))
        proto.graph.node.insert(5, helper.make_node("Greater", ["brightest", "zero"], ["condition"], "greater"))
        node = helper.make_node("If", ["condition"], ["branched"], "branch", then_branch=then, else_branch=other)
        proto.graph.node.insert(6, node)
        proto.graph.node.insert(7, helper.make_node("Add", ["r2", "branched"], ["sum"], "sum"))
        node_named(proto, "conv3").input[0] = "sum"

    source = edit_model(small_classifier(tmp_path / "source.onnx"), branch)
    with pytest.raises(UnsupportedOpError, match=r"If \(node 'branch'\)") as caught:
        exported(source, ["r4", "r2"])
    assert caught.value.working_layers == ("r4",)
    bundle = exported(source, ["r4"])
    inputs = images(bundle)
    expected = open_model(source, threads=1).run({"image": inputs})["logits"]
    np.testing.assert_allclose(open_session(bundle.path, threads=1).predict(inputs), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["class_index", "class_index_out", "activations/r2", "gradients/r4", "camrt/constant_0"]
)
def test_names_that_the_bundle_needs_are_not_used_twice(name: str, tmp_path: Path) -> None:
    """A source that has a value of such a name is exported with that value renamed."""

    def rename(proto: onnx.ModelProto) -> None:
        node_named(proto, "conv1").output[0] = name
        node_named(proto, "relu1").input[0] = name

    reference = exported(small_classifier(tmp_path / "reference.onnx"))
    bundle = exported(edit_model(small_classifier(tmp_path / "source.onnx"), rename))
    onnx.checker.check_model(onnx.load(bundle.path))
    same(explain(bundle, images(bundle), [1, 2, -1]), explain(reference, images(bundle), [1, 2, -1]))


def test_an_output_with_a_name_that_the_bundle_needs_is_refused(tmp_path: Path) -> None:
    def rename(proto: onnx.ModelProto) -> None:
        node_named(proto, "linear").output[0] = "class_index"
        proto.graph.output[0].name = "class_index"

    with pytest.raises(UnsupportedModelError, match="'class_index'"):
        exported(edit_model(small_classifier(tmp_path / "source.onnx"), rename))


def test_two_inputs_or_none_of_four_axes_are_refused(tmp_path: Path) -> None:
    def second_input(proto: onnx.ModelProto) -> None:
        proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", 1, 16, 16]))

    with pytest.raises(UnsupportedModelError, match=r"exactly one input.*image.*mask"):
        exported(edit_model(small_classifier(tmp_path / "two.onnx"), second_input))
    tokens = model_proto(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])], {"x": ["N", 6]}, {"logits": ["N", 5]},
        {"w": np.ones((6, 5), np.float32)},
    )  # fmt: skip
    onnx.save(tokens, tmp_path / "tokens.onnx")
    with pytest.raises(UnsupportedModelError, match="exactly one input"):
        exported(tmp_path / "tokens.onnx")


def test_a_model_without_class_output_is_refused(tmp_path: Path) -> None:
    def features_only(proto: onnx.ModelProto) -> None:
        del proto.graph.output[:]
        proto.graph.output.append(helper.make_tensor_value_info("r4", TensorProto.FLOAT, ["N", 6, 4, 4]))

    with pytest.raises(UnsupportedModelError, match="no class output"):
        exported(edit_model(small_classifier(tmp_path / "source.onnx"), features_only))


def test_a_bundle_is_not_exported_again(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="bundle already"):
        camrt.export(bundle.path, tmp_path / "again.onnx")


@pytest.mark.parametrize("batch", ["M", "class_index", None])
def test_several_classes_of_one_image_whatever_the_file_calls_its_batch(batch: str | None, tmp_path: Path) -> None:
    """ONNX Runtime takes sizes of one name for equal: a batch called M would have as many images as classes."""

    def rename(proto: onnx.ModelProto) -> None:
        for value in (proto.graph.input[0], proto.graph.output[0]):
            value.type.tensor_type.shape.dim[0].Clear()
            if batch is not None:
                value.type.tensor_type.shape.dim[0].dim_param = batch

    bundle = exported(edit_model(small_classifier(tmp_path / "source.onnx"), rename))
    plain = exported(small_classifier(tmp_path / "plain.onnx"))
    inputs = images(bundle, 1)
    for got, expected in zip(
        explain(bundle, inputs, [0, 1]).layers, explain(plain, inputs, [0, 1]).layers, strict=True
    ):
        np.testing.assert_array_equal(got.gradients, expected.gradients)
    graph = onnx.load(bundle.path).graph
    values = {value.name: value for value in (*graph.input, *graph.output, *graph.value_info)}
    names = {name: [dim.dim_param for dim in v.type.tensor_type.shape.dim] for name, v in values.items()}
    assert names["image"][0] == names["logits"][0] == "N"
    assert names["class_index"] == ["M"]
    assert {name for name, dims in names.items() if "M" in dims} == {
        *("class_index", "class_index_out"),
        *(name for name in names if name.startswith("gradients/")),
    }


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_no_size_is_an_open_one(size: int, tmp_path: Path) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size

    bundle = exported(edit_model(small_classifier(tmp_path / "source.onnx"), edit))
    assert explain(bundle, images(bundle, 2), [0, 1]).logits.shape == (2, 5)


def test_open_channels_are_those_of_the_first_convolution(tmp_path: Path) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        for dim, name in zip(proto.graph.input[0].type.tensor_type.shape.dim, "NCHW", strict=True):
            dim.dim_param = name

    source = edit_model(small_classifier(tmp_path / "source.onnx"), edit)
    assert exported(source, image_size=(16, 16)).manifest.input_shape == (3, 16, 16)
    no_kernel = edit_model(source, lambda proto: node_named(proto, "conv1").input.__setitem__(1, "image"))
    with pytest.raises(UnsupportedModelError, match="number of channels open"):
        exported(no_kernel, image_size=(16, 16))


@pytest.mark.parametrize("declared", [False, True])
def test_group_normalization_without_stored_shapes(declared: bool, tmp_path: Path) -> None:
    def normalised(proto: onnx.ModelProto) -> None:
        node = helper.make_node("GroupNormalization", ["c3", "ones", "zeros"], ["r3"], "relu3", num_groups=2)
        node_named(proto, "relu3").CopyFrom(node)
        proto.graph.initializer.extend(initializers({"ones": np.ones(6, np.float32), "zeros": np.zeros(6, np.float32)}))
        if not declared:
            proto.graph.output[0].type.tensor_type.ClearField("shape")

    source = edit_model(small_classifier(tmp_path / "source.onnx", opset=21), normalised)
    bundle = exported(source, ["r4", "r3", "r2"])
    assert {layer.name: layer.shape for layer in bundle.manifest.target_layers}["r3"] == (6, 4, 4)
    assert explain(bundle, images(bundle, 1), [0, 1]).logits.shape == (1, 5)


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize(("replaced", "reads", "makes"), [("relu3", "c3", "r3"), ("linear", "flat", "logits")])
def test_a_node_that_inference_gives_up_on_is_named(
    replaced: str, reads: str, makes: str, declared: bool, tmp_path: Path
) -> None:
    def custom(proto: onnx.ModelProto) -> None:
        node_named(proto, replaced).CopyFrom(helper.make_node("Mystery", [reads], [makes], replaced, domain="mine"))
        proto.opset_import.append(helper.make_opsetid("mine", 1))
        if declared and makes != "logits":
            proto.graph.value_info.append(helper.make_tensor_value_info(makes, TensorProto.FLOAT, ["N", 6, 4, 4]))
        if not declared:
            proto.graph.output[0].type.tensor_type.ClearField("shape")

    source = edit_model(small_classifier(tmp_path / "source.onnx"), custom)
    if declared:  # the classes are known, what stands in the way is the operator itself
        with pytest.raises(UnsupportedOpError, match="Mystery"):
            exported(source, ["r2"])
    else:
        with pytest.raises(UnsupportedModelError, match=rf"no class output .*'{makes}'.* Mystery"):
            exported(source, ["r2"])


def test_nodes_that_are_called_like_those_of_the_bundle(tmp_path: Path) -> None:
    def rename(proto: onnx.ModelProto) -> None:
        for node, name in zip(proto.graph.node, ("camrt/TopK", "camrt/Neg_1", "camrt/OneHot_13"), strict=False):
            node.name = name

    bundle = exported(edit_model(small_classifier(tmp_path / "source.onnx"), rename))
    assert explain(bundle, images(bundle, 1), [0, 1]).logits.shape == (1, 5)
    names = [node.name for node in onnx.load(bundle.path).graph.node]
    assert {"source/0/camrt/TopK", "source/1/camrt/Neg_1"} <= set(names)
    assert len(names) == len(set(names))
