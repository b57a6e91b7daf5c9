"""Every architecture of the list, from both of torch.onnx's exporters, with target_layers="auto"."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.coverage.architectures import ARCHITECTURES, Architecture
from tests.coverage.check import Result, check
from tests.coverage.networks import make_network
from tests.models import EXPORTERS, Exporter

TOLERANCE = 1e-5
OUTPUT_TOLERANCE = 1e-6


AUTO = {
    "resnet18": ("layer4", "layer3", "layer2", "layer1"),
    "mobilenet_v2": ("features.18", "features.13", "features.6", "features.3"),
    "shufflenet_v2_x0_5": ("conv5", "stage3", "stage2"),
    "convnext_tiny": ("features.7", "features.5", "features.3", "features.1"),
    "swin_t": ("features.7", "features.5", "features.3", "features.1"),
    "swin_v2_t": ("features.7", "features.5", "features.3", "features.1"),
    "VisionTransformer": ("encoder.layers.encoder_layer_2.ln_1",),
    "vit_b_16": ("encoder.layers.encoder_layer_11.ln_1",),
    "maxvit_t": ("blocks.3", "blocks.2", "blocks.1", "blocks.0"),
    "efficientformer_l1": ("stages.3", "stages.2", "stages.1", "stages.0"),
    "poolformer_s12": ("stages.3", "stages.2", "stages.1", "stages.0"),
    "edgenext_xx_small": ("stages.3", "stages.2", "stages.1", "stages.0"),
    "vit_tiny_patch16_224": ("blocks.11.norm1",),
    "swin_tiny_patch4_window7_224": ("layers.3", "layers.2", "layers.1", "layers.0"),
}


def _parameters() -> list[object]:
    return [
        pytest.param(
            (row, exporter),
            id=f"{row.id}-{exporter}",
            marks=() if exporter == row.default else (pytest.mark.slow, pytest.mark.timeout(900)),
        )
        for row in ARCHITECTURES
        for exporter in EXPORTERS
    ]


@pytest.fixture(scope="module", params=_parameters())
def checked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Architecture, Result]]:
    row: Architecture
    exporter: Exporter
    row, exporter = request.param
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield row, check(make_network(row), exporter, tmp_path_factory.mktemp("coverage"))
    torch.set_num_threads(before)


@pytest.fixture
def result(checked: tuple[Architecture, Result]) -> Result:
    return checked[1]


def test_it_exports_with_the_layers_one_would_choose(checked: tuple[Architecture, Result]) -> None:
    row, result = checked
    assert result.refusal is None
    assert result.layers
    names = tuple(layer.name for layer in result.layers)
    assert names == AUTO.get(row.name, names)


def test_outputs_stay(result: Result) -> None:
    assert result.outputs <= OUTPUT_TOLERANCE


def test_layers_equal_torch(result: Result) -> None:
    assert result.activations <= 10 * TOLERANCE
    assert result.gradients <= TOLERANCE


def test_several_classes_and_several_images(result: Result) -> None:
    assert result.classes <= TOLERANCE
    assert result.images <= TOLERANCE


def test_operators_are_those_that_tensorrt_takes(result: Result) -> None:
    assert result.forbidden == ()
