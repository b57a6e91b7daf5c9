"""``BASELINES``: explainers that know nothing about the model, for a metric to be measured against.

Each is a function (inputs (N, C, H, W), class_indices (N,), seed) -> maps (N, H, W) float32 in [0, 1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from camrt.errors import MethodNotFoundError
from camrt.types import FloatArray, IntArray

Baseline: TypeAlias = Callable[[FloatArray, IntArray, int], FloatArray]

_CENTER_SIGMA = 0.25


def baseline(name: str) -> Baseline:
    """The baseline called ``name``; MethodNotFoundError lists the names there are."""
    if name not in BASELINES:
        raise MethodNotFoundError(f"Unknown baseline {name!r}.", f"Choose some of {', '.join(BASELINES)}.")
    return BASELINES[name]


def random_maps(inputs: FloatArray, _: IntArray, seed: int) -> FloatArray:
    """Independent uniform pixels, a function of the seed and of the image's bytes only."""
    height, width = inputs.shape[2:]
    maps = np.empty((len(inputs), height, width), np.float32)
    for image, random_map in zip(inputs, maps, strict=True):
        digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()
        generator = np.random.default_rng([seed, int.from_bytes(digest[:16], "little")])
        generator.random(dtype=np.float32, out=random_map)
    return maps


def all_ones(inputs: FloatArray, _: IntArray, __: int) -> FloatArray:
    """Everything matters: 1 everywhere."""
    return np.ones((len(inputs), *inputs.shape[2:]), np.float32)


def left_half(inputs: FloatArray, _: IntArray, __: int) -> FloatArray:
    """1 in the left half, 0 in the right one."""
    maps = np.zeros((len(inputs), *inputs.shape[2:]), np.float32)
    maps[:, :, : inputs.shape[3] // 2] = 1
    return maps


def center_gaussian(inputs: FloatArray, _: IntArray, __: int) -> FloatArray:
    """A Gaussian at the image's centre, standard deviation a quarter of each side, min-max normalised."""
    rows, columns = (_bell(side) for side in inputs.shape[2:])
    bell = rows[:, None] * columns[None, :]
    spread = float(np.ptp(bell))
    normalised = ((bell - bell.min()) / (spread or 1.0)).astype(np.float32)
    return np.repeat(normalised[None], len(inputs), axis=0)


def _bell(side: int) -> FloatArray:
    position = (np.arange(side) + 0.5) / side - 0.5
    values: FloatArray = np.exp(-0.5 * (position / _CENTER_SIGMA) ** 2).astype(np.float32)
    return values


BASELINES: dict[str, Baseline] = {
    "random": random_maps,
    "ones": all_ones,
    "half": left_half,
    "center": center_gaussian,
}
