"""Hostile and damaged model files: a typed error, or a result; never another exception, a hang or a crash."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import camrt
from camrt.bundle import MANIFEST_KEY, Bundle, Manifest
from camrt.errors import BundleError, CamrtError, InvalidModelError, UnsupportedModelError
from camrt.exporter import list_layers
from camrt.runtime import open_model, open_session
from tests.exporter.graphs import edit_model, node_named, small_classifier

BYTE_MUTATIONS = 240
GRAPH_MUTATIONS = 240


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_classifier(tmp_path_factory.mktemp("attacks") / "source.onnx", head="Softmax")


@pytest.fixture(scope="module")
def bundle(source: Path) -> Path:
    return camrt.export(source, source.with_name("bundle.onnx"), ["r4", "r2"], preprocess="unit").path


def export(path: Path) -> None:
    """Exports, and where that succeeds explains."""
    explain(camrt.export(path, path.with_suffix(".out")).path)


def explain(path: Path) -> None:
    explainer = camrt.Explainer(path, threads=1)
    shape = explainer.manifest.input_shape
    if math.prod(shape) < 1_000_000:
        explainer.explain(np.zeros((1, *shape), np.float32), output_size=(8, 8))


ENTRIES: dict[str, Callable[[Path], Any]] = {
    "export": export,
    "list_layers": list_layers,
    "Bundle.open": Bundle.open,
    "Explainer": explain,
    "open_model": open_model,
}


# Files that are no models


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"This is a text file, not a model.\n" * 50,
        b'{"graph": {"node": []}}',
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        b"PK\x03\x04" + bytes(200),
        b"\x00" * 4096,
        b"\xff" * 4096,
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\x08\x08",
    ],
    ids=["empty", "text", "json", "png", "zip", "zeros", "ones", "endless-field", "header-only"],
)
def test_files_that_are_no_models(entry: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises((InvalidModelError, BundleError), match=r"model\.onnx"):
        ENTRIES[entry](path)


@pytest.mark.parametrize("suffix", [".json", ".txt", ".textproto", ".onnxtxt", ""])
def test_the_suffix_does_not_choose_another_parser(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_text("graph { node { } }")
    with pytest.raises(InvalidModelError):
        export(path)


@pytest.mark.parametrize("entry", ENTRIES)
def test_missing_files_and_folders(entry: str, tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(InvalidModelError):
            ENTRIES[entry](path)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path / "random.onnx"
    path.write_bytes(rng.bytes(int(rng.integers(1, 3000))))
    for call in ENTRIES.values():
        with pytest.raises((InvalidModelError, BundleError)):
            call(path)


def test_models_cut_off_at_many_lengths(source: Path, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    for whole, entry in ((source.read_bytes(), export), (bundle.read_bytes(), explain)):
        for length in np.linspace(0, len(whole) - 1, 60).astype(int):
            path.write_bytes(whole[:length])
            with pytest.raises((InvalidModelError, BundleError)):
                entry(path)


# Mutations with fixed seeds


def changed_bytes(content: bytes, seed: int) -> bytes:
    """Flips bits, sets, removes or inserts bytes."""
    rng = np.random.default_rng(seed)
    array = np.frombuffer(content, np.uint8).copy()
    at, length = int(rng.integers(len(array))), int(rng.integers(1, 20))
    match seed % 4:
        case 0:
            for _ in range(3):
                array[rng.integers(len(array))] ^= 1 << rng.integers(8)
        case 1:
            array[rng.integers(len(array), size=3)] = rng.integers(256)
        case 2:
            array = np.delete(array, slice(at, at + length))
        case _:
            array = np.insert(array, at, np.frombuffer(rng.bytes(length), np.uint8))
    return array.tobytes()


@pytest.mark.parametrize("kind", ["source", "bundle"])
def test_changed_bytes_give_a_result_or_a_typed_error(
    kind: str, source: Path, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = (source if kind == "source" else bundle).read_bytes()
    path = tmp_path / "changed.onnx"
    refused = 0
    for seed in range(BYTE_MUTATIONS):
        path.write_bytes(changed_bytes(content, seed))
        try:
            export(path) if kind == "source" else explain(path)
        except CamrtError:
            refused += 1
    assert refused > BYTE_MUTATIONS / 4
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err


_OPERATORS = [
    "Relu",
    "Conv",
    "MaxPool",
    "AveragePool",
    "Reshape",
    "Transpose",
    "Gemm",
    "MatMul",
    "Softmax",
    "Concat",
    "Split",
    "Slice",
    "Pad",
    "ReduceMean",
    "Clip",
    "BatchNormalization",
    "LayerNormalization",
    "Dropout",
    "Squeeze",
    "Unsqueeze",
    "Expand",
    "Where",
    "Cast",
    "Pow",
    "Flatten",
    "Identity",
    "Shape",
    "Gather",
    "If",
    "Loop",
    "Constant",
    "Resize",
    "ConvTranspose",
    "Equal",
    "NoSuchOperator",
    "LRN",
    "QuantizeLinear",
    "DequantizeLinear",
    "GlobalMaxPool",
    "PRelu",
    "Mean",
    "ReduceL2",
    "ConstantOfShape",
]
_NUMBERS = (-3, -1, 0, 1, 2, 7, 2**31, 2**62, -(2**62))


def change_graph(proto: onnx.ModelProto, seed: int) -> None:
    """One or two changes to operators, edges, attributes, weights, inputs and outputs, blind to what makes sense."""
    rng = np.random.default_rng(seed)
    graph = proto.graph
    names = (
        [output for node in graph.node for output in node.output] + [t.name for t in graph.initializer] + ["image", ""]
    )

    def pick(items: Any) -> Any:
        return items[int(rng.integers(len(items)))]

    def attribute(node: onnx.NodeProto) -> None:
        if node.attribute:
            chosen = pick(node.attribute)
            if chosen.ints:
                chosen.ints[int(rng.integers(len(chosen.ints)))] = pick(_NUMBERS)
            else:
                chosen.i = pick(_NUMBERS)

    def resize_weight(_: onnx.NodeProto) -> None:
        tensor = pick(graph.initializer)
        tensor.dims[int(rng.integers(len(tensor.dims)))] = pick((-1, 0, 1, 3, 2**40))

    def image_axis(_: onnx.NodeProto) -> None:
        pick(graph.input[0].type.tensor_type.shape.dim).dim_value = pick((-1, 0, 1, 2, 5, 2**40))

    def operator(node: onnx.NodeProto) -> None:
        node.op_type = pick(_OPERATORS)

    def edge(node: onnx.NodeProto) -> None:
        node.input[int(rng.integers(len(node.input)))] = pick(names)

    def more_inputs(node: onnx.NodeProto) -> None:
        node.input.append(pick(names))

    def fewer_inputs(node: onnx.NodeProto) -> None:
        del node.input[-1]

    def output(node: onnx.NodeProto) -> None:
        node.output[0] = pick(names)

    def fewer_attributes(node: onnx.NodeProto) -> None:
        del node.attribute[:1]

    def remove(node: onnx.NodeProto) -> None:
        graph.node.remove(node)

    def repeat(node: onnx.NodeProto) -> None:
        graph.node.append(node)

    def opset(_: onnx.NodeProto) -> None:
        proto.opset_import[0].version = pick((-1, 0, 1, 7, 9, 12, 17, 25, 99, 2**40))

    def types(_: onnx.NodeProto) -> None:
        pick(graph.initializer).data_type = int(rng.integers(25))
        graph.input[0].type.tensor_type.elem_type = int(rng.integers(25))

    changes = [attribute, resize_weight, image_axis, operator, edge, more_inputs, fewer_inputs, output]
    changes += [fewer_attributes, remove, repeat, opset, types]
    changes[seed % len(changes)](pick([node for node in graph.node if node.input]))
    if seed % 3 == 0:
        pick(changes)(pick([node for node in graph.node if node.input]))


def test_changed_graphs_give_a_result_or_a_typed_error(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original = onnx.load(source)
    path = tmp_path / "changed.onnx"
    refused = 0
    for seed in range(GRAPH_MUTATIONS):
        proto = onnx.ModelProto()
        proto.CopyFrom(original)
        change_graph(proto, seed)
        path.write_bytes(proto.SerializeToString())
        try:
            export(path)
        except CamrtError:
            refused += 1
    assert refused > GRAPH_MUTATIONS / 4
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err


# Graphs that are wrong in one way


def cycle(proto: onnx.ModelProto) -> None:
    node_named(proto, "conv1").input[0] = "r4"


def same_output_twice(proto: onnx.ModelProto) -> None:
    node_named(proto, "relu2").output[0] = "r1"


def unknown_input(proto: onnx.ModelProto) -> None:
    node_named(proto, "conv2").input[0] = "nowhere"


def negative_size(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -16


def no_pixels(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 0


def no_nodes(proto: onnx.ModelProto) -> None:
    del proto.graph.node[:]


def no_opset(proto: onnx.ModelProto) -> None:
    del proto.opset_import[:]


def future_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 9999


def short_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[1].raw_data = proto.graph.initializer[1].raw_data[:-3]


def weight_of_another_shape(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros((4, 5, 3, 3), np.float32), "w2"))


def absurd_stride(proto: onnx.ModelProto) -> None:
    next(item for item in node_named(proto, "conv3").attribute if item.name == "strides").ints[:] = [2**40, 2**40]


def absurd_padding(proto: onnx.ModelProto) -> None:
    next(item for item in node_named(proto, "conv3").attribute if item.name == "pads").ints[:] = [2**40] * 4


def unknown_operator(proto: onnx.ModelProto) -> None:
    node_named(proto, "relu3").op_type = "Rleu"


def name_that_is_not_text(proto: onnx.ModelProto) -> None:
    node_named(proto, "relu3").output[0] = "r3"
    proto.ParseFromString(proto.SerializeToString().replace(b"relu3", b"rel\xff3"))


@pytest.mark.parametrize(
    "edit",
    [cycle, same_output_twice, unknown_input, negative_size, no_pixels, no_nodes, no_opset, future_opset, short_weight,
     weight_of_another_shape, absurd_padding, unknown_operator, name_that_is_not_text],
    ids=lambda edit: edit.__name__,
)  # fmt: skip
@pytest.mark.timeout(20)
def test_a_graph_against_the_rules_is_refused(
    edit: Callable[[onnx.ModelProto], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = edit_model(small_classifier(tmp_path / "source.onnx"), edit)
    with pytest.raises((InvalidModelError, UnsupportedModelError)):
        export(path)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.timeout(20)
def test_an_absurd_stride_takes_no_time(tmp_path: Path) -> None:
    """ONNX allows it: one output position is left."""
    export(edit_model(small_classifier(tmp_path / "source.onnx"), absurd_stride))


def test_a_cycle_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match=r"source\.onnx is inconsistent.*cycle"):
        export(edit_model(small_classifier(tmp_path / "source.onnx"), cycle))


def with_pooling(path: Path, **window: list[int]) -> Path:
    def pool(proto: onnx.ModelProto) -> None:
        proto.graph.node.insert(4, helper.make_node("MaxPool", ["r2"], ["p"], "huge", **window))
        node_named(proto, "conv3").input[0] = "p"

    return edit_model(small_classifier(path), pool)


def test_a_pooling_window_beyond_all_use_is_refused(tmp_path: Path) -> None:
    path = with_pooling(tmp_path / "source.onnx", kernel_shape=[512, 512], pads=[256] * 4)
    with pytest.raises(UnsupportedModelError, match="huge"):
        camrt.export(path, tmp_path / "out.onnx", ["r2"])


@pytest.mark.timeout(20)
def test_an_absurd_stride_of_pooling_takes_no_time(tmp_path: Path) -> None:
    path = with_pooling(tmp_path / "source.onnx", kernel_shape=[1, 1], strides=[2**20, 2**20])
    camrt.export(path, tmp_path / "out.onnx", ["r2"])


# Data outside the file


def outside(location: str) -> Callable[[onnx.ModelProto], None]:
    def edit(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[1]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return edit


def edit_bytes(path: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    """As edit_model, without onnx.save looking at external data."""
    proto = onnx.load(path, load_external_data=False)
    edit(proto)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location", ["../../../../../../etc/passwd", "/etc/passwd", "../secret.bin", "", ".", "link.bin", "a\0b"]
)
def test_external_data_outside_the_folder_is_refused(location: str, source: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(4 * 4 * 4 * 9))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    for original, entry in ((source, export), (bundle, explain)):
        path = folder / "model.onnx"
        path.write_bytes(original.read_bytes())
        edit_bytes(path, outside(location))
        with pytest.raises(InvalidModelError, match=r"model\.onnx"):
            entry(path)


# Manifests


def rewritten(bundle: Path, path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """The bundle with an edited manifest."""
    proto = onnx.load(bundle)
    entry = next(item for item in proto.metadata_props if item.key == MANIFEST_KEY)
    fields = json.loads(entry.value)
    edit(fields)
    entry.value = json.dumps(fields)
    path.write_bytes(proto.SerializeToString())
    return path


def manifest_fields(bundle: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(Bundle.open(bundle).manifest.to_json())
    return fields


OPTIONAL = {field.name for field in dataclasses.fields(Manifest) if field.default is not dataclasses.MISSING}
MAY_BE_NONE: dict[str, type] = {"prefix_tokens": int, "target_gradients": str, "hessian_vectors": str}
WRONG = (None, 7, -1, 1.5, True, "text", [], [1], {}, {"a": 1}, [[[]]], "\0", 10**30)


def wrong_values(right: object) -> Iterator[object]:
    yield from (value for value in WRONG if value != right and (type(value) is not type(right) or value == -1))


def test_a_manifest_without_a_field(bundle: Path, tmp_path: Path) -> None:
    for name in manifest_fields(bundle):
        path = rewritten(bundle, tmp_path / "bundle.onnx", lambda fields, name=name: fields.pop(name))
        if name in OPTIONAL:
            assert Bundle.open(path).manifest
        else:
            with pytest.raises(BundleError, match="damaged"):
                Bundle.open(path)


def test_a_manifest_with_a_field_of_a_wrong_type(bundle: Path, tmp_path: Path) -> None:
    for name, right in manifest_fields(bundle).items():
        for wrong in wrong_values(right):
            if wrong is None and name in ("class_names", "preprocessing", "probabilities", "saliency"):
                continue
            if isinstance(wrong, str) and name in ("class_names", "probabilities"):
                continue  # text is a name of some output, refused later
            path = rewritten(
                bundle, tmp_path / "bundle.onnx", lambda fields, name=name, wrong=wrong: fields.update({name: wrong})
            )
            with pytest.raises(CamrtError):
                camrt.Explainer(path, threads=1)


def test_a_layer_of_a_manifest_with_a_field_of_a_wrong_type(bundle: Path, tmp_path: Path) -> None:
    for name, right in manifest_fields(bundle)["target_layers"][0].items():
        for wrong in wrong_values(right):
            kind = MAY_BE_NONE.get(name)
            if kind is not None and (wrong is None or (type(wrong) is kind and wrong != -1)):
                continue

            def edit(fields: dict[str, Any], name: str = name, wrong: object = wrong) -> None:
                fields["target_layers"][0][name] = wrong

            with pytest.raises(BundleError):
                Bundle.open(rewritten(bundle, tmp_path / "bundle.onnx", edit))


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"schema_version": "1"},
        {"unknown_field": 1},
        {"target_layers": []},
        {"head": "hardmax"},
        {"input_layout": "CHWN"},
        {"num_classes": 0},
        {"input_shape": [3, 16]},
        {"input_shape": [3, 16, -16]},
        {"class_names": ["one"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_manifest_that_says_what_cannot_be(change: dict[str, Any], bundle: Path, tmp_path: Path) -> None:
    path = rewritten(bundle, tmp_path / "bundle.onnx", lambda fields: fields.update(change))
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    assert "Export the model again" in caught.value.next_step or "class" in caught.value.next_step


@pytest.mark.parametrize("text", ["", "[]", "null", "7", "{", "[" * 100_000, '"' + "x" * 1000, '{"schema_version": 1}'])
def test_a_manifest_that_is_no_manifest(text: str, bundle: Path, tmp_path: Path) -> None:
    def replace(proto: onnx.ModelProto) -> None:
        next(item for item in proto.metadata_props if item.key == MANIFEST_KEY).value = text

    path = edit_model(bundle, replace, tmp_path / "bundle.onnx")
    with pytest.raises(BundleError):
        Bundle.open(path)


@pytest.mark.parametrize("name", ["logits", "input_name", "class_index_input", "class_index_output", "outputs"])
def test_a_manifest_that_names_what_the_graph_does_not_have(name: str, bundle: Path, tmp_path: Path) -> None:
    wrong = ["nowhere"] if name == "outputs" else "nowhere"
    path = rewritten(bundle, tmp_path / "bundle.onnx", lambda fields: fields.update({name: wrong}))
    assert Bundle.open(path)
    with pytest.raises(BundleError, match="does not have: nowhere"):
        open_session(path)


@pytest.mark.parametrize("name", ["activations", "gradients"])
def test_a_layer_that_the_graph_does_not_have(name: str, bundle: Path, tmp_path: Path) -> None:
    path = rewritten(
        bundle, tmp_path / "bundle.onnx", lambda fields: fields["target_layers"][1].update({name: "nowhere"})
    )
    with pytest.raises(BundleError, match="nowhere"):
        open_session(path)


@pytest.mark.parametrize(
    "change", [{"num_classes": 50}, {"num_classes": 2}, {"input_shape": [3, 8, 8]}, {"logits": "activations/r4"}]
)
def test_a_manifest_that_contradicts_the_graph(change: dict[str, Any], bundle: Path, tmp_path: Path) -> None:
    """What no name tells comes out when the session runs."""
    path = rewritten(bundle, tmp_path / "bundle.onnx", lambda fields: fields.update(change))
    explainer = camrt.Explainer(path, threads=1)
    inputs = np.zeros((1, *explainer.manifest.input_shape), np.float32)
    with pytest.raises(CamrtError):
        explainer.explain(inputs, [-1, explainer.manifest.num_classes - 1])


# The wrong kind of file in the right place


def test_a_plain_model_is_no_bundle(source: Path) -> None:
    for call in (camrt.Explainer, Bundle.open, open_session):
        with pytest.raises(BundleError, match="camrt export"):
            call(source)


def test_a_bundle_is_no_source(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(CamrtError, match="bundle already"):
        camrt.export(bundle, tmp_path / "out.onnx")
    with pytest.raises(CamrtError, match="bundle already"):
        list_layers(bundle)
