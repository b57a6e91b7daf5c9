"""``camrt.export`` of PyTorch modules."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import camrt
from camrt.errors import InvalidInputError, UnsupportedModelError
from camrt.exporter import list_layers
from camrt.runtime import open_session
from tests.models import fold_batch_norms, make_inputs, make_model


class Residual(nn.Module):
    """Stem, two residual stages with BatchNorm, pooling, linear; ``depth`` gives the stages names of their own."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.layer1 = Block(8, 8, 1)
        self.layer2 = Block(8, 12, 2)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        return self.fc(self.dropout(x.mean((2, 3))))


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1)
        self.skip = nn.Conv2d(before, after, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv2(self.relu(self.bn1(self.conv1(x)))) + self.skip(x))


def plain(channels: int = 3) -> nn.Module:
    """VGG-like, a Sequential."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.Softmax(1)),
    )


def mobile(channels: int = 3) -> nn.Module:
    """Depthwise separable, SiLU and Hardswish, GroupNorm."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.GroupNorm(2, 8)),
        *(nn.Conv2d(8, 8, 1), nn.Hardswish(), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.Conv2d(8, 12, 1), nn.SiLU()),
        *(nn.Conv2d(12, 12, 3, 1, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)),
    )


def make(build, **arguments) -> nn.Module:
    torch.manual_seed(3)
    module = build(**arguments)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
    return module


def autograd(module: nn.Module, layer: str, images: np.ndarray, classes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and the gradient of each image's class at the module called ``layer``."""
    found = {}
    module = module.eval()
    handle = module.get_submodule(layer).register_forward_hook(lambda _m, _i, output: found.update(value=output))
    head = module[:-1] if isinstance(module, nn.Sequential) and isinstance(module[-1], nn.Softmax) else module
    logits = head(torch.from_numpy(images))
    handle.remove()
    chosen = logits[torch.arange(len(classes)), classes].sum()
    return logits.detach().numpy(), torch.autograd.grad(chosen, found["value"])[0].numpy()


@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (Residual, ["layer2", "layer1", "layer2.conv2"]),
        (plain, ["8", "3"]),
        (mobile, ["10", "5"]),
    ],
    ids=["residual", "plain", "mobile"],
)
def test_a_module_gives_the_gradients_of_autograd(build, layers: list[str], tmp_path: Path) -> None:
    module = make(build)
    bundle = camrt.export(module, tmp_path / "bundle.onnx", layers, image_size=(32, 40))
    manifest = bundle.manifest
    assert set(manifest.layer_names) == set(layers)
    assert manifest.input_shape == (3, 32, 40)
    assert manifest.input_name == "image"
    assert manifest.source_name == f"{type(module).__name__}.onnx"
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 40)).astype(np.float32)
    classes = [0, 4, 2]
    outputs = open_session(bundle.path).run(images, np.array(classes), manifest.layer_names)
    for layer in outputs.layers:
        logits, gradients = autograd(module, layer.name, images, classes)
        np.testing.assert_allclose(outputs.logits, logits, rtol=0, atol=1e-5 * np.abs(logits).max())
        np.testing.assert_allclose(layer.gradients, gradients, rtol=0, atol=1e-5 * np.abs(gradients).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "convnext_tiny"])
def test_networks_of_torchvision(name: str, tmp_path: Path) -> None:
    images = make_inputs(2, 96, 5)
    model = make_model(name, size=96, num_classes=10, images=images)
    bundle = camrt.export(model.module, tmp_path / "bundle.onnx", model.target_layers, image_size=(96, 96))
    assert bundle.manifest.layer_names == model.target_layers
    outputs = open_session(bundle.path).run(images, np.array([3, 8]), model.target_layers)
    oracle = fold_batch_norms(model.module, images)  # as PyTorch's exporter writes the weights
    for layer in outputs.layers:
        logits, gradients = autograd(oracle, layer.name, images, [3, 8])
        np.testing.assert_allclose(outputs.logits, logits, rtol=0, atol=1e-5 * np.abs(logits).max())
        np.testing.assert_allclose(layer.gradients, gradients, rtol=0, atol=1e-5 * np.abs(gradients).max())


def test_the_module_is_as_it_was(tmp_path: Path) -> None:
    module = make(Residual, channels=1)
    module.train()
    module.layer1.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    bundle = camrt.export(module, tmp_path / "bundle.onnx", image_size=(32, 32))
    assert bundle.manifest.input_shape == (1, 32, 32)
    assert bundle.manifest.layer_names == ("layer2", "layer1")
    assert module.training
    assert module.layer2.bn1.training
    assert not module.layer1.bn1.training
    after = module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.onnx"]


def test_layers_of_a_module() -> None:
    candidates = list_layers(make(Residual), image_size=(32, 32))
    assert [layer.name for layer in candidates if layer.auto] == ["layer1", "layer2"]


@pytest.mark.parametrize("model", [3, None, nn.Linear])
def test_what_is_neither_path_nor_module(model: object, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"neither a path nor a torch\.nn\.Module"):
        camrt.export(model, tmp_path / "bundle.onnx")


def test_an_image_that_the_module_does_not_take(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 5))
    with pytest.raises(InvalidInputError, match=r"\(2, 3, 224, 224\).*image_size"):
        camrt.export(module, tmp_path / "bundle.onnx")


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.mean((2, 3))
        return flat if flat.sum() > 0 else -flat


def test_a_module_that_pytorch_cannot_export(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"cannot export Branching.*give camrt the file"):
        camrt.export(Branching(), tmp_path / "bundle.onnx", image_size=(8, 8))
    assert not list(tmp_path.iterdir())


def test_without_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "camrt.exporter.from_torch", raising=False)
    with pytest.raises(InvalidInputError, match=r"pip install camrt\[torch\]"):
        camrt.export(object(), tmp_path / "bundle.onnx")
