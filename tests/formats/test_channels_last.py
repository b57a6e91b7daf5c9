"""Models that take (N, H, W, C), as tf2onnx writes the networks of TensorFlow and Keras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import camrt
from camrt.errors import InvalidInputError
from camrt.preprocess import Preprocessing
from camrt.runtime import open_session
from tests.exporter.graphs import GraphWriter
from tests.exporter.tensorrt_operators import forbidden_operators
from tests.formats.checks import check_batch, check_gradients, check_outputs, exported, images, run

TO_FIRST, TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


def keras_classifier(path: Path, batch: int | str = "unk__6", size: tuple[int | str, int | str] = (32, 24)) -> Path:
    """What is left after tf2onnx's optimiser: one Transpose at the entry, one before the head, asymmetric "same" pads."""
    w = GraphWriter(opset=15)
    value = w.add("Transpose", "model/conv1/Conv2D__6", "image", perm=TO_FIRST)
    channels = 3
    for stage, stride in enumerate((2, 1, 2, 1), 1):
        name = f"model/conv{stage}"
        kernel = w.weight(f"{name}/kernel", 8, channels, 3, 3)
        bias = w.weight(f"{name}/bias", 8)
        value = w.add("Conv", f"{name}/BiasAdd", value, kernel, bias, auto_pad="SAME_UPPER", strides=[stride] * 2,
                      kernel_shape=[3, 3], dilations=[1, 1], group=1)  # fmt: skip
        value = w.add("Relu", f"model/relu{stage}/Relu", value)
        channels = 8
    value = w.add("Transpose", "model/last__20", value, perm=TO_LAST)
    value = w.add("ReduceMean", "model/pool/Mean", value, axes=[1, 2], keepdims=0)
    value = w.add("MatMul", "model/fc/MatMul", value, w.weight("model/fc/kernel", 8, 5))
    w.add("Softmax", "probabilities", w.add("Add", "model/fc/BiasAdd", value, w.weight("fc_bias", 5)), axis=-1)
    return w.save(path, (batch, *size, 3), {"probabilities": [batch, 5]})


def unoptimised_classifier(path: Path) -> Path:
    """Every layer between two Transposes, kernels too; biases, activations and additions work on (N, h, w, C)."""
    w = GraphWriter(opset=13)

    def convolve(name: str, value: str, channels: tuple[int, int], stride: int) -> str:
        first = w.add("Transpose", f"{name}__to_first", value, perm=TO_FIRST)
        scale = 1.4 / np.sqrt(9 * channels[0])
        kernel = w.constant(f"{name}/kernel", (scale * w.rng.standard_normal((3, 3, *channels))).astype(np.float32))
        turned = w.add("Transpose", f"{name}/kernel__turned", kernel, perm=[3, 2, 0, 1])
        first = w.add("Conv", name, first, turned, kernel_shape=[3, 3], strides=[stride] * 2, auto_pad="SAME_UPPER")
        last = w.add("Transpose", f"{name}__to_last", first, perm=TO_LAST)
        return w.add("Add", f"{name}/BiasAdd", last, w.weight(f"{name}/bias", channels[1]))

    shifted = w.add("Sub", "preprocess/sub", "image", w.constant("mean", np.array([0.1, 0.2, 0.3], np.float32)))
    value = w.add("Relu", "relu1", convolve("conv1", shifted, (3, 6), 2))
    value = w.add("Min", "relu6", value, w.constant("six", np.float32(6)))
    value = w.add("Add", "add2", convolve("conv2", value, (6, 6), 1), value)
    value = w.add("LeakyRelu", "act2", value, alpha=0.2)  # after Relu the zeros would be ties in the pool's windows
    pooled = w.add("Transpose", "pool__to_first", value, perm=TO_FIRST)
    pooled = w.add("MaxPool", "pool", pooled, kernel_shape=[2, 2], strides=[2, 2], auto_pad="VALID")
    value = w.add("Transpose", "pool__to_last", pooled, perm=TO_LAST)
    value = w.add("Relu", "relu3", convolve("conv3", value, (6, 6), 1))
    flat = w.add("Reshape", "flatten", value, w.constant("flat_shape", np.array([-1, 8 * 6 * 6])))
    w.add("Add", "logits", w.add("MatMul", "fc", flat, w.weight("fc_kernel", 288, 5)), w.weight("fc_bias", 5))
    return w.save(path, ("unk__1", 32, 24, 3), {"logits": ["unk__1", 5]})


BUILDERS = [keras_classifier, unoptimised_classifier]


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_everything_that_holds_for_channels_first_holds(build: object, tmp_path: Path) -> None:
    source = build(tmp_path / "source.onnx")  # type: ignore[operator]
    bundle = exported(source)
    assert (bundle.manifest.input_shape, bundle.manifest.input_layout) == ((3, 32, 24), "NHWC")
    assert [layer.shape[1:] for layer in bundle.manifest.target_layers] == [(8, 6), (16, 12)]
    check_outputs(source, bundle, 2)
    check_batch(bundle)
    check_gradients(source, bundle, classes=3)
    assert forbidden_operators(bundle.path) == []


def test_layers_in_either_layout_come_out_upright(tmp_path: Path) -> None:
    bundle = exported(unoptimised_classifier(tmp_path / "source.onnx"), ["relu3", "pool", "act2"])
    assert [(layer.name, layer.layout) for layer in bundle.manifest.target_layers] == [
        ("relu3", "NHWC"), ("pool", "NCHW"), ("act2", "NHWC"),
    ]  # fmt: skip
    for layer in run(bundle, images(bundle), [0]).layers:
        assert layer.activations.shape == layer.gradients.shape == (1, *bundle.manifest.layer(layer.name).shape)


def test_a_bright_corner_lights_the_same_corner_of_the_map(tmp_path: Path) -> None:
    bundle = exported(keras_classifier(tmp_path / "source.onnx"))
    inputs = np.zeros((1, 3, 32, 24), np.float32)
    inputs[:, :, :8, 16:] = 5
    activations = np.abs(
        run(bundle, inputs, [0]).layers[-1].activations - run(bundle, 0 * inputs, [0]).layers[-1].activations
    )
    rows, columns = activations.sum((0, 1)).nonzero()
    assert rows.max() < 8
    assert columns.min() > 5


@pytest.mark.parametrize(("asked", "expected"), [(None, (224, 224)), ((40, 24), (40, 24))])
def test_an_open_image_size_is_fixed(asked: tuple[int, int] | None, expected: tuple[int, int], tmp_path: Path) -> None:
    source = keras_classifier(tmp_path / "source.onnx", size=("unk__7", "unk__8"))
    bundle = exported(source, image_size=asked)
    assert bundle.manifest.input_shape == (3, *expected)
    check_outputs(source, bundle)


def test_a_size_that_the_model_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="32x24 images only, not 24x32"):
        exported(keras_classifier(tmp_path / "source.onnx"), image_size=(24, 32))


def test_a_fixed_batch_is_freed(tmp_path: Path) -> None:
    bundle = exported(keras_classifier(tmp_path / "source.onnx", batch=1))
    check_batch(bundle)


def test_images_are_preprocessed_as_ever(tmp_path: Path) -> None:
    """A picture goes in (H, W, 3) and its tensor (3, H, W) is what the session takes, whatever the model's layout."""
    bundle = exported(keras_classifier(tmp_path / "source.onnx"), preprocess=Preprocessing((32, 24)))
    explainer = camrt.Explainer(bundle.path, threads=1)
    picture = np.random.default_rng(2).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    (explanation,) = explainer.explain_images(picture)
    assert explanation.saliency_map.shape == (50, 40)
    tensor = explainer.preprocess_images(picture)
    assert tensor.shape == (1, 3, 32, 24)
    logits = open_session(bundle.path, threads=1).predict(tensor)
    assert explanation.class_index == int(logits.argmax())


def test_the_session_takes_channels_first_only(tmp_path: Path) -> None:
    bundle = exported(keras_classifier(tmp_path / "source.onnx"))
    with pytest.raises(InvalidInputError, match="3, 32, 24"):
        open_session(bundle.path, threads=1).predict(np.zeros((1, 32, 24, 3), np.float32))
