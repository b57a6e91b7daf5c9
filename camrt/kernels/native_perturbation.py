"""The kernels that metrics need, in C++."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from camrt.errors import ImputationError
from camrt.kernels.perturbation import REMOVAL_FRACTIONS, kept_shares
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

if TYPE_CHECKING:
    from camrt.kernels._native import Kernels


class NativePerturbation:
    """Removal, imputation and map statistics in C++. See PerturbationKernels.

    Imputation is conjugate gradients in float32, preconditioned by a multigrid cycle; it needs 1 to 10 steps.
    """

    _kernels: Kernels

    def keep_masks(self, saliency_maps: FloatArray, removal_fractions: Sequence[float]) -> BoolArray:
        """See PerturbationKernels.keep_masks."""
        check_finite_maps(saliency_maps)
        check_fractions(removal_fractions)
        return self._kernels.keep_masks(np.ascontiguousarray(saliency_maps), kept_shares(removal_fractions))

    def impute(self, images: FloatArray, keep_masks: BoolArray) -> FloatArray:
        """See PerturbationKernels.impute."""
        check_keep_masks(images, keep_masks)
        empty = np.argwhere(~keep_masks.any(axis=(2, 3)))
        if len(empty):
            raise nothing_known(*empty[0].tolist())
        try:
            return self._kernels.impute(np.ascontiguousarray(images), np.ascontiguousarray(keep_masks))
        except RuntimeError as error:
            raise _not_converged(error) from error

    def perturbation_batch(
        self,
        images: FloatArray,
        saliency_maps: FloatArray,
        removal_fractions: Sequence[float] = REMOVAL_FRACTIONS,
        noise: FloatArray | None = None,
    ) -> FloatArray:
        """See PerturbationKernels.perturbation_batch."""
        check_images_and_maps(images, saliency_maps)
        check_fractions(removal_fractions)
        check_noise(images, noise)
        dense = [np.ascontiguousarray(array) for array in (images, saliency_maps)]
        added = None if noise is None else np.ascontiguousarray(noise)
        try:
            return self._kernels.perturbation_batch(dense[0], dense[1], kept_shares(removal_fractions), added)
        except RuntimeError as error:
            raise _not_converged(error) from error

    def masked_images(self, images: FloatArray, saliency_maps: FloatArray) -> FloatArray:
        """See PerturbationKernels.masked_images."""
        check_images_and_maps(images, saliency_maps)
        return self._kernels.masked_images(np.ascontiguousarray(images), np.ascontiguousarray(saliency_maps))

    def pearson(self, first: FloatArray, second: FloatArray) -> DoubleArray:
        """See PerturbationKernels.pearson."""
        check_map_pairs(first, second)
        return self._kernels.pearson(np.ascontiguousarray(first), np.ascontiguousarray(second))

    def mean_absolute(self, maps: FloatArray) -> DoubleArray:
        """See PerturbationKernels.mean_absolute."""
        check_finite_maps(maps)
        return self._kernels.mean_absolute(np.ascontiguousarray(maps))


def _not_converged(error: RuntimeError) -> ImputationError:
    return ImputationError(f"{str(error).capitalize()}.", "Check the image for extreme values.")
