"""The specification of every kernel, in plain NumPy. The other backends must agree with it to 1e-5."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

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
from camrt.kernels.reference_perturbation import ReferencePerturbation
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
    check_weights,
)
from camrt.types import BoolArray, FloatArray, IntArray

_DoubleArray = npt.NDArray[np.float64]

# Added to every min-max denominator, and to the denominators of xgradcam and gradcam++.
NORMALIZE_EPSILON = np.float32(1e-7)
XGRADCAM_EPSILON = np.float32(1e-7)
PLUS_PLUS_EPSILON = np.float32(1e-6)


class ReferenceBackend(ReferencePerturbation):
    """Every kernel in NumPy: float32 in and out, sums in float64."""

    name = "reference"
    description = "NumPy, the specification"

    def channel_weights(self, activations: FloatArray, gradients: FloatArray, rule: ChannelRule) -> FloatArray:
        """See KernelBackend.channel_weights. S is summed in float64 and rounded to float32, a is float32."""
        check_choice("channel rule", rule, CHANNEL_RULES)
        check_layer(activations, gradients)
        with np.errstate(all="ignore"):
            return _CHANNEL_WEIGHTS[rule](activations, gradients)

    def pixel_weights(self, activations: FloatArray, gradients: FloatArray, rule: PixelRule) -> FloatArray:
        """See KernelBackend.pixel_weights."""
        check_choice("pixel rule", rule, PIXEL_RULES)
        check_layer(activations, gradients)
        with np.errstate(all="ignore"):
            return _PIXEL_WEIGHTS[rule](activations, gradients)

    def weighted_sum(self, activations: FloatArray, weights: FloatArray) -> FloatArray:
        """See KernelBackend.weighted_sum."""
        check_weights(activations, weights)
        pixelwise = weights if weights.ndim == 4 else weights[:, :, None, None]
        with np.errstate(all="ignore"):
            return _single((pixelwise.astype(np.float64) * activations).sum(axis=1))

    def layer_map(self, activations: FloatArray, gradients: FloatArray, rule: ChannelRule | PixelRule) -> FloatArray:
        """See KernelBackend.layer_map."""
        check_choice("rule", rule, CHANNEL_RULES + PIXEL_RULES)
        check_layer(activations, gradients)
        with np.errstate(all="ignore"):
            weigh = _CHANNEL_WEIGHTS.get(rule) or _PIXEL_WEIGHTS[rule]
            weights = weigh(activations, gradients)
        return self.normalize(self.weighted_sum(activations, weights))

    def layer_maps(
        self, activations: Sequence[FloatArray], gradients: Sequence[FloatArray], rule: ChannelRule | PixelRule
    ) -> list[FloatArray]:
        """See KernelBackend.layer_maps."""
        check_choice("rule", rule, CHANNEL_RULES + PIXEL_RULES)
        check_layers(activations, gradients)
        return [self.layer_map(a, g, rule) for a, g in zip(activations, gradients, strict=True)]

    def normalize(self, maps: FloatArray) -> FloatArray:
        """See KernelBackend.normalize."""
        check_maps(maps)
        finite = np.isfinite(maps).all(axis=(1, 2), keepdims=True)
        return np.where(finite, _min_max(np.maximum(np.where(finite, maps, 0), 0)), np.float32(np.nan))

    def fuse_layers(
        self,
        layer_maps: Sequence[FloatArray],
        output_size: tuple[int, int],
        fusion: Fusion = "product",
        order: Order = "normalize_twice",
    ) -> tuple[FloatArray, BoolArray]:
        """See KernelBackend.fuse_layers. The fusion itself is float64."""
        check_choice("fusion", fusion, FUSIONS)
        check_choice("order", order, ORDERS)
        check_layer_maps(layer_maps)
        check_fused_size(layer_maps, output_size)
        degenerate = np.stack([_without_contrast(maps) for maps in layer_maps], axis=1)
        normalized = [
            np.where(flags[:, None, None], np.float32(0), self.normalize(maps))
            for maps, flags in zip(layer_maps, degenerate.T, strict=True)
        ]
        if order == "normalize_twice":
            resized = [_min_max(_resize(maps, output_size)) for maps in normalized]
            return _min_max(_fuse(resized, fusion)), degenerate
        largest = (max(maps.shape[1] for maps in layer_maps), max(maps.shape[2] for maps in layer_maps))
        fused = _fuse([_resize(maps, largest) for maps in normalized], fusion)
        return _resize(_min_max(fused), output_size), degenerate

    def resize(self, maps: FloatArray, output_size: tuple[int, int]) -> FloatArray:
        """See KernelBackend.resize."""
        check_maps(maps)
        check_output_size(output_size)
        with np.errstate(all="ignore"):
            return _resize(maps, output_size)

    def warp_affine(self, maps: FloatArray, matrix: FloatArray, output_size: tuple[int, int]) -> FloatArray:
        """See KernelBackend.warp_affine. Coordinates are float64."""
        check_array("maps", maps, ("MHW",))
        check_matrix(matrix)
        check_output_size(output_size)
        column = np.arange(output_size[1], dtype=np.float64)[None, :] + 0.5
        row = np.arange(output_size[0], dtype=np.float64)[:, None] + 0.5
        m = matrix.astype(np.float64)
        x = m[0, 0] * column + m[0, 1] * row + m[0, 2]
        y = m[1, 0] * column + m[1, 1] * row + m[1, 2]
        height, width = maps.shape[1:]
        inside = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
        left, right, across = _taps(x, width)
        upper, lower, down = _taps(y, height)
        with np.errstate(all="ignore"):
            above = _blend(maps[:, upper, left], maps[:, upper, right], across)
            below = _blend(maps[:, lower, left], maps[:, lower, right], across)
            return np.where(inside, _blend(above, below, down), np.float32(0))


def _single(values: npt.NDArray[np.floating]) -> FloatArray:
    return values.astype(np.float32)


def _gradcam_weights(_activations: FloatArray, gradients: FloatArray) -> FloatArray:
    return _single(gradients.mean(axis=(2, 3), dtype=np.float64))


def _gradcam_plus_plus_weights(activations: FloatArray, gradients: FloatArray) -> FloatArray:
    total = _single(activations.sum(axis=(2, 3), dtype=np.float64, keepdims=True))
    square = gradients * gradients
    alpha = square / (2 * square + total * (square * gradients) + PLUS_PLUS_EPSILON)
    # A negative or zero gradient has relu(G) = 0; the comparison lets NaN through.
    terms = np.where(gradients <= 0, np.float32(0), gradients * alpha)
    return _single(terms.sum(axis=(2, 3), dtype=np.float64))


def _xgradcam_weights(activations: FloatArray, gradients: FloatArray) -> FloatArray:
    total = _single(activations.sum(axis=(2, 3), dtype=np.float64))
    products = _single((gradients * activations.astype(np.float64)).sum(axis=(2, 3)))
    return _single(products / (total + XGRADCAM_EPSILON))


def _hirescam_weights(_activations: FloatArray, gradients: FloatArray) -> FloatArray:
    return gradients.copy()


def _gradcam_elementwise_weights(activations: FloatArray, gradients: FloatArray) -> FloatArray:
    return np.where(gradients * activations <= 0, np.float32(0), gradients)


def _layercam_weights(_activations: FloatArray, gradients: FloatArray) -> FloatArray:
    return np.maximum(gradients, 0)


_Weigh = Callable[[FloatArray, FloatArray], FloatArray]
_CHANNEL_WEIGHTS: dict[str, _Weigh] = {
    "gradcam": _gradcam_weights,
    "gradcam++": _gradcam_plus_plus_weights,
    "xgradcam": _xgradcam_weights,
}
_PIXEL_WEIGHTS: dict[str, _Weigh] = {
    "hirescam": _hirescam_weights,
    "gradcam_elementwise": _gradcam_elementwise_weights,
    "layercam": _layercam_weights,
}


def _min_max(maps: FloatArray) -> FloatArray:
    lowest = maps.min(axis=(1, 2), keepdims=True)
    highest = maps.max(axis=(1, 2), keepdims=True)
    return _single((maps - lowest) / (highest - lowest + NORMALIZE_EPSILON))


def _without_contrast(maps: FloatArray) -> BoolArray:
    """(M,): True where a map is not finite, or constant after ReLU."""
    positive = np.maximum(maps, 0)
    constant = positive.max(axis=(1, 2)) == positive.min(axis=(1, 2))
    flags: BoolArray = np.logical_or(constant, ~np.isfinite(maps).all(axis=(1, 2)))
    return flags


def _taps(points: _DoubleArray, length: int) -> tuple[IntArray, IntArray, FloatArray]:
    """Linear interpolation at ``points``, in pixels with centres at half-integers, edges repeated.

    Returns:
        The indices of both neighbours and the weight of the second one.
    """
    position = np.clip(points - 0.5, 0, length - 1)
    low = np.floor(position).astype(np.int64)
    fraction = (position - low).astype(np.float32)
    # Without a share, the second neighbour is not read: an infinite one must not turn into NaN.
    high = np.where(fraction > 0, np.minimum(low + 1, length - 1), low)
    return low, high, fraction


def _blend(first: FloatArray, second: FloatArray, fraction: FloatArray) -> FloatArray:
    return first + (second - first) * fraction


def _resize(maps: FloatArray, output_size: tuple[int, int]) -> FloatArray:
    height, width = maps.shape[1:]
    left, right, across = _taps((np.arange(output_size[1]) + 0.5) * (width / output_size[1]), width)
    upper, lower, down = _taps((np.arange(output_size[0]) + 0.5) * (height / output_size[0]), height)
    wide = _blend(maps[:, :, left], maps[:, :, right], across)
    return _blend(wide[:, upper], wide[:, lower], down[:, None])


def _fuse(layers: Sequence[FloatArray], fusion: Fusion) -> FloatArray:
    return _single(_FUSIONS[fusion](np.stack(layers).astype(np.float64)))


def _fuse_geometric(stacked: _DoubleArray) -> _DoubleArray:
    product: _DoubleArray = stacked.prod(axis=0) ** (1 / len(stacked))
    return product


def _log_sum_exp_inverse(stacked: _DoubleArray) -> _DoubleArray:
    """Logarithm of sum_l exp(1 / m_l), all m_l > 0, with the largest exponent 1 / min m taken out of the sum."""
    inverse = 1 / stacked
    largest = inverse.max(axis=0)
    total: _DoubleArray = largest + np.log(np.exp(inverse - largest).sum(axis=0))
    return total


def _fuse_log_exp(stacked: _DoubleArray) -> _DoubleArray:
    positive = stacked.min(axis=0) > 0
    log_sum = _log_sum_exp_inverse(np.where(positive, stacked, 1))
    return np.where(positive, (np.log(len(stacked)) + 1) / log_sum, 0)


def _fuse_exp_mean(stacked: _DoubleArray) -> _DoubleArray:
    positive = stacked.min(axis=0) > 0
    log_sum = _log_sum_exp_inverse(np.where(positive, stacked, 1))
    return np.where(positive, 1 / (log_sum - np.log(len(stacked))), 0)


_FUSIONS: dict[str, Callable[[_DoubleArray], _DoubleArray]] = {
    "product": lambda stacked: stacked.prod(axis=0),
    "geometric": _fuse_geometric,
    "log_exp": _fuse_log_exp,
    "exp_mean": _fuse_exp_mean,
    "mean": lambda stacked: stacked.mean(axis=0),
    "max": lambda stacked: stacked.max(axis=0),
}
