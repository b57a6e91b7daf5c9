"""The kernel protocol and the registry ``KERNEL_BACKENDS``.

A backend has every kernel or it is none. ``reference`` is the specification: the other backends are tested against it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from camrt.errors import BackendUnavailableError
from camrt.kernels.perturbation import PerturbationKernels
from camrt.types import BoolArray, FloatArray

ChannelRule: TypeAlias = Literal["gradcam", "gradcam++", "xgradcam"]
PixelRule: TypeAlias = Literal["hirescam", "gradcam_elementwise", "layercam"]
Fusion: TypeAlias = Literal["product", "geometric", "log_exp", "exp_mean", "mean", "max"]
Order: TypeAlias = Literal["normalize_twice", "resize_once"]

CHANNEL_RULES: tuple[ChannelRule, ...] = ("gradcam", "gradcam++", "xgradcam")
PIXEL_RULES: tuple[PixelRule, ...] = ("hirescam", "gradcam_elementwise", "layercam")
FUSIONS: tuple[Fusion, ...] = ("product", "geometric", "log_exp", "exp_mean", "mean", "max")
ORDERS: tuple[Order, ...] = ("normalize_twice", "resize_once")


class KernelBackend(PerturbationKernels, Protocol):
    """Every kernel, with those of PerturbationKernels.

    Arrays are float32; N is M, or 1 (activations of one image shared by M classes).

    All kernels raise InvalidInputError for a wrong rank or dtype, an empty axis, or shapes that do not fit together,
    and MethodNotFoundError for an unknown rule, fusion or order. Arrays need not be contiguous; inputs are never
    written to.
    """

    name: str
    description: str

    def channel_weights(self, activations: FloatArray, gradients: FloatArray, rule: ChannelRule) -> FloatArray:
        """Weight of every channel, (M, C).

        With A = activations (N, C, h, w), G = gradients (M, C, h, w), S = sum over (h, w) of A:
        gradcam: mean of G. gradcam++: sum of relu(G) * a, a = G^2 / (2 G^2 + S G^3 + 1e-6) where G != 0, else 0.
        xgradcam: sum of G * A / (S + 1e-7).
        """
        ...

    def pixel_weights(self, activations: FloatArray, gradients: FloatArray, rule: PixelRule) -> FloatArray:
        """Weight of every element, (M, C, h, w).

        hirescam: G. layercam: relu(G). gradcam_elementwise: G where G A > 0 (so that G A becomes relu(G A)), else 0.
        NaN stays NaN.
        """
        ...

    def weighted_sum(self, activations: FloatArray, weights: FloatArray) -> FloatArray:
        """Sum over channels of weights * activations, (M, h, w), no ReLU. weights: (M, C) or (M, C, h, w)."""
        ...

    def layer_map(self, activations: FloatArray, gradients: FloatArray, rule: ChannelRule | PixelRule) -> FloatArray:
        """Weights, weighted sum, ReLU and min-max in one call, (M, h, w) in [0, 1]; pixel weights are never stored.

        A map with a value that is not finite comes out all NaN, as from normalize.
        """
        ...

    def layer_maps(
        self, activations: Sequence[FloatArray], gradients: Sequence[FloatArray], rule: ChannelRule | PixelRule
    ) -> list[FloatArray]:
        """layer_map of L layers in one call: the work of all of them is shared out over the threads together."""
        ...

    def normalize(self, maps: FloatArray) -> FloatArray:
        """ReLU, then min-max of each map: (x - min) / (max - min + 1e-7), (M, h, w).

        A constant map becomes all zeros; a map with a value that is not finite (before ReLU) becomes all NaN.
        """
        ...

    def fuse_layers(
        self,
        layer_maps: Sequence[FloatArray],
        output_size: tuple[int, int],
        fusion: Fusion = "product",
        order: Order = "normalize_twice",
    ) -> tuple[FloatArray, BoolArray]:
        """Maps of L layers, each (M, h_l, w_l), to one saliency map (M, H, W) in [0, 1].

        normalize_twice: normalize at layer size, bilinear resize (half-pixel centres, no antialias) to output_size,
        min-max again, fuse over layers, min-max. resize_once: normalize at layer size, resize to (max h_l, max w_l),
        fuse, min-max, resize to output_size (torch-cam's order).

        With m_l the L values at one pixel: product: prod m_l. geometric: (prod m_l)^(1/L). log_exp: (ln L + 1) /
        ln sum_l exp(1/m_l). exp_mean: 1 / ln((1/L) sum_l exp(1/m_l)). Both are 0 where an m_l is 0. mean, max: over l.

        Returns:
            The saliency map, and degenerate (M, L): True where a layer's map was not finite, or constant after ReLU.
            Such a map counts as all zeros.
        """
        ...

    def resize(self, maps: FloatArray, output_size: tuple[int, int]) -> FloatArray:
        """Bilinear resize (half-pixel centres, no antialias) of (M, h, w) to (M, H, W)."""
        ...

    def warp_affine(self, maps: FloatArray, matrix: FloatArray, output_size: tuple[int, int]) -> FloatArray:
        """Bilinear sampling of (M, H, W) at ``matrix`` @ (x, y, 1), (M, H', W'); zero outside.

        matrix is (2, 3) float32 and takes output pixel coordinates to input pixel coordinates, pixel centres at
        half-integers: output pixel (column i, row j) is the point (i + 0.5, j + 0.5). Points inside the input's area
        [0, W] x [0, H] but less than half a pixel from its edge repeat the edge; points outside that area give 0.
        """
        ...


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """Whether a backend works here, and if not why and what to install."""

    name: str
    available: bool
    detail: str


def _reference(_threads: int) -> KernelBackend:
    from camrt.kernels.reference import ReferenceBackend

    return ReferenceBackend()


def _native(threads: int) -> KernelBackend:
    from camrt.kernels.native_backend import NativeBackend

    return NativeBackend(threads)


def _cuda(threads: int) -> KernelBackend:
    from camrt.kernels.cuda.backend import CudaBackend

    return CudaBackend(threads)


KERNEL_BACKENDS: dict[str, Callable[[int], KernelBackend]] = {
    "reference": _reference,
    "native": _native,
    "cuda": _cuda,
}
AUTO = "auto"
_FASTEST_FIRST = ("cuda", "native", "reference")
_logger = logging.getLogger(__name__)


def _auto(threads: int) -> KernelBackend:
    """The fastest backend that works here; which one it is and why the others do not work is logged."""
    reasons = []
    for name in _FASTEST_FIRST:
        try:
            backend = get_backend(name, threads)
        except BackendUnavailableError as error:
            reasons.append(f"{name}: {error}")
            continue
        _logger.info("Kernel backend %s, chosen automatically. %s", backend.name, " ".join(reasons))
        return backend
    raise BackendUnavailableError("No kernel backend works here.", " ".join(reasons))


@cache
def get_backend(name: str = "native", threads: int = 0) -> KernelBackend:
    """The kernel backend called ``name``.

    Args:
        name: a key of KERNEL_BACKENDS; or "auto", the first of cuda, native and reference that works here, which is
            logged once.
        threads: worker threads of the backend; 0 = one a core.

    Raises:
        BackendUnavailableError: unknown name, or the backend cannot be loaded here.
    """
    if name == AUTO:
        return _auto(threads)
    if name not in KERNEL_BACKENDS:
        names = ", ".join([*KERNEL_BACKENDS, AUTO])
        raise BackendUnavailableError(f"Unknown kernel backend {name!r}.", f"Choose one of {names}.")
    return KERNEL_BACKENDS[name](threads)


def as_numpy(array: Any) -> Any:
    """What a kernel returned, on the host: a NumPy array as it is, an array on a GPU as a copy, which waits for it."""
    return array if isinstance(array, np.ndarray) else array.get()


def available_backends() -> tuple[BackendStatus, ...]:
    """One status a registered backend, for ``camrt doctor``."""
    statuses = []
    for name in KERNEL_BACKENDS:
        try:
            backend = get_backend(name)
            statuses.append(BackendStatus(name, True, backend.description))
        except BackendUnavailableError as error:
            statuses.append(BackendStatus(name, False, str(error)))
    return tuple(statuses)
