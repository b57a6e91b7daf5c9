"""Infidelity and max-sensitivity (Yeh et al., arXiv 1901.09392)."""

from __future__ import annotations

import numpy as np

from camrt.metrics.measurement import Measurement, target_values
from camrt.types import BoolArray, DoubleArray, FloatArray

SQUARES = 32
SMALLEST_SQUARE, LARGEST_SQUARE = 1 / 8, 1 / 2

RADIUS = 0.1
DRAWS = 8

_INFIDELITY, _SENSITIVITY = 1, 2


def infidelity(measurement: Measurement) -> DoubleArray:
    """mean_i (a s_i - d_i)^2 over 32 random squares i, (N,). Low is good; 0 is the least.

    d_i is how much the value of the class falls when square i is set to 0, the mean of normalised inputs; s_i is the
    sum of the map in that square. The paper's s is the sum of map times removed pixel values; a CAM map says where, not
    with which sign, so the removal counts as 1. a = sum d s / sum s^2 is the paper's optimal scaling (0 for an empty
    map), without which a map in [0, 1] and its half would score differently.

    The squares are the same for every image: sides uniform in 1/8 to 1/2 of the shorter side of the image, places
    uniform among those inside it, all from default_rng([seed, 1]).
    """
    squares = _squares(measurement)

    def removed(part: slice) -> FloatArray:
        return np.where(squares[None, :, None], np.float32(0), measurement.inputs[part][:, None])

    falls = measurement.once(target_values)[:, None] - measurement.values_of_variants(removed, SQUARES)
    sums = measurement.maps.reshape(len(measurement), -1).astype(np.float64) @ squares.reshape(SQUARES, -1).T
    power = (sums**2).sum(axis=1)
    scale = (falls * sums).sum(axis=1) / np.where(power > 0, power, 1)
    score: DoubleArray = ((scale[:, None] * sums - falls) ** 2).mean(axis=1)
    return score


def max_sensitivity(measurement: Measurement) -> DoubleArray:
    """max_i ||explain(x + e_i, k) - m|| / ||m|| over 8 draws, (N,). Low is good. NaN for an empty map.

    e_i is uniform in [-0.1, 0.1] for every element of the model's input, the same 8 draws for every image, from
    default_rng([seed, 2]); norms are Euclidean. A sampled maximum is a lower bound of the real one.
    """
    random = measurement.random(_SENSITIVITY)
    shape = measurement.inputs.shape[1:]
    largest = np.zeros(len(measurement))
    for _ in range(DRAWS):
        again = _moved_maps(measurement, random.uniform(-RADIUS, RADIUS, shape).astype(np.float32))
        np.maximum(largest, _norms(again.astype(np.float64) - measurement.maps), out=largest)
    norms = _norms(measurement.maps.astype(np.float64))
    return np.where(norms > 0, largest / np.where(norms > 0, norms, 1), np.nan)


def _moved_maps(measurement: Measurement, movement: FloatArray) -> FloatArray:
    return measurement.explain_again(lambda part: measurement.inputs[part] + movement)


def _squares(measurement: Measurement) -> BoolArray:
    """(32, H, W), True inside."""
    random = measurement.random(_INFIDELITY)
    height, width = measurement.maps.shape[1:]
    shorter = min(height, width)
    squares = np.zeros((SQUARES, height, width), np.bool_)
    for square in squares:
        side = max(1, round(random.uniform(SMALLEST_SQUARE, LARGEST_SQUARE) * shorter))
        top, left = random.integers(0, [height - side + 1, width - side + 1])
        square[top : top + side, left : left + side] = True
    return squares


def _norms(maps: DoubleArray) -> DoubleArray:
    norms: DoubleArray = np.sqrt((maps**2).sum(axis=(1, 2)))
    return norms
