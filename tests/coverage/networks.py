"""Random, well-conditioned networks of the coverage list."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tests.conditioning import condition
from tests.coverage.architectures import Architecture
from tests.models import TestModel, calibrate, import_torchvision, make_inputs, randomise_parameters, uniform

NUM_CLASSES = 20
_SMALLEST_SCALE = 0.1
_SMALL = 128


def make_network(row: Architecture, seed: int = 0, inputs: npt.NDArray[np.float32] | None = None) -> TestModel:
    """The network of ``row`` with random weights, the same for the same arguments.

    Args:
        row: which one.
        seed: of every random number.
        inputs: (N, 3, H, W) that bring its activations into range, where H and W are not both ``row.size``.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _construct(row)
        randomise_parameters(module, generator)
        _enliven(module, generator)
        samples = make_inputs(8, row.size, seed + 1) if inputs is None else inputs
        calibrate(module, torch.from_numpy(samples), generator)
    for layer in module.modules():
        if getattr(layer, "inplace", False):
            layer.inplace = False
    module.eval()
    if row.conditioned:
        condition(module, (), check_images(row.size)[list(row.conditioned)])
    return TestModel(row.id, module, row.size, ())


def check_images(size: int) -> npt.NDArray[np.float32]:
    """Images to compare on, (N, 3, size, size); few where they are large."""
    return make_inputs(12 if size <= _SMALL else 4, size, 100)


def _construct(row: Architecture) -> nn.Module:
    torchvision = import_torchvision()
    if row.library == "torchvision":
        given = row.arguments if row.name[0].isupper() else {"weights": None, **row.arguments}
        return getattr(torchvision.models, row.name)(num_classes=NUM_CLASSES, **given)
    import timm  # imports torchvision: after import_torchvision only

    return timm.create_model(row.name, pretrained=False, num_classes=NUM_CLASSES, **row.arguments)


@torch.no_grad()
def _enliven(module: nn.Module, generator: torch.Generator) -> None:
    """Random numbers for what starts at (nearly) zero: heads, and scales that would make every block an identity."""
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.weight.copy_(uniform(layer.weight, 0.6, 1.4, generator))
            layer.bias.copy_(uniform(layer.bias, -0.3, 0.3, generator))
        if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.any():
            layer.weight.copy_(uniform(layer.weight, -0.05, 0.05, generator))
    for name, parameter in module.named_parameters():
        is_scale = name.rsplit(".", 1)[-1] in ("gamma", "scale", "gain", "skipinit_gain", "gamma_1", "gamma_2")
        if is_scale and parameter.abs().max() < _SMALLEST_SCALE:
            parameter.copy_(uniform(parameter, 0.2, 1.0, generator))
