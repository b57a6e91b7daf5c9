from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from camrt.bundle import MANIFEST_KEY, Bundle, Manifest, TargetLayer, file_sha256
from camrt.errors import BundleError, CamrtError, InvalidModelError, LayerNotFoundError


def manifest(**changes: object) -> Manifest:
    layers = tuple(
        TargetLayer(name, f"/{name}/out", (channels, side, side), "NCHW", f"activations/{name}", f"gradients/{name}")
        for name, channels, side in (("layer4", 64, 7), ("layer3", 32, 14))
    )
    fields: dict[str, object] = {
        "camrt_version": "0.1.0",
        "source_name": "net.onnx",
        "source_sha256": "00" * 32,
        "input_name": "image",
        "input_shape": (3, 224, 224),
        "logits": "logits",
        "head": "softmax",
        "num_classes": 2,
        "outputs": ("probabilities",),
        "target_layers": layers,
        "class_names": ("Kreis ○", "square"),
        "preprocessing": {"size": [224, 224], "mean": [0.5, 0.5, 0.5]},
    }
    return Manifest(**{**fields, **changes})


def model(metadata: dict[str, str]) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    weights = helper.make_tensor("w", TensorProto.FLOAT, [5000], [0.5] * 5000)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:], [weights])
    proto = helper.make_model(graph)
    helper.set_model_props(proto, metadata)
    return proto


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    path = tmp_path / "bundle.onnx"
    onnx.save(model({"author": "someone", MANIFEST_KEY: manifest().to_json(), "empty": ""}), path)
    return path


def test_manifest_json_round_trip() -> None:
    assert Manifest.from_json(manifest().to_json()) == manifest()
    bare = manifest(class_names=None, preprocessing=None, probabilities="p", input_layout="NHWC")
    assert Manifest.from_json(bare.to_json()) == bare


def test_open_reads_the_manifest_that_onnx_wrote(bundle_path: Path) -> None:
    bundle = Bundle.open(str(bundle_path))
    assert bundle.path == bundle_path
    assert bundle.manifest == manifest()


def test_layers_and_classes() -> None:
    assert manifest().layer_names == ("layer4", "layer3")
    assert manifest().layer("layer3").shape == (32, 14, 14)
    assert manifest().class_name(0) == "Kreis ○"
    assert manifest(class_names=None).class_name(0) is None
    with pytest.raises(LayerNotFoundError, match="'layer9'; it has layer4, layer3"):
        manifest().layer("layer9")
    with pytest.raises(BundleError, match="3 class names for a model of 2 classes"):
        manifest(class_names=("a", "b", "c"))


def test_a_model_without_manifest_says_how_to_make_a_bundle(tmp_path: Path) -> None:
    onnx.save(model({"author": "someone"}), tmp_path / "plain.onnx")
    with pytest.raises(BundleError, match="camrt export"):
        Bundle.open(tmp_path / "plain.onnx")


@pytest.mark.parametrize("content", [b"", b"This is a text file, not a model.\n" * 20, b"\x00" * 64, b"\xff" * 64])
def test_files_that_are_no_models(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match=r"text\.onnx is not an ONNX file, or is truncated"):
        Bundle.open(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(InvalidModelError, match="Cannot read"):
            Bundle.open(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_bundles(share: float, bundle_path: Path) -> None:
    content = bundle_path.read_bytes()
    bundle_path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises((InvalidModelError, BundleError)):
        Bundle.open(bundle_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ("null", "damaged"),
        ("{}", "damaged"),
        (json.dumps({"schema_version": 2}), "schema version 2; this camrt reads version 1"),
        (json.dumps({"schema_version": 1}), "damaged"),
    ],
)
def test_damaged_manifests(text: str, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        Manifest.from_json(text)
    assert "Export the model again" in caught.value.next_step


REQUIRED = [field.name for field in dataclasses.fields(TargetLayer) if field.default is dataclasses.MISSING]


def test_a_layer_of_an_earlier_version_has_none_of_the_later_fields() -> None:
    fields = json.loads(manifest().to_json())
    for layer in fields["target_layers"]:
        for name in layer.keys() - set(REQUIRED):
            del layer[name]
    assert Manifest.from_json(json.dumps(fields)) == manifest()


@pytest.mark.parametrize("field", REQUIRED)
def test_a_layer_without_a_field(field: str) -> None:
    fields = json.loads(manifest().to_json())
    del fields["target_layers"][0][field]
    with pytest.raises(BundleError, match="damaged"):
        Manifest.from_json(json.dumps(fields))


@given(st.binary(max_size=200))
def test_random_bytes_raise_a_typed_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.onnx"
    path.write_bytes(content)
    with pytest.raises(CamrtError, match=r"random\.onnx"):
        Bundle.open(path)


def test_the_digest_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert file_sha256(path) == hashlib.sha256(b"content").hexdigest()
