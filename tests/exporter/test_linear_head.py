from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import camrt
from camrt.errors import UnsupportedOpError
from tests.exporter.graphs import GraphWriter, channels_last_classifier, residual_classifier, small_classifier


def writer() -> tuple[GraphWriter, str]:
    w = GraphWriter()
    value = w.add("Relu", "first", w.conv("conv1", "image", (3, 4), stride=2))
    return w, w.add("Relu", "last", w.conv("conv2", value, (4, 6)))


def linear_heads(path: Path, layers: list[str] | str = "auto") -> dict[str, bool]:
    bundle = camrt.export(path, path.with_name("bundle.onnx"), layers)
    return {layer.name: layer.linear_head for layer in bundle.manifest.target_layers}


def finished(w: GraphWriter, tmp_path: Path) -> dict[str, bool]:
    return linear_heads(w.save(tmp_path / "source.onnx"), ["first", "last"])


@pytest.mark.parametrize("head", ["logits", "Softmax", "Sigmoid"])
def test_the_layer_before_the_pooling(tmp_path: Path, head: str) -> None:
    found = linear_heads(small_classifier(tmp_path / "source.onnx", head))
    assert list(found.values()) == [True, False]


def test_pooling_by_a_mean_and_a_product_with_a_bias_added(tmp_path: Path) -> None:
    w, value = writer()
    axes = w.constant("axes", np.array([2, 3]))
    mean = w.add("Dropout", "dropped", w.add("ReduceMean", "mean", value, axes, keepdims=0))
    product = w.add("MatMul", "product", mean, w.weight("fc", 6, 5))
    w.add("Add", "logits", product, w.weight("bias", 5))
    assert finished(w, tmp_path) == {"last": True, "first": False}


def test_a_convolution_after_the_pooling(tmp_path: Path) -> None:
    w, value = writer()
    logits = w.conv("fc", w.add("GlobalAveragePool", "mean", value), (6, 5), 1)
    w.add("Flatten", "logits", logits)
    assert finished(w, tmp_path) == {"last": True, "first": False}


def test_channels_last(tmp_path: Path) -> None:
    source = channels_last_classifier(tmp_path / "source.onnx")
    assert linear_heads(source, ["tail", "block"]) == {"tail": True, "block": False}


@pytest.mark.parametrize("strides", [[1, 1], [16, 16]])
def test_an_average_over_a_window_that_is_the_whole_map(tmp_path: Path, strides: list[int]) -> None:
    w, value = writer()
    side = [16, 16]
    mean = w.add("Flatten", "flat", w.add("AveragePool", "mean", value, kernel_shape=side, strides=strides))
    w.add("Gemm", "logits", mean, w.weight("fc", 6, 5))
    assert finished(w, tmp_path) == {"last": True, "first": False}
    w, value = writer()
    mean = w.add("AveragePool", "mean", value, kernel_shape=side, strides=strides, pads=[1, 1, 0, 0])
    w.add("Gemm", "logits", w.add("Flatten", "flat", mean), w.weight("fc", 6, 5))
    assert not any(finished(w, tmp_path).values())


def test_the_mean_over_tokens_that_are_in_front_of_the_batch(tmp_path: Path) -> None:
    w, value = writer()
    tokens = w.add("Reshape", "tokens", value, w.constant("to", np.array([0, 6, -1])))
    first = w.add("Transpose", "tokens_first", tokens, perm=[2, 0, 1])
    mean = w.add("ReduceMean", "mean", first, w.constant("axes", np.array([0])), keepdims=0)
    w.add("MatMul", "logits", mean, w.weight("fc", 6, 5))
    source = w.save(tmp_path / "source.onnx")
    inputs = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    explainer = camrt.Explainer(camrt.export(source, tmp_path / "bundle.onnx", ["last"]).path, threads=1)
    (layer,) = explainer.layer_outputs(inputs, np.array([1, 3]), ["last"]).layers
    expected = np.broadcast_to(w.constants["fc"].T[[1, 3], :, None, None] / 256, layer.gradients.shape)
    np.testing.assert_allclose(layer.gradients, expected, rtol=1e-5)


def test_the_mean_over_the_batch_names_the_layers_that_work(tmp_path: Path) -> None:
    w, value = writer()
    mean = w.add("ReduceMean", "mean", value, w.constant("axes", np.array([0])), keepdims=1)
    added = w.add("Conv", "third", w.add("Add", "sum", value, mean), w.weight("k", 6, 6, 1, 1))
    pooled = w.add("ReduceMean", "pooled", added, w.constant("sides", np.array([2, 3])), keepdims=0)
    w.add("MatMul", "logits", pooled, w.weight("fc", 6, 5))
    source = w.save(tmp_path / "source.onnx")
    with pytest.raises(UnsupportedOpError, match="along the batch") as caught:
        camrt.export(source, tmp_path / "bundle.onnx", ["last", "third"])
    assert caught.value.node_name == "mean"
    assert caught.value.working_layers == ("third",)


def test_other_heads_are_not_linear(tmp_path: Path) -> None:
    w, value = writer()
    hidden = w.add(
        "Gemm", "hidden", w.add("Flatten", "flat", w.add("GlobalAveragePool", "mean", value)), w.weight("a", 6, 6)
    )
    w.add("Gemm", "logits", w.add("Relu", "acted", hidden), w.weight("b", 6, 5))
    assert finished(w, tmp_path) == {"last": False, "first": False}
    w, value = writer()
    w.add("Gemm", "logits", w.add("Flatten", "flat", w.add("GlobalMaxPool", "most", value)), w.weight("a", 6, 5))
    assert finished(w, tmp_path) == {"last": False, "first": False}
    w, value = writer()
    logits = w.conv("fc", value, (6, 5), 3)
    w.add("Flatten", "logits", w.add("GlobalAveragePool", "mean", w.add("Relu", "acted", logits)))
    assert finished(w, tmp_path) == {"last": False, "first": False}


def test_cam_weighs_channels_by_the_weights_of_the_class(tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    source = residual_classifier(tmp_path / "source.onnx")
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}["fc"]
    explainer = camrt.Explainer(camrt.export(source, tmp_path / "bundle.onnx").path, threads=1)
    inputs = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    classes = [2, 0, 4]
    (layer,) = explainer.layer_outputs(inputs, np.array(classes), ["stage3"]).layers
    for n, explanation in enumerate(explainer.explain(inputs, classes, method="cam")):
        raw = np.maximum(np.einsum("c,chw->hw", weights[classes[n]], layer.activations[n].astype(np.float64)), 0)
        expected = (raw - raw.min()) / (raw.max() - raw.min() + 1e-7)
        np.testing.assert_allclose(explanation.layer_maps["stage3"], expected, rtol=0, atol=1e-5)
