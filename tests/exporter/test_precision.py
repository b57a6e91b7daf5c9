"""fp16 and int8 bundles against the fp32 bundle of the same model."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import camrt
from camrt.bundle import Bundle
from camrt.errors import InvalidInputError, UnsupportedModelError
from camrt.evaluation.map_fidelity import FUSED, map_fidelity
from camrt.exporter.calibration import quantized_file
from camrt.exporter.precision import HALF_OPERATORS
from camrt.exporter.rounding import half_bundle
from camrt.runtime import open_session
from tests.exporter.precision_models import embedded_inputs, embedded_source
from tests.exporter.tensorrt_operators import forbidden_operators, source_operators
from tests.models import export_onnx, make_inputs, make_model
from tests.small_network import write_small_network

HALF_STEP = 2.0**-11  # relative rounding error of one half


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("precision")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Bundle:
    source, arguments = embedded_source(folder)
    return camrt.export(source, folder / "fp32.onnx", **arguments)


@pytest.fixture(scope="module")
def half(folder: Path, plain: Bundle) -> Bundle:
    source, arguments = embedded_source(folder)
    return camrt.export(source, folder / "fp16.onnx", precision="fp16", **arguments)


@pytest.fixture(scope="module")
def quantized(folder: Path, plain: Bundle) -> Bundle:
    source, arguments = embedded_source(folder)
    return camrt.export(
        source, folder / "int8.onnx", precision="int8", calibration=embedded_inputs(16, seed=2), **arguments
    )


def element_types(path: Path) -> tuple[onnx.ModelProto, dict[str, int]]:
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, check_type=True)
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return model, types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_the_manifest_says_the_precision(plain: Bundle, half: Bundle, quantized: Bundle) -> None:
    assert [Bundle.open(bundle.path).manifest.precision for bundle in (plain, half, quantized)] == [
        "fp32",
        "fp16",
        "int8",
    ]
    for bundle in (half, quantized):
        assert bundle.manifest.source_sha256 == plain.manifest.source_sha256
        assert bundle.manifest.source_name == plain.manifest.source_name
        assert bundle.manifest.layer_names == plain.manifest.layer_names


def test_half_is_well_typed_and_its_interface_is_float32(plain: Bundle, half: Bundle) -> None:
    onnx.checker.check_model(onnx.load(half.path), full_check=True)
    model, types = element_types(half.path)
    for side in ("input", "output"):
        ours = {value.name: types[value.name] for value in getattr(model.graph, side)}
        theirs = {value.name for value in getattr(onnx.load(plain.path).graph, side)}
        assert set(ours) == theirs
        assert set(ours.values()) <= {TensorProto.FLOAT, TensorProto.INT64}


def test_half_computes_in_half_but_for_the_islands(half: Bundle) -> None:
    model, types = element_types(half.path)
    logits = half.manifest.logits
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 20
    assert {types[node.output[0]] for node in convolutions} == {TensorProto.FLOAT16}
    for node in model.graph.node:
        kinds = {types[name] for name in node.input if name}
        if node.op_type != "Cast" and node.op_type not in HALF_OPERATORS:
            assert TensorProto.FLOAT16 not in kinds or node.op_type == "Shape", node.op_type
        if logits in node.output and node.op_type != "Identity":
            assert kinds == {TensorProto.FLOAT}


def test_half_halves_the_weights(plain: Bundle, half: Bundle) -> None:
    _, types = element_types(half.path)
    sizes = [
        sum(numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(bundle.path).graph.initializer)
        for bundle in (plain, half)
    ]
    assert sizes[1] < 0.6 * sizes[0]
    assert TensorProto.FLOAT16 in types.values()


def test_half_rounds_and_no_more(plain: Bundle, half: Bundle) -> None:
    images, classes, names = embedded_inputs(2), np.array([1, -1]), plain.manifest.layer_names
    exact, rounded = (open_session(bundle.path, "cpu", 1).run(images, classes, names) for bundle in (plain, half))
    difference = np.abs(rounded.logits - exact.logits).max() / np.abs(exact.logits).max()
    assert 0 < difference < 8 * HALF_STEP
    for one, other in zip(rounded.layers, exact.layers, strict=True):
        gap = np.abs(one.activations - other.activations).max() / np.abs(other.activations).max()
        assert 0 < gap < 16 * HALF_STEP
        assert np.corrcoef(one.gradients.ravel(), other.gradients.ravel())[0, 1] > 0.999


def test_gradients_below_the_smallest_half_survive(folder: Path) -> None:
    """A head that divides the logits by a million: without scaling every gradient would round to zero."""
    source = write_small_network(folder / "tiny.onnx")
    model = onnx.load(source)
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.name == "fc":
            small = numpy_helper.to_array(tensor) * np.float32(1e-7)
            model.graph.initializer[index].CopyFrom(numpy_helper.from_array(small, "fc"))
    onnx.save(model, source)
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 40)).astype(np.float32)
    found = []
    for path in (write_small_network(folder / "ordinary.onnx"), source):
        bundle = camrt.export(path, path.with_suffix(".fp16.onnx"), ["stage2"], precision="fp16")
        found.append(open_session(bundle.path, "cpu", 1).run(images, np.array([0, 2]), ["stage2"]).layers[0].gradients)
    ordinary, tiny = found
    assert 0 < np.abs(tiny).max() < 6e-8  # the smallest half
    assert np.abs(tiny / 1e-7 - ordinary).max() < 8 * HALF_STEP * np.abs(ordinary).max()


def test_numbers_beyond_the_largest_half_stay_float32(folder: Path) -> None:
    """A layer whose outputs are millions, which the next layer divides away."""
    source = write_small_network(folder / "large.onnx")
    model = onnx.load(source)
    for index, tensor in enumerate(model.graph.initializer):
        factor = {"w1": 1e6, "b1": 1e6, "w2": 1e-6}.get(tensor.name)
        if factor is not None:
            scaled = numpy_helper.to_array(tensor) * np.float32(factor)
            model.graph.initializer[index].CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    onnx.save(model, source)
    bundle = camrt.export(source, folder / "large_fp16.onnx", ["stage2"], precision="fp16")
    _, types = element_types(bundle.path)
    model = onnx.load(bundle.path)
    kinds = {node.name: types[node.output[0]] for node in model.graph.node if node.name in ("conv1", "conv2", "conv3")}
    assert kinds == {"conv1": TensorProto.FLOAT, "conv2": TensorProto.FLOAT, "conv3": TensorProto.FLOAT16}
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 40)).astype(np.float32)
    outputs = open_session(bundle.path, "cpu", 1).run(images, np.array([0]), ["stage2"])
    assert np.isfinite(outputs.layers[0].gradients).all()
    assert np.abs(outputs.layers[0].gradients).max() > 0


def test_a_graph_starts_at_a_layer_of_a_half_bundle(plain: Bundle, half: Bundle) -> None:
    images = embedded_inputs(1)
    session = open_session(half.path, "cpu", 1)
    outputs = session.run(images, np.array([0]), plain.manifest.layer_names)
    for layer in outputs.layers:
        np.testing.assert_allclose(session.run_from_layer(layer.name, layer.activations), outputs.logits, rtol=1e-5)


def test_the_map_in_the_graph_stays_float32(folder: Path) -> None:
    source = write_small_network(folder / "map.onnx")
    bundle = camrt.export(source, folder / "map_fp16.onnx", ["stage2", "stage3"], emit="map", precision="fp16")
    plain = camrt.export(source, folder / "map_fp32.onnx", ["stage2", "stage3"], emit="map")
    _, types = element_types(bundle.path)
    assert bundle.manifest.saliency is not None
    assert types[bundle.manifest.saliency.output] == TensorProto.FLOAT
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 40)).astype(np.float32)
    from camrt.runtime import open_model

    maps = [
        open_model(path).run({"image": image, "class_index": np.array([1])})[bundle.manifest.saliency.output]
        for path in (bundle.path, plain.path)
    ]
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.99


@pytest.mark.parametrize("name", ["mobilenet_v2", pytest.param("convnext_tiny", marks=pytest.mark.slow)])
def test_half_keeps_the_maps_of_whole_networks(name: str, tmp_path: Path) -> None:
    model = make_model(name, size=64, num_classes=10, images=make_inputs(2, 64, 3))
    source = export_onnx(model, tmp_path / "model.onnx", "torchscript")
    layers = list(model.target_layers[:2])
    plain = camrt.export(source, tmp_path / "fp32.onnx", layers, image_size=(64, 64))
    half = half_bundle(plain.path, tmp_path / "fp16.onnx", make_inputs(4, 64, 5))
    report = map_fidelity(half.path, plain.path, samples=4, methods=["gradcam++"])
    assert report.passed, report
    assert report.logit_error > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
def test_where_half_loses_the_finer_layers_the_check_says_so(name: str, tmp_path: Path) -> None:
    """What docs/engines.md says of these two; where it gets better, the page has to change.

    gradcam++'s weights have a pole where a channel's activations sum to less than 0, as they do at these layers.
    """
    model = make_model(name, size=64, num_classes=10, images=make_inputs(2, 64, 3))
    source = export_onnx(model, tmp_path / "model.onnx", "torchscript")
    plain = camrt.export(source, tmp_path / "fp32.onnx", list(model.target_layers), image_size=(64, 64))
    half = half_bundle(plain.path, tmp_path / "fp16.onnx", make_inputs(4, 64, 5))
    report = map_fidelity(half.path, plain.path, samples=4, methods=["gradcam++", "layercam"])
    fused = {row.method: row.mean for row in report.rows if row.layer == FUSED}
    assert fused["gradcam++"] < report.threshold == 0.99 < fused["layercam"]
    assert not report.passed
    assert report.top1_agreement == 1.0
    command = [sys.executable, "-m", "camrt", "check", str(half.path), "--against", str(plain.path), "--samples", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "FAILED: fused maps of gradcam++ need a mean of 0.99" in done.stdout


def test_half_keeps_gradcam_plus_plus_where_activations_are_not_negative(tmp_path: Path) -> None:
    """The same network at the ReLU6 outputs that follow its bottlenecks: there is no pole for rounding to move."""
    model = make_model("mobilenet_v2", size=64, num_classes=10, images=make_inputs(2, 64, 3))
    source = export_onnx(model, tmp_path / "model.onnx", "torchscript")
    layers = ["features.18", "features.14.conv.0", "features.7.conv.0", "features.4.conv.0"]
    plain = camrt.export(source, tmp_path / "fp32.onnx", layers, image_size=(64, 64))
    half = half_bundle(plain.path, tmp_path / "fp16.onnx", make_inputs(4, 64, 5))
    report = map_fidelity(half.path, plain.path, samples=4, methods=["gradcam++"])
    assert min(row.mean for row in report.rows) > 0.998


def test_int8_quantises_the_forward_part_and_differentiates_in_float32(quantized: Bundle) -> None:
    model, types = element_types(quantized.path)
    producers = {output: node for node in model.graph.node for output in node.output}
    forward = [node for node in model.graph.node if node.op_type == "Conv" and not node.name.startswith("camrt/")]
    assert forward
    for node in forward:
        assert [producers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        assert len(node.input) < 3 or node.input[2] not in producers  # no bias of 32-bit integers
    zero_points = [
        numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name.endswith("zero_point")
    ]
    assert zero_points
    assert all((zero == 0).all() for zero in zero_points)  # what TensorRT takes
    assert {types[layer.gradients] for layer in quantized.manifest.target_layers} == {TensorProto.FLOAT}


def test_tensorrt_takes_every_operator(half: Bundle, quantized: Bundle) -> None:
    for bundle in (half, quantized):
        assert forbidden_operators(bundle.path) == []
        assert source_operators(bundle.path) == []


def test_int8_keeps_the_default_maps(plain: Bundle, quantized: Bundle) -> None:
    report = map_fidelity(quantized.path, plain.path, samples=4, methods=["gradcam++"])
    assert report.passed, report
    assert report.top1_agreement == 1.0
    assert 1e-3 < report.logit_error < 0.1  # rounded to 8 bits, and no worse


def test_the_quantiser_leaves_logging_alone(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_small_network(folder / "logging.onnx")
    before = list(logging.root.handlers)
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 40)).astype(np.float32)
    with quantized_file(source, "image", images) as made:
        assert made.is_file()
    assert not made.exists()
    assert logging.root.manager.disable == logging.NOTSET
    assert logging.root.handlers == before
    assert not caplog.records


def test_pictures_without_effect_are_refused(folder: Path) -> None:
    source, arguments = embedded_source(folder)
    with pytest.raises(InvalidInputError, match="no effect"):
        camrt.export(source, folder / "none.onnx", calibration=embedded_inputs(1, seed=2), **arguments)


def test_int8_needs_pictures(plain: Bundle, folder: Path) -> None:
    source, arguments = embedded_source(folder)
    with pytest.raises(InvalidInputError, match="calibration=FOLDER"):
        camrt.export(source, folder / "none.onnx", precision="int8", **arguments)
    with pytest.raises(InvalidInputError, match="no image"):
        camrt.export(source, folder / "none.onnx", precision="int8", calibration=folder / "empty", **arguments)
    with pytest.raises(InvalidInputError, match="shape"):
        camrt.export(source, folder / "none.onnx", precision="int8", calibration=np.zeros((1, 3, 5, 5)), **arguments)
    ragged, holes = [np.zeros((3, 5, 5)), np.zeros((3, 5, 6))], np.full((1, 3, 64, 64), np.nan)
    for wrong, match in ((ragged, "no array"), (holes, "not finite")):
        with pytest.raises(InvalidInputError, match=match):
            camrt.export(source, folder / "none.onnx", precision="int8", calibration=wrong, **arguments)
    assert not (folder / "none.onnx").exists()


def test_what_cannot_be_rounded_is_refused(folder: Path, half: Bundle, plain: Bundle) -> None:
    source, arguments = embedded_source(folder)
    with pytest.raises(InvalidInputError, match="fp32, fp16 or int8"):
        camrt.export(source, folder / "none.onnx", precision="fp8", **arguments)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="fp16 already"):
        half_bundle(half.path, folder / "none.onnx")
    with pytest.raises(UnsupportedModelError, match="second_order"):
        camrt.export(
            write_small_network(folder / "second.onnx"),
            folder / "none.onnx",
            ["stage3"],
            precision="fp16",
            second_order=True,
        )
    assert not (folder / "none.onnx").exists()


def test_a_model_of_halves_is_refused(folder: Path) -> None:
    weights = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float16), "w")
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], name="c"),
        helper.make_node("Relu", ["c"], ["r"], name="r"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="g"),
        helper.make_node("Flatten", ["g"], ["logits"], name="f"),
    ]
    ends = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT16, ["N", 3, 8, 8]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT16, ["N", 4]),
    ]
    graph = helper.make_graph(nodes, "halves", ends[:1], ends[1:], [weights])
    path = folder / "halves.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    with pytest.raises(UnsupportedModelError, match="Leave precision out"):
        camrt.export(path, folder / "none.onnx", ["r"], precision="fp16")
