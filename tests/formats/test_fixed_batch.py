"""Files with the batch written into them: it becomes dynamic, and every image still gets what it got alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from camrt.errors import UnsupportedModelError
from camrt.runtime import open_model, open_session
from tests.exporter.graphs import GraphWriter
from tests.exporter.tensorrt_operators import forbidden_operators
from tests.formats.checks import check_batch, check_gradients, exported, images

Builder = Callable[[Path, int], Path]


def stem(w: GraphWriter) -> str:
    value = w.add("LeakyRelu", "r1", w.conv("c1", "image", (3, 6), 3, 2), alpha=0.1)
    return w.add("LeakyRelu", "r2", w.conv("c2", value, (6, 6)), alpha=0.1)


def head(w: GraphWriter, value: str, channels: int) -> None:
    w.add("Gemm", "logits", value, w.weight("fc", 5, channels), w.weight("fc_bias", 5), transB=1)


def class_token(path: Path, batch: int) -> Path:
    """Tokens (N, L, C) with a constant token in front, as ViT has it, then one self-attention over folded heads."""
    w = GraphWriter()
    value = w.conv("c3", stem(w), (6, 8), 1, 2)
    flat = w.add("Reshape", "tokens", value, w.constant("tokens_shape", np.array([batch, 8, 64])))
    tokens = w.add("Transpose", "sequence", flat, perm=[0, 2, 1])
    token = w.constant("class_token", np.repeat(w.rng.standard_normal((1, 1, 8)), batch, 0).astype(np.float32))
    tokens = w.add("Concat", "with_token", token, tokens, axis=1)
    first = w.add("Transpose", "first", tokens, perm=[1, 0, 2])
    heads = w.add("Reshape", "heads", first, w.constant("heads_shape", np.array([65, batch * 2, 4])))
    query = w.add("Transpose", "query", heads, perm=[1, 0, 2])
    scores = w.add("MatMul", "scores", query, w.add("Transpose", "key", heads, perm=[1, 2, 0]))
    mixed = w.add("MatMul", "mixed", w.add("Softmax", "attention", scores, axis=-1), query)
    back = w.add("Transpose", "back", mixed, perm=[1, 0, 2])
    merged = w.add("Reshape", "merged", back, w.constant("merged_shape", np.array([65, batch, 8])))
    out = w.add("Transpose", "out", merged, perm=[1, 0, 2])
    taken = w.add("Gather", "taken", out, w.constant("zero", np.array(0)), axis=1)
    head(w, taken, 8)
    return w.save(path, (batch, 3, 32, 32))


def expanded_gate(path: Path, batch: int) -> Path:
    """Squeeze and excitation whose gate is expanded to a constant shape."""
    w = GraphWriter()
    value = stem(w)
    pooled = w.add("ReduceMean", "pooled", value, w.constant("axes", np.array([2, 3])), keepdims=0)
    gate = w.add("Sigmoid", "gate", w.add("MatMul", "excite", pooled, w.weight("excite_weight", 6, 6)))
    gate = w.add("Reshape", "gate4", gate, w.constant("gate_shape", np.array([batch, 6, 1, 1])))
    gate = w.add("Expand", "expanded", gate, w.constant("full", np.array([batch, 6, 16, 16])))
    w.classify(w.add("Mul", "scaled", value, gate), 6)
    return w.save(path, (batch, 3, 32, 32))


def resized(path: Path, batch: int) -> Path:
    w = GraphWriter()
    sizes = w.constant("sizes", np.array([batch, 6, 24, 20]))
    value = w.add("Resize", "resized", stem(w), "", "", sizes, mode="linear")
    w.classify(value, 6)
    return w.save(path, (batch, 3, 32, 32))


def repeated_constant(path: Path, batch: int) -> Path:
    """A position embedding with one equal row an image, and a channel shuffle of five axes."""
    w = GraphWriter()
    value = w.add("Reshape", "groups", stem(w), w.constant("groups_shape", np.array([batch, 2, 3, 16, 16])))
    value = w.add("Transpose", "shuffle", value, perm=[0, 2, 1, 3, 4])
    value = w.add("Reshape", "shuffled", value, w.constant("back_shape", np.array([batch, 6, 16, 16])))
    position = np.repeat(w.rng.standard_normal((1, 6, 16, 16)), batch, 0).astype(np.float32)
    value = w.add("Add", "placed", value, w.constant("position", position))
    flat = w.add("Flatten", "flat", w.add("AveragePool", "pool", value, kernel_shape=[4, 4], strides=[4, 4]))
    head(w, flat, 96)
    return w.save(path, (batch, 3, 32, 32))


def sliced(path: Path, batch: int) -> Path:
    """x[:, 1:, :, 0] as torch writes it: the axis of the images is sliced from 0 to beyond any end."""
    w = GraphWriter()
    value, numbers = stem(w), {name: w.constant(name, np.array([n])) for name, n in
                               {"n0": 0, "n1": 1, "n3": 3, "all": 2**63 - 1}.items()}  # fmt: skip
    value = w.add("Slice", "images", value, numbers["n0"], numbers["all"], numbers["n0"])
    value = w.add("Slice", "channels", value, numbers["n1"], numbers["all"], numbers["n1"])
    value = w.add("Gather", "column", value, w.constant("index", np.array(0)), axis=3)
    head(w, w.add("Flatten", "flat", value), 80)
    return w.save(path, (batch, 3, 32, 32))


def windows(path: Path, batch: int) -> Path:
    """Rows of four positions folded into the batch, as window attention does, and taken out again."""
    w = GraphWriter()
    last = w.add("Transpose", "last", stem(w), perm=[0, 2, 3, 1])
    folded = w.add("Reshape", "folded", last, w.constant("folded_shape", np.array([batch * 64, 4, 6])))
    mixed = w.add("MatMul", "mixed", w.constant("mixing", w.rng.standard_normal((4, 4)).astype(np.float32)), folded)
    mixed = w.add("Softmax", "soft", mixed, axis=-1)
    whole = w.add("Reshape", "whole", mixed, w.constant("whole_shape", np.array([batch, 16, 16, 6])))
    w.classify(w.add("Transpose", "first", whole, perm=[0, 3, 1, 2]), 6)
    return w.save(path, (batch, 3, 32, 32))


def expanded_constants(path: Path, batch: int) -> Path:
    """A position embedding and a class token of one row that Expand repeats for the batch of the file."""
    w = GraphWriter()
    tokens = w.add("Reshape", "flat", stem(w), w.constant("flat_shape", np.array([batch, 6, 256])))
    rows = w.add("Expand", "rows", w.weight("position", 6, 256), w.constant("rows_shape", np.array([batch, 1, 1])))
    tokens = w.add("Transpose", "tokens", w.add("Add", "placed", tokens, rows), perm=[0, 2, 1])
    token = w.add("Expand", "token", w.weight("cls", 1, 1, 6), w.constant("token_shape", np.array([batch, 1, 6])))
    tokens = w.add("Softmax", "soft", w.add("Concat", "all", token, tokens, axis=1), axis=1)
    head(w, w.add("ReduceMax", "peak", tokens, w.constant("positions", np.array([1])), keepdims=0), 6)
    return w.save(path, (batch, 3, 32, 32))


BUILDERS = [class_token, expanded_constants, expanded_gate, resized, repeated_constant, sliced, windows]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_the_batch_becomes_dynamic(build: Builder, batch: int, tmp_path: Path) -> None:
    source = build(tmp_path / "source.onnx", batch)
    bundle = exported(source, ["r2"])
    assert forbidden_operators(bundle.path) == []
    inputs = images(bundle, 2 * batch)
    expected = [
        open_model(source, threads=1).run({"image": inputs[start : start + batch]})["logits"] for start in (0, batch)
    ]
    actual = open_session(bundle.path, threads=1).predict(inputs)
    np.testing.assert_allclose(actual, np.concatenate(expected), rtol=0, atol=1e-6 * np.abs(actual).max())
    check_batch(bundle)
    if batch == 1:
        check_gradients(source, bundle)


def mixes_images(w: GraphWriter) -> str:
    flat = w.add("Flatten", "flat", w.add("GlobalAveragePool", "average", stem(w)))
    mean = w.add("ReduceMean", "over_images", flat, w.constant("axis", np.array([0])), keepdims=1)
    return w.add("Sub", "centred", flat, mean)


def takes_one_image(w: GraphWriter) -> str:
    flat = w.add("Flatten", "flat", w.add("GlobalAveragePool", "average", stem(w)))
    one = w.add("Gather", "one", flat, w.constant("zero", np.array(0)), axis=0)
    return w.add("Unsqueeze", "row", one, w.constant("axis", np.array([0])))


def stacks_images(w: GraphWriter) -> str:
    flat = w.add("Flatten", "flat", w.add("GlobalAveragePool", "average", stem(w)))
    both = w.add("Concat", "stacked", flat, w.constant("other", np.ones((1, 6), np.float32)), axis=0)
    return w.add("ReduceMax", "largest", both, w.constant("axis", np.array([0])), keepdims=1)


def slices_one_image(w: GraphWriter) -> str:
    flat = w.add("Flatten", "flat", w.add("GlobalAveragePool", "average", stem(w)))
    zero, one = w.constant("zero", np.array([0])), w.constant("one", np.array([1]))
    return w.add("Slice", "first", flat, zero, one, zero)


@pytest.mark.parametrize(
    "build", [mixes_images, takes_one_image, slices_one_image, stacks_images], ids=lambda build: build.__name__
)
def test_what_works_along_the_batch_is_refused(build: Callable[[GraphWriter], str], tmp_path: Path) -> None:
    w = GraphWriter()
    head(w, build(w), 6)
    with pytest.raises(UnsupportedModelError, match=r"batch size of the model is fixed") as caught:
        exported(w.save(tmp_path / "source.onnx", (1, 3, 32, 32)))
    assert "dynamic batch" in caught.value.next_step


def test_a_constant_that_differs_from_image_to_image_is_refused(tmp_path: Path) -> None:
    source = repeated_constant(tmp_path / "source.onnx", 2)
    proto = onnx.load(source)
    for tensor in proto.graph.initializer:
        if tensor.name == "position":
            different = numpy_helper.to_array(tensor).copy()
            different[1] += 1
            tensor.CopyFrom(numpy_helper.from_array(different, "position"))
    onnx.save(proto, source)
    with pytest.raises(UnsupportedModelError, match=r"fixed, and Add \(node 'placed'\)"):
        exported(source, ["r2"])


class TinyViT(nn.Module):
    """Patches, a class token, positions, one encoder layer, the class token's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 17, 16))
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.fc = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(image.shape[0], -1, -1), tokens], 1) + self.position
        return self.fc(self.encoder(tokens)[:, 0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")  # of the exporter itself
def test_a_transformer_that_torch_exported_for_one_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = tmp_path / "source.onnx"
    names = {"input_names": ["image"], "output_names": ["logits"]}
    torch.onnx.export(
        TinyViT().eval(), (torch.zeros(1, 3, 32, 32),), str(source), dynamo=False, opset_version=17, **names
    )
    patches = next(node.output[0] for node in onnx.load(source).graph.node if node.op_type == "Conv")
    bundle = exported(source, [patches])
    check_batch(bundle)
    inputs = images(bundle, 3)
    expected = [open_model(source, threads=1).run({"image": image[None]})["logits"] for image in inputs]
    np.testing.assert_allclose(
        open_session(bundle.path, threads=1).predict(inputs), np.concatenate(expected), rtol=0, atol=1e-6
    )
    check_gradients(source, bundle)


@pytest.mark.parametrize("batch", [1, "N"])
def test_shape_arithmetic_that_exporters_leave(batch: int | str, tmp_path: Path) -> None:
    """x.view(x.shape[0], -1), and an upsampling to the size of another layer, taken apart into a dozen nodes."""
    w = GraphWriter(opset=17)
    value = stem(w)
    finer = w.add("Relu", "finer", w.conv("c3", value, (6, 6), 3, 2))
    sides = w.add("Slice", "sides", w.add("Shape", "shape", value), w.constant("two", np.array([2])),
                  w.constant("four", np.array([4])), w.constant("axis0", np.array([0])))  # fmt: skip
    front = w.add("Slice", "front", w.add("Shape", "shape3", finer), "axis0", "two", "axis0")
    sizes = w.add("Concat", "sizes", front, w.add("Cast", "cast", sides, to=onnx.TensorProto.INT64), axis=0)
    value = w.add("Add", "joined", value, w.add("Resize", "up", finer, "", "", sizes, mode="nearest"))
    pooled = w.add("AveragePool", "pool", value, kernel_shape=[8, 8], strides=[8, 8])
    batch_size = w.add("Gather", "batch", w.add("Shape", "shape4", pooled), w.constant("zero", np.array(0)), axis=0)
    row = w.add("Unsqueeze", "row", batch_size, "axis0")
    target = w.add("Concat", "target", row, w.constant("rest", np.array([-1])), axis=0)
    head(w, w.add("Reshape", "flat", pooled, target), 24)
    source = w.save(tmp_path / "source.onnx", (batch, 3, 32, 32))
    bundle = exported(source, ["r2"])
    check_batch(bundle)
    check_gradients(source, bundle)
    kinds = {node.op_type for node in onnx.load(bundle.path).graph.node if not node.name.startswith("camrt/")}
    assert not kinds & {"Gather", "Cast"}


def test_helper_nodes_are_named_as_added(tmp_path: Path) -> None:
    """Nodes that the export puts into the forward part count as its own."""
    bundle = exported(class_token(tmp_path / "source.onnx", 1), ["r2"])
    forward = {node.name for node in onnx.load(class_token(tmp_path / "again.onnx", 1)).graph.node}
    rest = [node for node in onnx.load(bundle.path).graph.node if node.name not in forward]
    assert all(node.name.startswith("camrt/") for node in rest)
