"""Layers that are kept as tokens or channels last come out with their rows and columns where the image has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import camrt
from camrt.kernels import get_backend
from camrt.runtime import open_session
from tests import oracles
from tests.coverage.architectures import Architecture
from tests.coverage.networks import make_network
from tests.models import export_onnx, make_inputs

METHODS = ("gradcam++", "layercam")
CLASSES = (3, 11)


@dataclass(frozen=True)
class Case:
    """A network, its image size, the layers that are compared, and how pytorch-grad-cam is to read their modules."""

    name: str
    row: Architecture
    size: tuple[int, int]
    layers: tuple[str, ...]
    reshape: Callable[[torch.Tensor], torch.Tensor]
    layout: tuple[str, int | None]


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.permute(0, 3, 1, 2)


def tokens_behind(prefix: int, size: tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor[:, prefix:].reshape(len(tensor), *size, -1).permute(0, 3, 1, 2)


CASES = (
    Case(
        "swin",
        Architecture("torchvision", "swin_t", "Swin", 112),
        (84, 112),
        ("features.7", "features.3"),
        channels_last,
        ("NHWC", None),
    ),
    Case(
        "vit",
        Architecture("timm", "vit_tiny_patch16_224", "ViT", 64, {"img_size": (48, 80)}),
        (48, 80),
        ("blocks.11.norm1", "blocks.5.norm1"),
        tokens_behind(1, (3, 5)),
        ("NLC", 1),
    ),
)


@dataclass
class Prepared:
    case: Case
    module: torch.nn.Module
    source: Path
    bundle: camrt.Bundle
    inputs: np.ndarray


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    case: Case = request.param
    folder = tmp_path_factory.mktemp("upright")
    model = make_network(case.row, inputs=images(8, case.size, 1))
    source = export_onnx(model, folder / "source.onnx", "torchscript", images(2, case.size, 7))
    bundle = camrt.export(source, folder / "bundle.onnx", list(case.layers), image_size=case.size)
    return Prepared(case, model.module, source, bundle, images(2, case.size, 100))


def images(count: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """(count, 3, H, W), a part of square ones."""
    return np.ascontiguousarray(make_inputs(count, max(size), seed)[:, :, : size[0], : size[1]])


def test_the_manifest_tells_the_layout(prepared: Prepared) -> None:
    layers = prepared.bundle.manifest.target_layers
    assert [layer.name for layer in layers] == list(prepared.case.layers)
    assert {(layer.layout, layer.prefix_tokens) for layer in layers} == {prepared.case.layout}
    again = camrt.Bundle.open(prepared.bundle.path).manifest
    assert again.target_layers == layers


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_those_of_pytorch_grad_cam(prepared: Prepared, method: str) -> None:
    explainer = camrt.Explainer(prepared.bundle.path, threads=1)
    explanations = explainer.explain(prepared.inputs, list(CLASSES), method="refinecam", base_method=method)
    for layer in prepared.case.layers:
        maps = np.stack([explanation.layer_maps[layer] for explanation in explanations])
        ours, _ = get_backend("native", 1).fuse_layers([maps], prepared.case.size)
        exact, rounded = (oracle_map(prepared, layer, method, double=double) for double in (True, False))
        assert exact.std() > 0.01
        assert np.abs(ours - exact).max() <= oracles.tolerance(rounded, exact)


def oracle_map(prepared: Prepared, layer: str, method: str, *, double: bool) -> np.ndarray:
    module = oracles.in_double(prepared.module) if double else prepared.module
    inputs = torch.from_numpy(prepared.inputs).to(torch.float64 if double else torch.float32)
    base = oracles.PYTORCH_GRAD_CAM_METHODS[method]
    with base(module, [module.get_submodule(layer)], reshape_transform=prepared.case.reshape) as cam:
        return cam(input_tensor=inputs, targets=[oracles.ClassifierOutputTarget(k) for k in CLASSES])


def test_a_change_in_the_image_shows_at_its_place(prepared: Prepared, tmp_path: Path) -> None:
    """In front of any attention, one bright patch changes one position, whose row and column are the patch's."""
    first = {"swin": "features.1.0.norm1", "vit": "blocks.0.norm1"}[prepared.case.name]
    bundle = camrt.export(prepared.source, tmp_path / "bundle.onnx", [first], image_size=prepared.case.size)
    session = open_session(bundle.path, threads=1)
    _, height, width = bundle.manifest.target_layers[0].shape
    stride = prepared.case.size[0] // height
    row, column = height - 1, 1
    changed = prepared.inputs[:1].copy()
    changed[:, :, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride] += 1.0
    before, after = (
        session.run(x, np.array([0]), [first]).layers[0].activations for x in (prepared.inputs[:1], changed)
    )
    assert before.shape[2:] == (height, width)
    assert np.argwhere(np.abs(after - before).sum((0, 1)) > 1e-3).tolist() == [[row, column]]
