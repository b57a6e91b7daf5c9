"""``CAM_METHODS``: name -> how a model is run, and how what it returns becomes the map of a layer.

With A activations, G gradients of the explained logit y_k, S_c the sum of A_c over positions, each followed by ReLU and
min-max:

- gradcam: sum_c mean(G_c) A_c (arXiv 1610.02391)
- gradcam++: sum_c w_c A_c, w_c = sum relu(G_c) a_c, a = G^2 / (2 G^2 + S_c G^3 + 1e-6) (arXiv 1710.11063)
- xgradcam: sum_c (sum G_c A_c / S_c) A_c (arXiv 2008.02312)
- hirescam: sum_c G_c A_c (arXiv 2011.08891)
- gradcam_elementwise: sum_c relu(G_c A_c)
- layercam: sum_c relu(G_c) A_c (IEEE TIP 2021)
- cam: sum_c W[k, c] A_c, W the weights of a linear head behind global average pooling (arXiv 1512.04150). There
  G_c = W[k, c] / (h w) at every position, so W[k, c] is the sum of G_c; other layers are refused.
- eigencam, eigengradcam: A, and G A, projected on the first principal component over positions (arXiv 2008.00299), see
  camrt.cam.principal
- finercam: gradcam of y_k - gamma mean(y_n), n the classes nearest to k (arXiv 2501.11309), see camrt.cam.finer
- shapleycam: sum_c mean(G_c - (H A)_c / 2) A_c, G and H the gradient and the Hessian of y_k + log p_k
  (arXiv 2501.06261), see camrt.exporter.second_order
- scorecam: sum_c softmax_c(y_k of image x mask_c) A_c (arXiv 1910.01279), see camrt.cam.perturbation
- ablationcam: sum_c ((y_k - y_k without c) / y_k) A_c (WACV 2020), see camrt.cam.perturbation
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from camrt.bundle import Manifest
from camrt.cam.finer import collect_finer, require_two_classes
from camrt.cam.method import CamMethod, run_forward, run_second_order, run_to_host
from camrt.cam.perturbation import collect_ablations, collect_scores, weighted_maps
from camrt.cam.principal import eigen_gradient_maps, eigen_maps
from camrt.errors import MethodNotFoundError, MethodUnavailableError
from camrt.kernels import KernelBackend
from camrt.kernels.backend import CHANNEL_RULES, PIXEL_RULES, ChannelRule, PixelRule
from camrt.types import FloatArray, LayerOutputs


def cam_method(name: str) -> CamMethod:
    """The method called ``name``; MethodNotFoundError lists the names there are."""
    if name not in CAM_METHODS:
        raise MethodNotFoundError(f"Unknown CAM method {name!r}.", f"Choose one of {', '.join(CAM_METHODS)}.")
    return CAM_METHODS[name]


def available_methods(manifest: Manifest, layers: Sequence[str], *, expensive: bool = True) -> tuple[str, ...]:
    """The names of CAM_METHODS that work on these layers of a bundle, with or without the expensive ones."""
    return tuple(
        name
        for name, method in CAM_METHODS.items()
        if (expensive or not method.expensive) and _is_available(method, manifest, layers)
    )


def _is_available(method: CamMethod, manifest: Manifest, layers: Sequence[str]) -> bool:
    try:
        method.require(manifest, layers)
    except MethodUnavailableError:
        return False
    return True


def _gradient_maps(
    backend: KernelBackend, layers: Sequence[LayerOutputs], rule: ChannelRule | PixelRule
) -> list[FloatArray]:
    """Maps that need nothing but activations and gradients: one kernel call for all layers."""
    return backend.layer_maps([layer.activations for layer in layers], [layer.gradients for layer in layers], rule)


def _shapley_maps(backend: KernelBackend, layers: Sequence[LayerOutputs]) -> list[FloatArray]:
    """gradcam of G - H A / 2."""
    activations, gradients = [], []
    for layer in layers:
        assert layer.hessian_vectors is not None
        activations.append(layer.activations)
        gradients.append(layer.gradients - np.float32(0.5) * layer.hessian_vectors)
    return backend.layer_maps(activations, gradients, "gradcam")


def _require_linear_head(manifest: Manifest, layers: Sequence[str]) -> None:
    other = [name for name in layers if not manifest.layer(name).linear_head]
    if other:
        good = ", ".join(layer.name for layer in manifest.target_layers if layer.linear_head) or "none of this bundle"
        raise MethodUnavailableError(
            f"cam needs a layer that goes through global average pooling and one linear layer to the logits; "
            f"{', '.join(map(repr, other))} does not (layers that do: {good}).",
            "Choose such a layer, or gradcam, which is the same there and works everywhere.",
        )


def _require_second_order(manifest: Manifest, layers: Sequence[str]) -> None:
    for name in layers:
        manifest.layer(name).arrays(2)


def _require_start(manifest: Manifest, layers: Sequence[str]) -> None:
    for layer in map(manifest.layer, layers):
        if layer.layout not in ("NCHW", "NHWC"):
            raise MethodUnavailableError(
                f"ablationcam starts the model at its layer; {layer.name!r} is kept as {layer.layout}, as tokens.",
                "Choose another layer, or scorecam.",
            )


GRADIENT_METHODS: tuple[ChannelRule | PixelRule, ...] = (*CHANNEL_RULES, *PIXEL_RULES)
"""Those that one kernel call makes of activations and gradients: they work with every bundle and every layer."""

_METHODS = (
    *(CamMethod(rule, partial(_gradient_maps, rule=rule)) for rule in GRADIENT_METHODS),
    CamMethod("cam", partial(_gradient_maps, rule="gradcam"), require=_require_linear_head),
    CamMethod("eigencam", eigen_maps, run_forward, derivatives=0),
    CamMethod("eigengradcam", eigen_gradient_maps, run_to_host),
    CamMethod("finercam", partial(_gradient_maps, rule="gradcam"), collect_finer, require=require_two_classes),
    CamMethod("shapleycam", _shapley_maps, run_second_order, derivatives=2, require=_require_second_order),
    CamMethod("scorecam", weighted_maps, collect_scores, derivatives=0, expensive=True),
    CamMethod("ablationcam", weighted_maps, collect_ablations, derivatives=0, require=_require_start, expensive=True),
)
CAM_METHODS: dict[str, CamMethod] = {method.name: method for method in _METHODS}
