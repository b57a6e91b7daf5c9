"""Multiply-adds from shapes, against a count by hand and against torch's own counter."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

import camrt
from camrt.errors import LayerNotFoundError
from camrt.explainer import embedded_bundle_path
from camrt.runtime import multiply_adds
from tests.exporter.graphs import residual_classifier
from tests.models import export_onnx, make_inputs, make_model


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_prediction_counts_as_torch_counts_it(name: str, tmp_path: Path) -> None:
    import torch

    model = make_model(name, size=64, num_classes=10)
    source = export_onnx(model, tmp_path / "model.onnx", "torchscript")
    bundle = camrt.export(source, tmp_path / "bundle.onnx", list(model.target_layers), image_size=(64, 64))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.module(torch.from_numpy(make_inputs(1, 64, 0)))
    prediction = multiply_adds(bundle.path, ())
    assert 2 * prediction == counter.get_total_flops()
    explanation = multiply_adds(bundle.path, bundle.manifest.layer_names)
    assert 1.2 * prediction < explanation < 2.2 * prediction


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(LayerNotFoundError):
        multiply_adds(embedded_bundle_path(), ["nowhere"])


def test_second_derivatives_cost_about_two_more_backward_parts(tmp_path: Path) -> None:
    source = residual_classifier(tmp_path / "source.onnx")
    path = camrt.export(source, tmp_path / "bundle.onnx", second_order=True).path
    prediction, gradients, products = (multiply_adds(path, ["stage1"], derivatives) for derivatives in (0, 1, 2))
    assert prediction == multiply_adds(path, ())
    assert 2.5 * (gradients - prediction) < products - prediction < 3.5 * (gradients - prediction)
