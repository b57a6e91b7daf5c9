"""Inputs of the kernel tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from camrt.types import FloatArray

# M, N, C, h, w: one image, several classes of one image, several images; odd, even, thin and 1x1 layers.
LAYER_SHAPES = [
    (1, 1, 64, 56, 56),
    (1, 1, 3, 28, 28),
    (1, 1, 2, 70, 61),
    (3, 1, 7, 5, 9),
    (2, 2, 33, 7, 7),
    (1, 1, 1, 1, 1),
    (3, 3, 5, 1, 4),
    (2, 1, 6, 17, 1),
    (1, 1, 700, 14, 15),
]
# Layer sizes and output size; the last ones shrink.
FUSED_SIZES = [
    ([(56, 56), (28, 28), (14, 14), (7, 7)], (224, 224)),
    ([(7, 7)], (31, 33)),
    ([(13, 9), (3, 5), (1, 7)], (31, 33)),
    ([(9, 9), (1, 1)], (40, 1)),
    ([(5, 6), (3, 3), (2, 2), (2, 3), (4, 4)], (17, 16)),
    ([(40, 56), (20, 28)], (16, 48)),
    ([(30, 31), (3, 3)], (7, 5)),
    ([(6, 6), (3, 3)], (1, 1)),
]


def layer(seed: int, m: int, n: int, c: int, h: int, w: int) -> tuple[FloatArray, FloatArray]:
    """Activations and gradients like those of a network: activations after a ReLU, gradients of both signs."""
    rng = np.random.default_rng(seed)
    activations = np.maximum(rng.standard_normal((n, c, h, w), dtype=np.float32) + np.float32(0.5), 0)
    return activations, rng.standard_normal((m, c, h, w), dtype=np.float32)


def maps(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def strided(array: FloatArray, how: str) -> FloatArray:
    """The same values as ``array``, laid out differently in memory."""
    result = STRIDES[how](array)
    assert result.shape == array.shape
    assert np.array_equal(result, array, equal_nan=True)
    return result


def _sliced(array: FloatArray) -> FloatArray:
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1] + 1), np.nan, np.float32)
    wide[..., 1::2] = array
    return wide[..., 1::2]


STRIDES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "transposed": lambda array: np.ascontiguousarray(np.swapaxes(array, -1, -2)).swapaxes(-1, -2),
    "sliced": _sliced,
    "reversed": lambda array: np.ascontiguousarray(array[..., ::-1, ::-1])[..., ::-1, ::-1],
    "channels_last": lambda array: np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1),
    "fortran": np.asfortranarray,
}
