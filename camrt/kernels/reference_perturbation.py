"""The specification of the kernels that metrics need, in plain NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from camrt.errors import ImputationError
from camrt.kernels.perturbation import NEIGHBOR_WEIGHTS, PEARSON_EPSILON, REMOVAL_FRACTIONS, kept_shares
from camrt.kernels.perturbation_validation import (
    check_finite_maps,
    check_fractions,
    check_images_and_maps,
    check_keep_masks,
    check_map_pairs,
    check_noise,
    nothing_known,
)
from camrt.types import BoolArray, DoubleArray, FloatArray

_SOLVED = 1e-9
"""Residual at which the solver stops, relative to that of the start."""


class ReferencePerturbation:
    """Removal, imputation and map statistics in NumPy. See PerturbationKernels."""

    def keep_masks(self, saliency_maps: FloatArray, removal_fractions: Sequence[float]) -> BoolArray:
        """See PerturbationKernels.keep_masks."""
        check_finite_maps(saliency_maps)
        check_fractions(removal_fractions)
        return np.stack([_keep_masks(one, removal_fractions) for one in saliency_maps])

    def impute(self, images: FloatArray, keep_masks: BoolArray) -> FloatArray:
        """See PerturbationKernels.impute. Solved by conjugate gradients in float64."""
        check_keep_masks(images, keep_masks)
        empty = np.argwhere(~keep_masks.any(axis=(2, 3)))
        if len(empty):
            raise nothing_known(*empty[0].tolist())
        filled = np.empty((*keep_masks.shape[:2], *images.shape[1:]), np.float32)
        for n, b in np.ndindex(filled.shape[:2]):
            filled[n, b] = _impute(images[n], keep_masks[n, b])
        return filled

    def perturbation_batch(
        self,
        images: FloatArray,
        saliency_maps: FloatArray,
        removal_fractions: Sequence[float] = REMOVAL_FRACTIONS,
        noise: FloatArray | None = None,
    ) -> FloatArray:
        """See PerturbationKernels.perturbation_batch."""
        check_images_and_maps(images, saliency_maps)
        check_noise(images, noise)
        added = np.zeros(images.shape[1:], np.float32) if noise is None else noise
        masks = self.keep_masks(saliency_maps, removal_fractions)
        batch = np.empty((*masks.shape[:2], *images.shape[1:]), np.float32)
        for n, b in np.ndindex(masks.shape[:2]):
            keep = masks[n, b]
            filled = _impute(images[n], keep) if keep.any() else np.zeros_like(images[n])
            batch[n, b] = np.where(keep, filled, filled + added)
        return batch

    def masked_images(self, images: FloatArray, saliency_maps: FloatArray) -> FloatArray:
        """See PerturbationKernels.masked_images."""
        check_images_and_maps(images, saliency_maps)
        return images * saliency_maps[:, None]

    def pearson(self, first: FloatArray, second: FloatArray) -> DoubleArray:
        """See PerturbationKernels.pearson."""
        check_map_pairs(first, second)
        a, b = (maps.reshape(len(maps), -1).astype(np.float64) for maps in (first, second))
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
        degrees = max(a.shape[1] - 1, 1)
        covariance = (a * b).sum(axis=1) / degrees
        deviations = np.sqrt((a * a).sum(axis=1) / degrees) * np.sqrt((b * b).sum(axis=1) / degrees)
        correlation: DoubleArray = covariance / (deviations + PEARSON_EPSILON)
        return correlation

    def mean_absolute(self, maps: FloatArray) -> DoubleArray:
        """See PerturbationKernels.mean_absolute."""
        check_finite_maps(maps)
        means: DoubleArray = np.abs(maps).mean(axis=(1, 2), dtype=np.float64)
        return means


def _keep_masks(saliency_map: FloatArray, fractions: Sequence[float]) -> BoolArray:
    """(2 F, H, W) of one map."""
    orders = (saliency_map.astype(np.float64), (np.float32(1) - saliency_map).astype(np.float64))
    return np.stack([order < np.quantile(order, share) for order in orders for share in kept_shares(fractions)])


def _impute(image: FloatArray, keep: BoolArray) -> FloatArray:
    """(C, H, W) with the missing pixels filled: conjugate gradients, preconditioned by the diagonal, on the system

    d_i x_i - sum_j w_ij x_j = 0 over missing i and neighbours j inside the image, d_i = sum_j w_ij, known x_j fixed.
    The mean of the known pixels is the first guess.
    """
    if keep.all():
        return image.copy()
    missing = ~keep
    diagonal = _neighbor_sums(np.ones((1, *keep.shape)))
    values = np.where(keep, image, 0).astype(np.float64)
    values += missing * (values.sum(axis=(1, 2), keepdims=True) / keep.sum())
    residual = missing * (_neighbor_sums(values) - diagonal * values)
    inverse = np.divide(missing, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)
    direction = inverse * residual
    energy = _dot(residual, direction)
    goal = _SOLVED**2 * energy
    for _ in range(20 * keep.size):
        if (energy <= goal).all():
            break
        image_of = missing * (diagonal * direction - _neighbor_sums(direction))
        curvature = _dot(direction, image_of)
        step = np.divide(energy, curvature, out=np.zeros_like(energy), where=curvature > 0)
        values += step * direction
        residual -= step * image_of
        preconditioned = inverse * residual
        previous, energy = energy, _dot(residual, preconditioned)
        growth = np.divide(energy, previous, out=np.zeros_like(energy), where=previous > 0)
        direction = preconditioned + growth * direction
    else:  # exact arithmetic ends within as many steps as there are pixels
        raise ImputationError("The imputation did not converge.", "Check the image for extreme values.")
    filled: FloatArray = np.where(keep, image, values).astype(np.float32)
    return filled


def _dot(first: DoubleArray, second: DoubleArray) -> DoubleArray:
    """Scalar product of each channel, (C, 1, 1)."""
    product: DoubleArray = (first * second).sum(axis=(1, 2), keepdims=True)
    return product


def _neighbor_sums(values: DoubleArray) -> DoubleArray:
    """(C, H, W): sum of the neighbours inside the image, weighted."""
    height, width = values.shape[1:]
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)))
    total = np.zeros_like(values)
    for (row, column), weight in NEIGHBOR_WEIGHTS:
        total += weight * padded[:, 1 + row : 1 + row + height, 1 + column : 1 + column + width]
    return total
