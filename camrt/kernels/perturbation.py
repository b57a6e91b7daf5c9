"""The kernels that metrics need: what to remove from an image, what to put there, and how alike two maps are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from camrt.types import BoolArray, DoubleArray, FloatArray

REMOVAL_FRACTIONS = (0.2, 0.4, 0.6, 0.8)
"""The fractions of ROAD in arXiv 2605.14641."""

NEIGHBOR_WEIGHTS = (
    ((-1, -1), 1 / 12),
    ((-1, 0), 1 / 6),
    ((-1, 1), 1 / 12),
    ((0, -1), 1 / 6),
    ((0, 1), 1 / 6),
    ((1, -1), 1 / 12),
    ((1, 0), 1 / 6),
    ((1, 1), 1 / 12),
)
"""(row, column) offset of a neighbour, and its weight in imputation."""

PEARSON_EPSILON = 1e-8


def kept_shares(removal_fractions: Sequence[float]) -> list[float]:
    """What stays of the pixels: 1 - fraction, without the rounding of that subtraction (1 - 0.8 is 0.2)."""
    return [round(1 - fraction, 12) for fraction in removal_fractions]


class PerturbationKernels(Protocol):
    """Removal, imputation and map statistics. F removal fractions, B masks an image; True in a keep mask = kept.

    All kernels raise InvalidInputError for arrays that do not fit together, empty axes, values that are not finite,
    and fractions outside (0, 1).
    """

    def keep_masks(self, saliency_maps: FloatArray, removal_fractions: Sequence[float]) -> BoolArray:
        """Which pixels stay when a fraction of them is removed, (N, 2 F, H, W).

        Masks 0 to F - 1 remove the most relevant pixels first: kept is ``m < quantile(m, 1 - fraction)`` of a map m.
        Masks F to 2 F - 1 remove the least relevant first: the same of 1 - m (float32). Quantiles are NumPy's (linear),
        in float64. Pixels of equal relevance stay or go together, so ties can remove more than the fraction, even all.
        """
        ...

    def impute(self, images: FloatArray, keep_masks: BoolArray) -> FloatArray:
        """Fills what is missing from its surroundings, (N, B, C, H, W). ROAD's linear imputation (arXiv 2202.00449).

        images (N, C, H, W), keep_masks (N, B, H, W). Kept pixels keep their values. The others solve
        x_i sum_j w_ij = sum_j w_ij x_j over the 8 neighbours j inside the image, w = 1/6 beside, 1/12 diagonally. The
        error of an element is below 1e-3 of the standard deviation of the image's channel.

        Raises:
            ImputationError: a mask keeps nothing, so nothing is known.
        """
        ...

    def perturbation_batch(
        self,
        images: FloatArray,
        saliency_maps: FloatArray,
        removal_fractions: Sequence[float] = REMOVAL_FRACTIONS,
        noise: FloatArray | None = None,
    ) -> FloatArray:
        """The changed images that ROAD needs, (N, 2 F, C, H, W): keep_masks and impute in one call.

        images (N, C, H, W), saliency_maps (N, H, W). ``noise`` (C, H, W) is added where pixels were removed. Where
        ties leave nothing to keep, an image is 0 and the noise: without information, the mean of normalised inputs.
        """
        ...

    def masked_images(self, images: FloatArray, saliency_maps: FloatArray) -> FloatArray:
        """images (N, C, H, W) times saliency_maps (N, H, W), (N, C, H, W)."""
        ...

    def pearson(self, first: FloatArray, second: FloatArray) -> DoubleArray:
        """Correlation of each pair of maps, both (N, H, W), (N,): cov / (std std + 1e-8), 0 for a constant map.

        cov and std divide by H W - 1.
        """
        ...

    def mean_absolute(self, maps: FloatArray) -> DoubleArray:
        """Mean of |m| of each map of (N, H, W), (N,)."""
        ...
