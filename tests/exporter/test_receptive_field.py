"""What a position of a layer sees, against where its gradient with respect to the image is not zero."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from camrt.exporter import list_layers
from tests.exporter.graphs import (
    GraphWriter,
    edit_model,
    mobile_classifier,
    plain_classifier,
    residual_classifier,
    small_classifier,
)

SIZE = 64


def seen(path: Path, value: str) -> tuple[int, int]:
    """Rows and columns of the image in which a changed pixel changes the middle position of ``value``."""

    def show(proto: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(proto)
        proto.graph.output.extend(info for info in inferred.graph.value_info if info.name == value)

    shown = edit_model(path, show, path.with_name("shown.onnx"))
    session = onnxruntime.InferenceSession(shown)
    image = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    base = session.run([value], {"image": image})[0]
    row, column = (side // 2 for side in base.shape[2:])
    changed = []
    for axis in (2, 3):
        batch = np.repeat(image, SIZE, axis=0)
        for line in range(SIZE):
            batch[line][(slice(None), line) if axis == 2 else (slice(None), slice(None), line)] += 3
        outputs = session.run([value], {"image": batch})[0]
        lines = np.flatnonzero((outputs != base)[:, :, row, column].any(axis=1))
        changed.append(int(lines.max() - lines.min() + 1))
    return changed[0], changed[1]


def resized(write: Callable[[Path], Path], path: Path) -> Path:
    def resize(proto: onnx.ModelProto) -> None:
        for dim in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
            dim.dim_value = SIZE
        del proto.graph.value_info[:]

    return edit_model(write(path), resize)


@pytest.mark.parametrize("write", [small_classifier, residual_classifier, mobile_classifier, plain_classifier])
def test_every_layer_that_does_not_see_the_border(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = resized(write, tmp_path / "model.onnx")
    checked = 0
    for layer in list_layers(path, inside_blocks=True):
        assert layer.receptive_field is not None
        if max(layer.receptive_field) < SIZE // 2 and checked < 6:
            rows, columns = seen(path, layer.value)
            assert rows <= layer.receptive_field[0]
            assert columns <= layer.receptive_field[1]
            # A maximum, and a ReLU, pass on changes of some positions only.
            assert rows > 0.6 * layer.receptive_field[0]
            checked += 1
    assert checked >= 3


def test_dilated_strided_and_oblong_kernels(tmp_path: Path) -> None:
    w = GraphWriter()
    first = w.add("Conv", "first", "image", w.weight("a", 4, 3, 3, 5), kernel_shape=[3, 5], strides=[2, 1])
    second = w.add("Conv", "second", first, w.weight("b", 4, 4, 3, 3), dilations=[2, 3])
    w.classify(w.add("Relu", "end", second), 4)
    layers = {layer.name: layer for layer in list_layers(w.save(tmp_path / "model.onnx"))}
    assert layers["first"].receptive_field == (3, 5)
    assert layers["end"].receptive_field == (3 + 2 * 2 * 2, 5 + 3 * 2)


def test_attention_sees_the_whole_image_and_a_channel_gate_does_not_count(tmp_path: Path) -> None:
    w = GraphWriter()
    value = w.add("Relu", "stage", w.conv("conv", "image", (3, 4), stride=4))
    gate = w.add("Sigmoid", "gate", w.conv("gate_conv", w.add("GlobalAveragePool", "pool", value), (4, 4), 1))
    gated = w.add("Mul", "gated", value, gate)
    flat = w.add("Reshape", "tokens", gated, w.constant("tokens_shape", np.array([0, 4, 64])))
    scores = w.add("MatMul", "scores", flat, w.add("Transpose", "turned", flat, perm=[0, 2, 1]))
    mixed = w.add("MatMul", "mixed", w.add("Softmax", "soft", scores), flat)
    back = w.add("Reshape", "back", mixed, w.constant("back_shape", np.array([0, 4, 8, 8])))
    w.classify(w.add("Add", "end", back, gated), 4)
    layers = {layer.name: layer for layer in list_layers(w.save(tmp_path / "model.onnx"))}
    assert layers["gated"].receptive_field == (3, 3)
    assert layers["end"].receptive_field is None
