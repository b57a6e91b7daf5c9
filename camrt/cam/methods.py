"""``CAM_METHODS``: name -> how activations and gradients become the map of a layer.

With A activations, G gradients of the explained logit, S_c the sum of A_c over positions, each followed by ReLU and
min-max:

- gradcam: sum_c mean(G_c) A_c (arXiv 1610.02391)
- gradcam++: sum_c w_c A_c, w_c = sum relu(G_c) a_c, a = G^2 / (2 G^2 + S_c G^3 + 1e-6) (arXiv 1710.11063)
- xgradcam: sum_c (sum G_c A_c / S_c) A_c (arXiv 2008.02312)
- hirescam: sum_c G_c A_c (arXiv 2011.08891)
- gradcam_elementwise: sum_c relu(G_c A_c)
- layercam: sum_c relu(G_c) A_c (IEEE TIP 2021)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from camrt.errors import MethodNotFoundError
from camrt.kernels import KernelBackend
from camrt.kernels.backend import CHANNEL_RULES, PIXEL_RULES, ChannelRule, PixelRule
from camrt.types import FloatArray, LayerOutputs

LayerMaps: TypeAlias = Callable[[KernelBackend, Sequence[LayerOutputs]], list[FloatArray]]


@dataclass(frozen=True, slots=True)
class CamMethod:
    """One method.

    Attributes:
        name: its name in the API.
        layer_maps: (backend, L layers) -> L maps, (M, h, w) in [0, 1] each.
    """

    name: str
    layer_maps: LayerMaps


def cam_method(name: str) -> CamMethod:
    """The method called ``name``; MethodNotFoundError lists the names there are."""
    if name not in CAM_METHODS:
        raise MethodNotFoundError(f"Unknown CAM method {name!r}.", f"Choose one of {', '.join(CAM_METHODS)}.")
    return CAM_METHODS[name]


def _gradient_maps(
    backend: KernelBackend, layers: Sequence[LayerOutputs], rule: ChannelRule | PixelRule
) -> list[FloatArray]:
    """Maps that need nothing but activations and gradients: one kernel call for all layers."""
    return backend.layer_maps([layer.activations for layer in layers], [layer.gradients for layer in layers], rule)


CAM_METHODS: dict[str, CamMethod] = {
    rule: CamMethod(rule, partial(_gradient_maps, rule=rule)) for rule in (*CHANNEL_RULES, *PIXEL_RULES)
}
