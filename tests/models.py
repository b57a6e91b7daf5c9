"""The ten test architectures: torchvision loading, random weights, target layers, ONNX export.

Weights are random and fixed by a seed. A freshly initialised network makes a poor test model: its BatchNormalization
layers are identities, and logits or gradients that vanish or explode make near-constant maps that agree with anything.
So `make_model` first measures the statistics that the network itself produces, sets them, and then moves every
BatchNormalization parameter away from them by a random amount.
"""

from __future__ import annotations

import copy
import importlib.machinery
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from tests.conditioning import condition

Exporter = Literal["torchscript", "dynamo"]
EXPORTERS: tuple[Exporter, ...] = ("torchscript", "dynamo")

# Target layers as torch module paths, coarse to fine. DenseNet: its forward ends in a functional in-place ReLU that
# overwrites the output of features.norm5, so its coarsest is the dense block before. The VGG entries are the ReLUs in
# front of the four last MaxPools. ConvNeXt: a stage end feeds nothing but a LayerNorm at each position, which does not
# change when its input is scaled, so sum_c G_c A_c is zero there at every position and HiResCAM's map is rounding noise
# in any implementation; the entries are the blocks before the last.
TARGET_LAYERS: dict[str, tuple[str, ...]] = {
    "resnet18": ("layer4", "layer3", "layer2", "layer1"),
    "resnet50": ("layer4", "layer3", "layer2", "layer1"),
    "vgg11_bn": ("features.27", "features.20", "features.13", "features.6"),
    "vgg16": ("features.29", "features.22", "features.15", "features.8"),
    "mobilenet_v2": ("features.18", "features.13", "features.6", "features.3"),
    "mobilenet_v3_small": ("features.12", "features.8", "features.3", "features.1"),
    "efficientnet_b0": ("features.8", "features.5", "features.3", "features.2"),
    "densenet121": (
        "features.denseblock4",
        "features.transition3.relu",
        "features.transition2.relu",
        "features.transition1.relu",
    ),
    "squeezenet1_1": ("features.12", "features.7", "features.4"),
    "convnext_tiny": ("features.7.1", "features.5.7", "features.3.1", "features.1.1"),
}
ARCHITECTURES = tuple(TARGET_LAYERS)

RESIDUAL_BRANCH_ENDS = {"BasicBlock": "bn2", "Bottleneck": "bn3"}

_OPERATORS_NEEDED_AT_IMPORT = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Imports torchvision, also where its compiled operators do not load.

    A torchvision wheel built for CUDA cannot load its operators beside a CPU build of torch, and then fails on import
    because it registers shape functions for them. The classifiers need none of those operators, so declaring their
    signatures is enough. Where the operators load, nothing is declared.
    """
    if not _declared and not _operators_load():
        library = torch.library.Library("torchvision", "DEF")
        for name, signature in _OPERATORS_NEEDED_AT_IMPORT.items():
            library.define(name + signature)
        _declared.append(library)
    return importlib.import_module("torchvision")


def _operators_load() -> bool:
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("torchvision is not installed; install the test extra: pip install camrt[test]")
    loader = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    extension = importlib.machinery.FileFinder(str(Path(package.origin).parent), loader).find_spec("_C")
    if extension is None or extension.origin is None:
        return False
    try:
        torch.ops.load_library(extension.origin)
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class TestModel:
    """A classifier in eval mode, float32, no in-place module, and what the tests need to know about it.

    Attributes:
        name: architecture.
        module: the network.
        size: height and width of its inputs.
        target_layers: module paths, coarse to fine.
    """

    __test__ = False

    name: str
    module: nn.Module
    size: int
    target_layers: tuple[str, ...]


def make_model(
    name: str,
    seed: int = 0,
    size: int = 224,
    num_classes: int = 1000,
    images: npt.NDArray[np.float32] | None = None,
) -> TestModel:
    """A test model with random weights, the same for the same arguments.

    VGG's classifier is the full one (4096 units on a 7x7 grid) at size 224; at any other size its adaptive pooling
    cannot be exported, and it is replaced with global pooling and one hidden layer of 256 units.

    Args:
        name: one of ARCHITECTURES.
        seed: of every random number.
        size: height and width of the inputs.
        num_classes: K.
        images: (N, 3, size, size) for which the model is made well-conditioned, see tests.conditioning.
    """
    models = import_torchvision().models
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = getattr(models, name)(weights=None, num_classes=num_classes)
        if name.startswith("vgg") and size != 224:
            module.avgpool = nn.AdaptiveAvgPool2d(1)
            module.classifier = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, num_classes))
        randomise_parameters(module, generator)
        calibrate(module, torch.from_numpy(make_inputs(8, min(size, 96), seed + 1)), generator)
    for layer in module.modules():
        if getattr(layer, "inplace", False):
            layer.inplace = False
    module.eval()
    if images is not None:
        condition(module, TARGET_LAYERS[name], images)
    return TestModel(name, module, size, TARGET_LAYERS[name])


def make_inputs(count: int, size: int, seed: int) -> npt.NDArray[np.float32]:
    """Images (count, 3, size, size): smooth blobs with a little noise, zero mean, unit variance.

    White noise would look the same everywhere after a few strides and give near-constant maps.
    """
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.randn(count, 3, 6, 6, generator=generator)
    smooth = nn.functional.interpolate(blobs, (size, size), mode="bicubic", align_corners=False)
    images = smooth + 0.25 * torch.randn(count, 3, size, size, generator=generator)
    images = (images - images.mean((1, 2, 3), keepdim=True)) / images.std((1, 2, 3), keepdim=True)
    return images.numpy()


def uniform(tensor: torch.Tensor, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(tensor.shape, generator=generator) * (high - low) + low


@torch.no_grad()
def randomise_parameters(module: nn.Module, generator: torch.Generator) -> None:
    layers = list(module.modules())
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm):
            layer.weight.copy_(uniform(layer.weight, 0.6, 1.4, generator))
            layer.bias.copy_(uniform(layer.bias, -0.3, 0.3, generator))
    for layer in layers:
        if hasattr(layer, "layer_scale"):
            # Initialised to 1e-6, which would make every block an identity.
            layer.layer_scale.copy_(uniform(layer.layer_scale, 0.2, 1.0, generator))
        # Random residual branches as strong as the identity make deep networks chaotic: rounding grows with every block.
        if type(layer).__name__ in RESIDUAL_BRANCH_ENDS:
            layer.get_submodule(RESIDUAL_BRANCH_ENDS[type(layer).__name__]).weight.mul_(0.5)
        elif getattr(layer, "use_res_connect", False):
            [norm for norm in layer.modules() if isinstance(norm, nn.BatchNorm2d)][-1].weight.mul_(0.25)


@torch.no_grad()
def calibrate(module: nn.Module, samples: torch.Tensor, generator: torch.Generator) -> None:
    """One forward pass that brings every activation into range.

    Layers with a bias get unit output variance and a random bias; BatchNormalization statistics become the measured
    ones, moved at random; the logits get a standard deviation of 2.
    """

    def scale_to_unit_variance(
        layer: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        output = output - _bias(layer)
        scale = 1.0 / output.std()
        layer.weight.mul_(scale)
        layer.bias.copy_(uniform(layer.bias, -0.2, 0.2, generator))
        return output * scale + _bias(layer)

    def move_statistics(norm: nn.Module, _inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        deviation = norm.running_var.sqrt()
        norm.running_mean.add_(deviation * uniform(deviation, -0.25, 0.25, generator))
        norm.running_var.mul_(uniform(deviation, 0.75, 1.5, generator))

    handles = []
    module.eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # cumulative average: exactly the statistics of the samples
            layer.train()
            handles.append(layer.register_forward_hook(move_statistics))
        elif isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            handles.append(layer.register_forward_hook(scale_to_unit_variance))
    module(samples)
    for handle in handles:
        handle.remove()
    module.eval()
    head = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    scale = 2.0 / module(samples).std()
    head.weight.mul_(scale)
    if head.bias is not None:
        head.bias.mul_(scale)


def _bias(layer: nn.Module) -> torch.Tensor:
    return layer.bias[:, None, None] if isinstance(layer, nn.Conv2d) else layer.bias


def export_onnx(
    model: TestModel, path: Path, exporter: Exporter, images: npt.NDArray[np.float32] | None = None
) -> Path:
    """Writes the model to an ONNX file with input ``input``, output ``logits`` and a dynamic batch axis.

    Args:
        model: what to export.
        path: where to.
        exporter: ``torchscript`` (torch.onnx's older exporter) or ``dynamo`` (its newer one).
        images: (2, 3, H, W), where H and W are not both the model's size.
    """
    # A batch of two: the newer exporter would take a batch of one for a constant.
    example = torch.from_numpy(make_inputs(2, model.size, 7) if images is None else images)
    names = {"input_names": ["input"], "output_names": ["logits"]}
    with _quiet_exporter():
        if exporter == "torchscript":
            axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
            torch.onnx.export(
                model.module, (example,), str(path), dynamo=False, opset_version=17, dynamic_axes=axes, **names
            )
        else:
            shapes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(
                model.module,
                (example,),
                str(path),
                dynamo=True,
                dynamic_shapes=shapes,
                external_data=False,
                verbose=False,
                **names,
            )
    return path


@torch.no_grad()
def fold_batch_norms(module: nn.Module, images: npt.NDArray[np.float32]) -> nn.Module:
    """A copy that computes with the weights that the older exporter writes to the file.

    That exporter multiplies each BatchNormalization behind a convolution into the convolution's float32 weights, which
    rounds them again; in a deep network the two sets of weights give gradients that differ by more than 1e-5. Here the
    convolution gets the product, and its BatchNormalization becomes an identity, so module paths stay.

    Args:
        module: in eval mode.
        images: any input; one pass shows which BatchNormalization reads which convolution.
    """
    module = copy.deepcopy(module)
    convolutions: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def visit(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            convolutions[id(output)] = layer, output
        elif isinstance(layer, nn.BatchNorm2d) and id(inputs[0]) in convolutions:
            pairs.append((convolutions[id(inputs[0])][0], layer))

    handles = [layer.register_forward_hook(visit) for layer in module.modules()]
    module(torch.from_numpy(images))
    for handle in handles:
        handle.remove()
    for convolution, norm in pairs:
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        norm.eps = 0.0
        for tensor, value in ((norm.weight, 1), (norm.running_var, 1), (norm.bias, 0), (norm.running_mean, 0)):
            tensor.fill_(value)
    return module


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """What torch's exporters say of a network that others wrote is no defect of the code under test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
