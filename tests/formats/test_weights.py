"""Weights in every form that a file can hold them in: sparse, half precision, outside the file, large."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import camrt
from camrt.errors import InvalidModelError
from tests.exporter.graphs import GraphWriter, small_classifier
from tests.exporter.tensorrt_operators import forbidden_operators
from tests.formats.checks import edited, exported, images, run
from tests.models import export_onnx, make_inputs, make_model

# Sparse


def sparse_tensor(array: np.ndarray, name: str, coordinates: bool) -> onnx.SparseTensorProto:
    kept = np.flatnonzero(np.abs(array.ravel()) > 0.1)
    values = numpy_helper.from_array(array.ravel()[kept], name)
    indices = np.stack(np.unravel_index(kept, array.shape), 1) if coordinates else kept
    return helper.make_sparse_tensor(values, numpy_helper.from_array(indices.astype(np.int64), "i"), list(array.shape))


def weight_of(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def made_sparse(coordinates: bool, as_constant: bool) -> Callable[[onnx.ModelProto], None]:
    def edit(proto: onnx.ModelProto) -> None:
        tensor = weight_of(proto, "w2")
        sparse = sparse_tensor(numpy_helper.to_array(tensor), "w2", coordinates)
        proto.graph.initializer.remove(tensor)
        if as_constant:
            proto.graph.node.insert(0, helper.make_node("Constant", [], ["w2"], "constant", sparse_value=sparse))
        else:
            proto.graph.sparse_initializer.append(sparse)

    return edit


@pytest.mark.parametrize("as_constant", [False, True])
@pytest.mark.parametrize("coordinates", [False, True])
def test_sparse_weights(coordinates: bool, as_constant: bool, tmp_path: Path) -> None:
    def zero_small(proto: onnx.ModelProto) -> None:
        tensor = weight_of(proto, "w2")
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.where(np.abs(array) > 0.1, array, 0).astype(np.float32), "w2"))

    proto = onnx.load(small_classifier(tmp_path / "model.onnx"))
    dense = exported(edited(proto, tmp_path / "dense.onnx", zero_small))
    sparse = exported(edited(proto, tmp_path / "sparse.onnx", made_sparse(coordinates, as_constant)))
    inputs = images(dense, 2)
    for mine, theirs in zip(run(sparse, inputs, [0, 1]).layers, run(dense, inputs, [0, 1]).layers, strict=True):
        np.testing.assert_array_equal(mine.activations, theirs.activations)
        np.testing.assert_array_equal(mine.gradients, theirs.gradients)


@pytest.mark.parametrize(
    ("dims", "indices"), [([4, 4, 3, 3], [0, 500]), ([4, 4, 3, 3], [-1, 2]), ([2**40, 2**20], [0, 1]), ([0, 3], [0, 1])]
)
def test_sparse_weights_that_cannot_be(dims: list[int], indices: list[int], tmp_path: Path) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        values = helper.make_tensor("w2", TensorProto.FLOAT, [2], [1.0, 2.0])
        where = helper.make_tensor("i", TensorProto.INT64, [2], indices)
        proto.graph.initializer.remove(weight_of(proto, "w2"))
        proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, dims))

    path = edited(onnx.load(small_classifier(tmp_path / "model.onnx")), tmp_path / "sparse.onnx", edit)
    with pytest.raises(InvalidModelError, match="sparse weight 'w2'"):
        exported(path)


# Half precision


def to_half(proto: onnx.ModelProto, keep_types: bool) -> None:
    """float16 throughout, or with float32 inputs and outputs and a Cast behind and in front of them."""
    held = [item.t for node in proto.graph.node for item in node.attribute if node.op_type == "Constant"]
    for tensor in (*proto.graph.initializer, *held):
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    ends = (*proto.graph.input, *proto.graph.output)
    del proto.graph.value_info[:]
    if not keep_types:
        for value in ends:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
        return
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"{name}_half" if name in {value.name for value in ends} else name for name in names]
    image, logits = proto.graph.input[0].name, proto.graph.output[0].name
    proto.graph.node.insert(0, helper.make_node("Cast", [image], [f"{image}_half"], "down", to=TensorProto.FLOAT16))
    proto.graph.node.append(helper.make_node("Cast", [f"{logits}_half"], [logits], "up", to=TensorProto.FLOAT))


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A float32 network whose weights are float16 numbers, and an image that it is well-conditioned for."""
    inputs = make_inputs(1, 96, 5)
    model = make_model("mobilenet_v2", size=96, num_classes=10, images=inputs)
    with torch.no_grad():
        for tensor in (*model.module.parameters(), *model.module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.half().float())
    return export_onnx(model, tmp_path_factory.mktemp("half") / "single.onnx", "torchscript"), inputs


@pytest.mark.parametrize("keep_types", [False, True])
def test_a_whole_network_in_half_precision(keep_types: bool, rounded: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    """Its gradients and map against those in float32 of the same weights: a few roundings of 2^-11 apart."""
    source, inputs = rounded
    half = edited(onnx.load(source), tmp_path / "half.onnx", lambda copy: to_half(copy, keep_types))
    bundle, single = exported(half), exported(source)
    assert (bundle.manifest.precision, single.manifest.precision) == ("fp16", "fp32")
    assert forbidden_operators(bundle.path) == []
    mine, theirs = run(bundle, inputs, [3]), run(single, inputs, [3])
    assert mine.logits.dtype == np.float32
    for layer, exact in zip(mine.layers, theirs.layers, strict=True):
        a, b = layer.gradients.ravel().astype(np.float64), exact.gradients.ravel().astype(np.float64)
        assert np.isfinite(a).all()
        assert a @ b / np.sqrt((a @ a) * (b @ b)) > 0.98
    maps = [camrt.Explainer(item.path, threads=1).explain(inputs, [3])[0].saliency_map for item in (bundle, single)]
    assert maps[0].dtype == np.float32
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.95


def test_small_gradients_do_not_vanish_in_half_precision(tmp_path: Path) -> None:
    """An average over 112 x 112 positions divides by 12544: the gradients lie below float16's smallest normal number."""
    w = GraphWriter()
    value = w.add("Relu", "r2", w.conv("c2", w.add("Relu", "r1", w.conv("c1", "image", (3, 6), 3, 2)), (6, 6)))
    w.classify(value, 6)
    source = w.save(tmp_path / "single.onnx", ("N", 3, 224, 224))
    half = edited(onnx.load(source), tmp_path / "half.onnx", lambda copy: to_half(copy, False))
    bundle, single = exported(half, ["r2"]), exported(source, ["r2"])
    inputs = images(bundle)
    mine, theirs = run(bundle, inputs, [3]).layers[0].gradients, run(single, inputs, [3]).layers[0].gradients
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-3 * np.abs(theirs).max())
