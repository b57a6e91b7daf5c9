"""The kernels in C++: vectorized, threaded, without the GIL."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from camrt.errors import BackendUnavailableError
from camrt.kernels.backend import (
    CHANNEL_RULES,
    FUSIONS,
    ORDERS,
    PIXEL_RULES,
    ChannelRule,
    Fusion,
    Order,
    PixelRule,
)
from camrt.kernels.native_perturbation import NativePerturbation
from camrt.kernels.validation import (
    check_array,
    check_choice,
    check_fused_size,
    check_layer,
    check_layer_maps,
    check_layers,
    check_maps,
    check_matrix,
    check_output_size,
    check_threads,
    check_weights,
)
from camrt.types import BoolArray, FloatArray

try:
    from camrt.kernels import _native
except ImportError as error:
    reason = str(error).rstrip(".")
    raise BackendUnavailableError(
        f"The native kernels cannot be loaded: {reason}.",
        "Then start again."
        if reason.startswith("CAMRT_CPU")
        else "Reinstall camrt from a wheel for this platform, or use the backend 'reference'.",
    ) from error

_RULES = {
    "gradcam": _native.Rule.gradcam,
    "gradcam++": _native.Rule.gradcam_plus_plus,
    "xgradcam": _native.Rule.xgradcam,
    "hirescam": _native.Rule.hirescam,
    "gradcam_elementwise": _native.Rule.gradcam_elementwise,
    "layercam": _native.Rule.layercam,
}
_FUSIONS = {name: getattr(_native.Fusion, name) for name in FUSIONS}
_ORDERS = {name: getattr(_native.Order, name) for name in ORDERS}


class NativeBackend(NativePerturbation):
    """Every kernel in C++.

    The instruction set is the best that the processor has; the environment variable CAMRT_CPU (baseline, avx2 or
    avx512) limits it. Results depend neither on it nor on the number of threads. Instances may be shared by threads:
    the GIL is released while a kernel works, and a caller that finds the workers busy works alone.

    Args:
        threads: how many threads one call may use, the caller's included; 0 = one a core.

    Raises:
        InvalidInputError: a number of threads below 0 or above 1024.
    """

    name = "native"

    def __init__(self, threads: int = 0) -> None:
        check_threads(threads)
        self._kernels = _native.Kernels(threads)
        active, available = _native.cpu_features()
        self.description = f"C++, {active} of {', '.join(available)}, threads={self._kernels.threads}"

    def channel_weights(self, activations: FloatArray, gradients: FloatArray, rule: ChannelRule) -> FloatArray:
        """See KernelBackend.channel_weights."""
        check_choice("channel rule", rule, CHANNEL_RULES)
        check_layer(activations, gradients)
        return self._kernels.channel_weights(_dense(activations), _dense(gradients), _RULES[rule])

    def pixel_weights(self, activations: FloatArray, gradients: FloatArray, rule: PixelRule) -> FloatArray:
        """See KernelBackend.pixel_weights."""
        check_choice("pixel rule", rule, PIXEL_RULES)
        check_layer(activations, gradients)
        return self._kernels.pixel_weights(_dense(activations), _dense(gradients), _RULES[rule])

    def weighted_sum(self, activations: FloatArray, weights: FloatArray) -> FloatArray:
        """See KernelBackend.weighted_sum."""
        check_weights(activations, weights)
        if weights.ndim == 4:
            return self._kernels.weighted_sum_of_pixels(_dense(activations), _dense(weights))
        return self._kernels.weighted_sum_of_channels(_dense(activations), _dense(weights))

    def layer_map(self, activations: FloatArray, gradients: FloatArray, rule: ChannelRule | PixelRule) -> FloatArray:
        """See KernelBackend.layer_map."""
        return self.layer_maps([activations], [gradients], rule)[0]

    def layer_maps(
        self, activations: Sequence[FloatArray], gradients: Sequence[FloatArray], rule: ChannelRule | PixelRule
    ) -> list[FloatArray]:
        """See KernelBackend.layer_maps."""
        check_choice("rule", rule, CHANNEL_RULES + PIXEL_RULES)
        check_layers(activations, gradients)
        return self._kernels.layer_maps([_dense(a) for a in activations], [_dense(g) for g in gradients], _RULES[rule])

    def normalize(self, maps: FloatArray) -> FloatArray:
        """See KernelBackend.normalize."""
        check_maps(maps)
        return self._kernels.normalize(_dense(maps))

    def fuse_layers(
        self,
        layer_maps: Sequence[FloatArray],
        output_size: tuple[int, int],
        fusion: Fusion = "product",
        order: Order = "normalize_twice",
    ) -> tuple[FloatArray, BoolArray]:
        """See KernelBackend.fuse_layers."""
        check_choice("fusion", fusion, FUSIONS)
        check_choice("order", order, ORDERS)
        check_layer_maps(layer_maps)
        check_fused_size(layer_maps, output_size)
        height, width = output_size
        dense = [_dense(maps) for maps in layer_maps]
        return self._kernels.fuse_layers(dense, height, width, _FUSIONS[fusion], _ORDERS[order])

    def resize(self, maps: FloatArray, output_size: tuple[int, int]) -> FloatArray:
        """See KernelBackend.resize."""
        check_maps(maps)
        check_output_size(output_size)
        return self._kernels.resize(_dense(maps), *output_size)

    def warp_affine(self, maps: FloatArray, matrix: FloatArray, output_size: tuple[int, int]) -> FloatArray:
        """See KernelBackend.warp_affine."""
        check_array("maps", maps, ("MHW",))
        check_matrix(matrix)
        check_output_size(output_size)
        return self._kernels.warp_affine(_dense(maps), _dense(matrix), *output_size)


def _dense(array: FloatArray) -> FloatArray:
    return np.ascontiguousarray(array)
