"""Metrics that know where the object is: the map m against the object mask g, 1 on the object and 0 beside it.

All of them are NaN for an image without an object pixel, for example one that the preprocessing has cropped away.
"""

from __future__ import annotations

import numpy as np

from camrt.metrics.measurement import Measurement
from camrt.types import AnyArray, BoolArray, DoubleArray, FloatArray

_CLIP = 1e-7


def pointing_game(measurement: Measurement) -> DoubleArray:
    """1 if the maximum of m lies on the object, else 0, (N,) (arXiv 1608.00507, without its tolerance of 15 pixels).

    Several maxima count by their share on the object, the chance that one picked at random hits: a constant map scores
    the object's share of the image, not 1.
    """
    maps, masks = _flat(measurement)
    maxima = maps == maps.max(axis=1, keepdims=True)
    return _defined((maxima & masks).sum(axis=1) / maxima.sum(axis=1), masks)


def roc_auc(measurement: Measurement) -> DoubleArray:
    """The chance that m is higher at a pixel of the object than beside it, ties counting half, (N,).

    This is the area under the ROC curve of m as a classifier of pixels. A constant map scores 0.5; NaN where the object
    fills the image.
    """
    maps, masks = _flat(measurement)
    inside = masks.sum(axis=1)
    outside = masks.shape[1] - inside
    ranks = np.stack([_average_ranks(row) for row in maps])
    wins = (ranks * masks).sum(axis=1) - inside * (inside + 1) / 2
    pairs = inside * outside
    return np.where(pairs > 0, wins / np.where(pairs > 0, pairs, 1), np.nan)


def mass_iou(measurement: Measurement) -> DoubleArray:
    """sum m g / sum m: the share of the map that lies on the object, (N,). 0 for an empty map."""
    maps, masks = _flat(measurement)
    mass = maps.sum(axis=1, dtype=np.float64)
    hits = np.where(masks, maps, 0).sum(axis=1, dtype=np.float64)
    return _defined(hits / np.where(mass > 0, mass, 1), masks)


def bce(measurement: Measurement) -> DoubleArray:
    """mean -(g ln m + (1 - g) ln(1 - m)), (N,), with m clipped to [1e-7, 1 - 1e-7]."""
    maps, masks = _flat(measurement)
    chances = np.clip(maps.astype(np.float64), _CLIP, 1 - _CLIP)
    return _defined(-np.log(np.where(masks, chances, 1 - chances)).mean(axis=1), masks)


def l2(measurement: Measurement) -> DoubleArray:
    """sqrt(mean (m - g)^2), (N,): the root mean square, which does not grow with the image."""
    maps, masks = _flat(measurement)
    return _defined(np.sqrt(((maps.astype(np.float64) - masks) ** 2).mean(axis=1)), masks)


def cosine(measurement: Measurement) -> DoubleArray:
    """sum m g / (||m|| ||g||), (N,). 0 for an empty map."""
    maps, masks = _flat(measurement)
    hits = np.where(masks, maps, 0).sum(axis=1, dtype=np.float64)
    norms = np.sqrt((maps.astype(np.float64) ** 2).sum(axis=1) * masks.sum(axis=1))
    return _defined(hits / np.where(norms > 0, norms, 1), masks)


def _flat(measurement: Measurement) -> tuple[FloatArray, BoolArray]:
    """Maps and masks, (N, H W)."""
    count = len(measurement)
    return measurement.maps.reshape(count, -1), measurement.object_masks.reshape(count, -1)


def _defined(scores: AnyArray, masks: BoolArray) -> DoubleArray:
    return np.where(masks.any(axis=1), scores, np.nan)


def _average_ranks(values: AnyArray) -> DoubleArray:
    """Ranks from 1 of the elements of a vector, equal ones sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: DoubleArray = (last - (counts - 1) / 2)[place]
    return ranks
