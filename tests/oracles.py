"""What camrt is compared with: torch.autograd, pytorch-grad-cam and torch-cam.

pytorch-grad-cam 1.5.7, ``RefineCAM(model, target_layers, reshape_transform=None, base_method=GradCAMPlusPlus, **kwargs)``
called as ``cam(input_tensor=..., targets=...)``:

* One base CAM object a target layer, so L layers cost L forward and L backward passes.
* A layer map goes through ReLU, ``(x - min) / (1e-7 + max)`` at layer size, ``cv2.resize`` (bilinear, half-pixel centres, no
  antialias) to the size of the input tensor, ReLU, mean over its single layer and the same scaling again. The maps are
  multiplied and scaled once more. Everything after the weighted sum is float32, also for a float64 model.
* ``targets=None`` explains the highest logit of each image.

Its traps:

* ``loss.backward`` runs to every leaf, so the gradients of all parameters are computed too. With
  ``model.requires_grad_(False)`` the input must require grad, or no hook sees a gradient.
* ``compute_input_gradient=True`` would do that, but the six gradient methods do not accept the argument that RefineCAM passes
  on, and BaseCAM keeps a leaf that requires grad.
* The hooks of all L objects sit on one model: every pass stores activations and gradients L times over.
* The loop in RefineCAM that should bring the maps into [0, 1] rebinds its variable and has no effect (they already are).
* RefineCAM hands ``eigen_smooth`` to the base method's third positional parameter, which is ``aug_smooth``.
* ``cv2`` sizes are (width, height). A module that is followed by an in-place operation shows activations after that operation.

torch-cam 0.5.0, ``RefineCAM(model, target_layer, base_method=GradCAMpp)`` called as ``cam(class_idx, scores)``: one forward and one
backward pass for all layers, ``torch.autograd.grad`` up to the target layers only; ``(x - min) / (max + 1e-8)`` at layer size,
bilinear resize to the largest layer (or ``target_shape``), product, the same scaling; no scaling after the resize.
Its Grad-CAM++ is another formula: the denominator is meant to be ``2 G^2 + sum(G^3 A)``, but the in-place division acts on a copy made
by boolean indexing, so the channel weight is ``sum(G^2 relu(G))``. Its GradCAM, XGradCAM and LayerCAM agree with the papers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tests.models import import_torchvision

import_torchvision()  # both packages import torchvision

import pytorch_grad_cam  # noqa: E402
import torchcam.methods  # noqa: E402
from pytorch_grad_cam.base_cam import BaseCAM  # noqa: E402
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402

Array: TypeAlias = npt.NDArray[np.floating]

PYTORCH_GRAD_CAM_METHODS: dict[str, type[BaseCAM]] = {
    "gradcam": pytorch_grad_cam.GradCAM,
    "gradcam++": pytorch_grad_cam.GradCAMPlusPlus,
    "xgradcam": pytorch_grad_cam.XGradCAM,
    "hirescam": pytorch_grad_cam.HiResCAM,
    "gradcam_elementwise": pytorch_grad_cam.GradCAMElementWise,
    "layercam": pytorch_grad_cam.LayerCAM,
}
METHODS = tuple(PYTORCH_GRAD_CAM_METHODS)
# Those of torch-cam whose layer maps are the same mathematics.
TORCHCAM_METHODS: dict[str, type[torchcam.methods.core._CAM]] = {
    "gradcam": torchcam.methods.GradCAM,
    "xgradcam": torchcam.methods.XGradCAM,
    "layercam": torchcam.methods.LayerCAM,
}

TOLERANCE_FLOOR = 1e-4
TOLERANCE_CEILING = 2e-3


def tolerance(oracle32: Array, oracle64: Array) -> float:
    """Absolute tolerance for maps: 1e-4, or 4 x the oracle's own rounding where that is larger, up to 2e-3."""
    rounding = float(np.abs(oracle32.astype(np.float64) - oracle64.astype(np.float64)).max())
    return max(TOLERANCE_FLOOR, min(4.0 * rounding, TOLERANCE_CEILING))


@dataclass(frozen=True, slots=True)
class Backward:
    """One forward and backward pass through a torch model.

    Attributes:
        logits: (N, K).
        class_indices: (N,) the explained classes.
        activations, gradients: module path to (N, C, h, w), in the model's precision.
    """

    logits: Array
    class_indices: tuple[int, ...]
    activations: dict[str, Array]
    gradients: dict[str, Array]


def in_double(model: nn.Module) -> nn.Module:
    """A float64 copy with the same weights."""
    return copy.deepcopy(model).double()


def resolve_classes(logits: Array, class_indices: Sequence[int]) -> tuple[int, ...]:
    """Classes with -r replaced with the r-th highest logit of that image."""
    order = np.argsort(-logits, axis=1, kind="stable")
    return tuple(int(order[row, -index - 1]) if index < 0 else index for row, index in enumerate(class_indices))


def autograd(model: nn.Module, layers: Sequence[str], inputs: Array, class_indices: Sequence[int]) -> Backward:
    """Activations at ``layers`` and gradients of one logit an image, by torch.autograd.

    Args:
        model: in eval mode, without in-place modules.
        layers: module paths.
        inputs: (N, 3, H, W), cast to the model's precision.
        class_indices: N classes; -r is the r-th highest logit.
    """
    modules = dict(model.named_modules())
    outputs: dict[str, torch.Tensor] = {}

    def keep(layer: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        return lambda _module, _inputs, output: outputs.__setitem__(layer, output)

    handles = [modules[layer].register_forward_hook(keep(layer)) for layer in layers]
    logits = model(_tensor(inputs, model))
    for handle in handles:
        handle.remove()
    classes = resolve_classes(logits.detach().numpy(), class_indices)
    score = logits[torch.arange(len(classes)), torch.tensor(classes)].sum()
    gradients = torch.autograd.grad(score, [outputs[layer] for layer in layers])
    return Backward(
        logits.detach().numpy(),
        classes,
        {layer: outputs[layer].detach().numpy() for layer in layers},
        {layer: gradient.numpy() for layer, gradient in zip(layers, gradients, strict=True)},
    )


class Replay(nn.Module):
    """A model whose target layers have given activations, and whose logit has given gradients there.

    Its logit is the sum over layers of <A, G>, with A leaf tensors that pass through one Identity a layer. It lets
    pytorch-grad-cam compute any number of maps from one pass through the real network.

    Args:
        backward: what to replay.
    """

    def __init__(self, backward: Backward) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Identity() for _ in backward.activations)
        self.activations = nn.ParameterList(torch.from_numpy(a) for a in backward.activations.values())
        self.gradients = [torch.from_numpy(g) for g in backward.gradients.values()]

    def forward(self, _images: torch.Tensor) -> torch.Tensor:
        """Logits (N, 1)."""
        outputs = [layer(a * 1.0) for layer, a in zip(self.layers, self.activations, strict=True)]
        products = [(a * g).flatten(1).sum(1) for a, g in zip(outputs, self.gradients, strict=True)]
        return torch.stack(products).sum(0)[:, None]


@dataclass(frozen=True, slots=True)
class Maps:
    """Saliency maps at input size, by pytorch-grad-cam.

    Attributes:
        layers: module path to the map of that layer alone, (N, H, W).
        refined: the product over all layers, (N, H, W).
    """

    layers: dict[str, Array]
    refined: Array


def replayed_maps(backward: Backward, method: str, size: tuple[int, int]) -> Maps:
    """pytorch-grad-cam's maps from recorded activations and gradients.

    Args:
        backward: of the real model.
        method: one of METHODS.
        size: (H, W) of the input.
    """
    model = Replay(backward)
    images = torch.zeros(len(backward.class_indices), 3, *size)
    targets = [ClassifierOutputTarget(0) for _ in backward.class_indices]
    base = PYTORCH_GRAD_CAM_METHODS[method]
    single = {}
    for layer, module in zip(backward.activations, model.layers, strict=True):
        with base(model, [module]) as cam:
            single[layer] = cam(input_tensor=images, targets=targets)
    refined = pytorch_grad_cam.RefineCAM(model, list(model.layers), base_method=base)(images, targets)
    return Maps(single, refined)


def direct_maps(
    model: nn.Module, layers: Sequence[str], inputs: Array, class_indices: Sequence[int], method: str
) -> Maps:
    """pytorch-grad-cam's maps from the real model, L + 1 times as many passes as `replayed_maps`.

    Args:
        model: in eval mode, without in-place modules.
        layers: module paths.
        inputs: (N, 3, H, W), cast to the model's precision.
        class_indices: N classes, none negative.
        method: one of METHODS.
    """
    modules = dict(model.named_modules())
    images = _tensor(inputs, model)
    targets = [ClassifierOutputTarget(index) for index in class_indices]
    base = PYTORCH_GRAD_CAM_METHODS[method]
    single = {}
    for layer in layers:
        with base(model, [modules[layer]]) as cam:
            single[layer] = cam(input_tensor=images, targets=targets)
    refine = pytorch_grad_cam.RefineCAM(model, [modules[layer] for layer in layers], base_method=base)
    refined = refine(input_tensor=images, targets=targets)
    for cam in refine.base_cam_per_layer:
        cam.activations_and_grads.release()
    model.zero_grad(set_to_none=True)
    return Maps(single, refined)


def torchcam_map(
    model: nn.Module, layers: Sequence[str], inputs: Array, class_indices: Sequence[int], method: str
) -> Array:
    """torch-cam's RefineCAM at the size of its largest layer, (N, h, w).

    Args:
        model: in eval mode.
        layers: module paths, at least two.
        inputs: (N, 3, H, W), cast to the model's precision.
        class_indices: N classes, none negative.
        method: one of TORCHCAM_METHODS.
    """
    with torchcam.methods.RefineCAM(model, list(layers), base_method=TORCHCAM_METHODS[method]) as cam:
        scores = model(_tensor(inputs, model))
        return cam(class_idx=list(class_indices), scores=scores)[0].numpy()


def _tensor(inputs: Array, model: nn.Module) -> torch.Tensor:
    return torch.from_numpy(np.array(inputs)).to(next(model.parameters()).dtype)
