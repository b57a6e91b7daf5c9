"""The saliency map that the graph computes, against the kernels."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

import camrt
from camrt.bundle import SaliencyOutput
from camrt.errors import InvalidInputError, MethodNotFoundError, UnsupportedModelError
from camrt.exporter import map_graph
from camrt.exporter.map_graph import MapLayer, append_saliency_map
from camrt.exporter.op_builder import OpBuilder
from camrt.kernels.backend import CHANNEL_RULES, FUSIONS, ORDERS, PIXEL_RULES
from camrt.kernels.native_backend import NativeBackend
from camrt.kernels.reference import ReferenceBackend
from camrt.runtime import open_session
from tests.exporter.graphs import (
    channels_last_classifier,
    edit_model,
    mobile_classifier,
    plain_classifier,
    residual_classifier,
    small_classifier,
)
from tests.exporter.tensorrt_operators import forbidden_operators
from tests.models import ARCHITECTURES, export_onnx, make_inputs, make_model
from tests.small_network import HEIGHT, WIDTH, write_small_network

RULES = (*CHANNEL_RULES, *PIXEL_RULES)
LAYERS = ((16, 3, 2), (8, 7, 5), (4, 14, 9))  # (C, h, w)
SIZE = (31, 23)
QUIET = 3


def test_the_graph_knows_the_names_of_the_kernels() -> None:
    assert set(map_graph.BASE_METHODS) == set(RULES)
    assert set(map_graph.FUSIONS) == set(FUSIONS)
    assert map_graph.ORDERS == ORDERS


def map_session(saliency: SaliencyOutput, opset: int = 18, dtype: int = 1) -> onnxruntime.InferenceSession:
    """A graph that is nothing but the map of LAYERS."""
    element = ir.DataType(dtype)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="map")
    layers = []
    for index, shape in enumerate(LAYERS):
        pair = [
            ir.Value(name=f"{kind}{index}", type=ir.TensorType(element), shape=ir.Shape([batch, *shape]))
            for kind, batch in (("a", "N"), ("g", "M"))
        ]
        graph.inputs.extend(pair)
        layers.append(MapLayer(*pair, shape))
    append_saliency_map(OpBuilder(graph, element), layers, SIZE, saliency)
    proto = ir.to_proto(ir.Model(graph, ir_version=9))
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    return onnxruntime.InferenceSession(proto.SerializeToString(), options)


def arrays(images: int, classes: int, seed: int = 0, scale: float = 1e-2) -> dict[str, np.ndarray]:
    """Activations after a ReLU, and gradients of both signs, of every layer."""
    rng = np.random.default_rng(seed)
    made = {}
    for index, shape in enumerate(LAYERS):
        made[f"a{index}"] = np.maximum(rng.standard_normal((images, *shape)), 0).astype(np.float32)
        made[f"g{index}"] = (rng.standard_normal((classes, *shape)) * scale).astype(np.float32)
    return made


def kernels(feeds: dict[str, np.ndarray], saliency: SaliencyOutput) -> tuple[np.ndarray, np.ndarray]:
    backend, count = ReferenceBackend(), range(len(LAYERS))
    maps = backend.layer_maps([feeds[f"a{i}"] for i in count], [feeds[f"g{i}"] for i in count], saliency.base_method)
    return backend.fuse_layers(maps, SIZE, saliency.fusion, saliency.order)


@pytest.mark.parametrize(
    ("base_method", "fusion", "order"),
    [
        *((rule, "product", "normalize_twice") for rule in RULES),
        *(("gradcam++", fusion, "normalize_twice") for fusion in FUSIONS[1:]),
        ("layercam", "log_exp", "resize_once"),
        ("gradcam", "product", "resize_once"),
    ],
)
@pytest.mark.parametrize(("images", "classes"), [(1, 3), (2, 2)])
def test_equal_to_the_kernels(base_method: str, fusion: str, order: str, images: int, classes: int) -> None:
    saliency = map_graph.checked_saliency(base_method, fusion, order)
    feeds = arrays(images, classes)
    found, degenerate = map_session(saliency).run(None, feeds)
    expected, flags = kernels(feeds, saliency)
    assert found.dtype == np.float32
    assert expected.max() > 0.9
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(degenerate, flags)


@pytest.mark.parametrize("opset", [17, 21])
def test_every_opset(opset: int) -> None:
    saliency = map_graph.checked_saliency(None, None, None)
    feeds = arrays(2, 2)
    found = map_session(saliency, opset).run(None, feeds)[0]
    np.testing.assert_allclose(found, kernels(feeds, saliency)[0], rtol=0, atol=1e-5)


def test_half_precision_layers_give_a_single_precision_map() -> None:
    saliency = map_graph.checked_saliency(None, None, None)
    half = {name: array.astype(np.float16) for name, array in arrays(1, 2).items()}
    found = map_session(saliency, dtype=TensorProto.FLOAT16).run(None, half)[0]
    single = {name: array.astype(np.float32) for name, array in half.items()}
    np.testing.assert_allclose(found, kernels(single, saliency)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("damage", ["zero", "constant", "nan", "infinite", "negative"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_degenerate_layers_count_as_zero_and_are_reported(damage: str, fusion: str) -> None:
    """The middle layer of the second class says nothing; the first class is as it was."""
    feeds = arrays(1, 2)
    gradients = feeds["g1"]
    if damage == "constant":
        feeds["a1"] = np.ones_like(feeds["a1"])
        gradients[:] = gradients.mean(axis=(2, 3), keepdims=True)
    elif damage == "negative":
        gradients[1] = -np.abs(gradients[1])
    else:
        gradients[1] = {"zero": 0, "nan": gradients[1], "infinite": np.inf}[damage]
        if damage == "nan":
            gradients[1, 3, 2, 1] = np.nan
    saliency = map_graph.checked_saliency("gradcam++", fusion, None)
    found, degenerate = map_session(saliency).run(None, feeds)
    expected, flags = kernels(feeds, saliency)
    assert flags[1, 1]
    np.testing.assert_array_equal(degenerate, flags)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@given(length=st.integers(1, 300), wanted=st.integers(1, 1300))
def test_scales_give_the_size_that_was_asked_for(length: int, wanted: int) -> None:
    scale = map_graph._scale(length, wanted)
    assert np.floor(np.float32(length) * scale) == np.floor(length * float(scale)) == wanted
    assert scale == pytest.approx(wanted / length, rel=3e-7)


def check_bundle_map(source: Path, images: np.ndarray, folder: Path) -> None:
    """One run of the whole bundle: its map is what the kernels make of its activations and gradients."""
    bundle = camrt.export(source, folder / "map.onnx", emit="map")
    assert forbidden_operators(bundle.path) == []
    manifest, backend = bundle.manifest, NativeBackend(1)
    session = onnxruntime.InferenceSession(bundle.path, providers=["CPUExecutionProvider"])
    names = [name for layer in manifest.target_layers for name in (layer.activations, layer.gradients)]
    for batch, classes in ((images, [3, -1]), (images[:1], [-1, -2, 4])):
        feeds = {manifest.input_name: batch, "class_index": np.array(classes)}
        maps, degenerate, *arrays = session.run(["saliency_map", "saliency_map_degenerate", *names], feeds)
        layer_maps = backend.layer_maps(arrays[::2], arrays[1::2], "gradcam++")
        expected, flags = backend.fuse_layers(layer_maps, manifest.input_shape[1:])
        assert expected.max() > 0.9
        np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(degenerate, flags)


@pytest.mark.parametrize(
    ("write", "size"),
    [
        (residual_classifier, (32, 32)),
        (mobile_classifier, (32, 32)),
        (plain_classifier, (64, 64)),
        (channels_last_classifier, (16, 24)),
    ],
)
def test_small_networks(write: Callable[[Path], Path], size: tuple[int, int], tmp_path: Path) -> None:
    images = np.random.default_rng(1).standard_normal((2, 3, *size)).astype(np.float32)
    check_bundle_map(write(tmp_path / "model.onnx"), images, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str, exporter: str, tmp_path: Path) -> None:
    images = make_inputs(2, 96, 5)
    model = make_model(name, size=96, num_classes=10, images=images)
    check_bundle_map(export_onnx(model, tmp_path / "model.onnx", exporter), images, tmp_path)


def test_the_manifest_says_how_the_map_is_made(tmp_path: Path) -> None:
    source = small_classifier(tmp_path / "model.onnx", opset=17)
    arguments = {"base_method": "layercam", "fusion": "mean", "order": "resize_once"}
    made = camrt.export(source, tmp_path / "map.onnx", emit="map", **arguments)
    read = camrt.Bundle.open(made.path).manifest
    assert read == made.manifest
    assert read.saliency == SaliencyOutput("saliency_map", "saliency_map_degenerate", **arguments)
    outputs = {value.name: value for value in onnx.load(made.path).graph.output}
    dims = [dim.dim_param or dim.dim_value for dim in outputs["saliency_map"].type.tensor_type.shape.dim]
    assert dims == ["M", 16, 16]
    assert outputs["saliency_map"].type.tensor_type.elem_type == TensorProto.FLOAT
    assert camrt.export(source, tmp_path / "plain.onnx").manifest.saliency is None


def test_the_runtime_cuts_the_map_off(tmp_path: Path) -> None:
    """What the Explainer runs is the same with and without the map in the file."""
    source = write_small_network(tmp_path / "model.onnx")
    paths = [camrt.export(source, tmp_path / f"{emit}.onnx", emit=emit).path for emit in ("gradients", "map")]
    images = np.random.default_rng(0).standard_normal((2, 3, HEIGHT, WIDTH)).astype(np.float32)
    sessions = [open_session(path) for path in paths]
    names = sessions[0].manifest.layer_names
    plain, with_map = (session.run(images, np.array([1, -1]), names) for session in sessions)
    for left, right in zip(plain.layers, with_map.layers, strict=True):
        np.testing.assert_array_equal(left.activations, right.activations)
        np.testing.assert_array_equal(left.gradients, right.gradients)
    graphs = [session._model.pruned(session._explaining(names))[0] for session in sessions]
    counts = [len(onnx.load_model_from_string(graph).graph.node) for graph in graphs]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("place", ["output", "value"])
def test_a_source_that_uses_the_name(place: str, tmp_path: Path) -> None:
    """An output of that name is the model's interface, a value inside is renamed."""
    old = "logits" if place == "output" else "r2"

    def rename(proto: onnx.ModelProto) -> None:
        for node in proto.graph.node:
            for names in (node.input, node.output):
                names[:] = ["saliency_map" if name == old else name for name in names]
        if place == "output":
            proto.graph.output[0].name = "saliency_map"

    source = edit_model(small_classifier(tmp_path / "model.onnx"), rename)
    if place == "output":
        with pytest.raises(UnsupportedModelError, match="saliency_map"):
            camrt.export(source, tmp_path / "map.onnx", emit="map")
    else:
        bundle = camrt.export(source, tmp_path / "map.onnx", emit="map")
        assert camrt.Explainer(bundle.path).explain(np.ones((1, 3, 16, 16), np.float32))


def test_names_that_a_graph_cannot_compute(tmp_path: Path) -> None:
    source = small_classifier(tmp_path / "model.onnx")
    for name in ("base_method", "fusion", "order"):
        with pytest.raises(MethodNotFoundError, match="Choose one of"):
            camrt.export(source, tmp_path / "map.onnx", emit="map", **{name: "scorecam"})
    with pytest.raises(InvalidInputError, match='emit="map"'):
        camrt.export(source, tmp_path / "map.onnx", base_method="gradcam")
    with pytest.raises(InvalidInputError, match="gradients"):
        camrt.export(source, tmp_path / "map.onnx", emit="heat")


def test_a_graph_of_standard_operators_only(tmp_path: Path) -> None:
    bundle = camrt.export(small_classifier(tmp_path / "model.onnx"), tmp_path / "map.onnx", emit="map")
    proto = onnx.load(bundle.path)
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    onnx.checker.check_model(proto, full_check=True)


def test_the_page_of_the_user_guide_runs_without_camrt(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "user_guide.md").read_text(encoding="utf-8")
    section = page[page.index("### The map in the graph") : page.index("### Speed without camrt")]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    camrt.export(small_classifier(tmp_path / "model.onnx", size=(224, 224)), tmp_path / "map.onnx", emit="map")
    blocked = f"import sys\nsys.modules['camrt'] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.endswith("(224, 224) 1.00 0 layers say nothing")
    assert first.split()[0] != second.split()[0]
