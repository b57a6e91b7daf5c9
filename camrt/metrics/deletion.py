"""Insertion and deletion (RISE, arXiv 1806.07421): the value of the class as the most relevant pixels come or go.

Pixels are ordered by relevance, those of equal relevance row by row. The value is taken at 30 shares of changed pixels,
0, 1/29, ..., 1 (a share s is floor(s H W + 1/2) pixels), and the score is the area under it by the trapezoid rule.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from camrt.metrics.measurement import Measurement, target_values
from camrt.types import AnyArray, DoubleArray, FloatArray, IntArray

POINTS = 30

_BLUR_RADIUS = 5
_BLUR_SIGMA = 5.0


def deletion_auc(measurement: Measurement) -> DoubleArray:
    """The area while the most relevant pixels are replaced with 0, the mean of normalised inputs, (N,). Low is good."""

    def deleted(part: slice) -> FloatArray:
        return _replaced(measurement, part, _counts(measurement)[1:], np.zeros_like)

    after = measurement.values_of_variants(deleted, POINTS - 1)
    return _area(np.column_stack([measurement.once(target_values), after]))


def insertion_auc(measurement: Measurement) -> DoubleArray:
    """The area while the most relevant pixels of the image are put into a blurred copy of it, (N,). High is good.

    The copy is blurred with a Gaussian (11 x 11, sigma 5, edges repeated), as in RISE: pixels put on an even ground
    would have outlines of their own, and the model would see those instead of the object.
    """

    def inserted(part: slice) -> FloatArray:
        return _replaced(measurement, part, _counts(measurement)[:-1], blurred, others=True)

    before = measurement.values_of_variants(inserted, POINTS - 1)
    return _area(np.column_stack([before, measurement.once(target_values)]))


def blurred(images: FloatArray) -> FloatArray:
    """(N, C, H, W) under a Gaussian of 11 x 11 pixels and sigma 5, edges repeated."""
    offsets = np.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
    weights = np.exp(-(offsets**2) / (2 * _BLUR_SIGMA**2))
    weights /= weights.sum()
    for axis in (2, 3):
        margins = [(0, 0)] * 4
        margins[axis] = (_BLUR_RADIUS, _BLUR_RADIUS)
        padded = np.moveaxis(np.pad(images, margins, "edge"), axis, -1)
        length = images.shape[axis]
        summed = sum(np.float32(weight) * padded[..., k : k + length] for k, weight in enumerate(weights))
        images = np.moveaxis(np.asarray(summed, np.float32), -1, axis)
    return images


def _counts(measurement: Measurement) -> IntArray:
    """(30,) pixels changed at each point."""
    pixels = measurement.maps[0].size
    counts: IntArray = np.floor(np.linspace(0, 1, POINTS) * pixels + 0.5).astype(np.int64)
    return counts


def _replaced(
    measurement: Measurement,
    part: slice,
    counts: IntArray,
    substrate: Callable[[FloatArray], FloatArray],
    others: bool = False,
) -> FloatArray:
    """(n, P, C, H, W): the images with their ``counts`` most relevant pixels replaced, or all others."""
    inputs = measurement.inputs[part]
    first = relevance_ranks(measurement.maps[part])[:, None] < counts[:, None, None]
    replaced = ~first if others else first
    return np.where(replaced[:, :, None], substrate(inputs)[:, None], inputs[:, None])


def relevance_ranks(maps: FloatArray) -> IntArray:
    """(N, H, W): 0 for the most relevant pixel of a map, H W - 1 for the least; ties row by row."""
    flat = maps.reshape(len(maps), -1)
    order = np.argsort(-flat, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(flat.shape[1]), flat.shape), axis=1)
    return ranks.reshape(maps.shape)


def _area(values: AnyArray) -> DoubleArray:
    """(N,) by the trapezoid rule over [0, 1]."""
    area: DoubleArray = (values.sum(axis=1) - (values[:, 0] + values[:, -1]) / 2) / (values.shape[1] - 1)
    return area
