from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import camrt
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
