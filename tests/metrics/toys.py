"""Models and explainers small enough to compute every score by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from camrt.kernels import get_backend
from camrt.metrics import Measurement, measure
from camrt.types import DoubleArray, FloatArray, IntArray


def rows(*values: object) -> FloatArray:
    """float32 from nested lists."""
    return np.array(values, np.float32)


def image(*values: float) -> FloatArray:
    """One image of one row and one channel, (1, 1, 1, W)."""
    return rows(*values)[None, None, None]


def row_map(*values: float) -> FloatArray:
    """One map of one row, (1, 1, W)."""
    return rows(*values)[None, None]


def mean_value(images: FloatArray) -> DoubleArray:
    """A model of three classes: the mean of the image, its negative, and 0."""
    means = images.mean(axis=(1, 2, 3), dtype=np.float64)
    return np.stack([means, -means, 0 * means], axis=1)


def flat_map(images: FloatArray, class_indices: IntArray) -> FloatArray:
    """An explainer that says 0.5 everywhere."""
    return np.full((len(images), *images.shape[2:]), 0.5, np.float32)


def first_channel(images: FloatArray, class_indices: IntArray) -> FloatArray:
    """An explainer that says what the first channel says."""
    return images[:, 0]


class Counted:
    """A function, and the number of images in each of its calls.

    Attributes:
        calls: images a call.
        images: the images of all calls.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        self.calls: list[int] = []
        self.images: list[FloatArray] = []

    def __call__(self, images: FloatArray, *rest: Any) -> Any:
        self.calls.append(len(images))
        self.images.extend(images)
        return self._function(images, *rest)


def measurement(inputs: FloatArray, maps: FloatArray, **options: Any) -> Measurement:
    """A Measurement with the toys above, class 0, without ROAD's noise, on the reference kernels."""
    defaults: dict[str, Any] = {
        "class_indices": np.zeros(len(inputs), np.int64),
        "predict": mean_value,
        "explain": flat_map,
        "backend": get_backend("reference"),
        "noise_scale": 0.0,
    }
    return Measurement(inputs, maps, **{**defaults, **options})


def score(name: str, inputs: FloatArray, maps: FloatArray, **options: Any) -> DoubleArray:
    """One metric of ``measurement(...)``, (N,)."""
    return measure([name], measurement(inputs, maps, **options))[name]


def score_against(name: str, map_values: object, object_values: object) -> float:
    """A metric with ground truth of one map, from two matrices."""
    saliency, mask = rows(map_values), np.array([object_values], bool)
    inputs = np.zeros((1, 1, *saliency.shape[1:]), np.float32)
    return float(score(name, inputs, saliency, object_masks=mask)[0])
