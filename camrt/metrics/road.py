"""ROAD, "remove and debias" (arXiv 2202.00449)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from camrt.kernels.perturbation import REMOVAL_FRACTIONS
from camrt.metrics.measurement import Measurement
from camrt.types import DoubleArray, FloatArray


def road(measurement: Measurement) -> DoubleArray:
    """(mean_p LeRF_p - mean_p MoRF_p) / 2 over the removal fractions 0.2, 0.4, 0.6, 0.8, (N,).

    MoRF_p and LeRF_p are the value of the class after the fraction p of the most (least) relevant pixels was removed:
    filled in from their surroundings, plus noise. The value on the unchanged image cancels and is not computed. The
    noise is one field for every image, noise_scale * default_rng(seed).standard_normal((C, H, W)).

    A constant map removes everything in both orders, so its score is 0.
    """
    noise = _noise(measurement)

    def removed(part: slice) -> FloatArray:
        inputs, maps = measurement.inputs[part], measurement.maps[part]
        return measurement.backend.perturbation_batch(inputs, maps, REMOVAL_FRACTIONS, noise)

    fractions = len(REMOVAL_FRACTIONS)
    values = measurement.values_of_variants(removed, 2 * fractions)
    most, least = values[:, :fractions].mean(axis=1), values[:, fractions:].mean(axis=1)
    score: DoubleArray = (least - most) / 2
    return score


def _noise(measurement: Measurement) -> FloatArray | None:
    if measurement.noise_scale == 0:
        return None
    return _noise_field(measurement.seed, measurement.noise_scale, measurement.inputs.shape[1:])


@lru_cache(maxsize=4)
def _noise_field(seed: int, scale: float, shape: tuple[int, ...]) -> FloatArray:
    """scale * standard normal numbers, read-only: every measurement of a model needs the same."""
    field = np.float32(scale) * np.random.default_rng(seed).standard_normal(shape, np.float32)
    field.flags.writeable = False
    return field
