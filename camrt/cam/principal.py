"""The first principal component of a layer over its positions: EigenCAM and EigenGradCAM.

Of X, (h w, C), with its columns' means taken off, v is the right singular vector of the largest singular value, and the
map X v. Its sign is free in the decomposition; here it is the one with which the map correlates positively, over
positions, with the sum of the absolute values of all channels.

The eigenvectors of the smaller one of X^T X and X X^T give it, in float64: NumPy hands both the product and the
decomposition to BLAS and LAPACK.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from camrt.kernels import KernelBackend
from camrt.types import DoubleArray, FloatArray, LayerOutputs


def eigen_maps(backend: KernelBackend, layers: Sequence[LayerOutputs]) -> list[FloatArray]:
    """eigencam: the projection of A, (N, h, w); it does not depend on the class."""
    return [backend.normalize(principal_projection(layer.activations)) for layer in layers]


def eigen_gradient_maps(backend: KernelBackend, layers: Sequence[LayerOutputs]) -> list[FloatArray]:
    """eigengradcam: the projection of G A."""
    with np.errstate(all="ignore"):
        products = [layer.gradients * layer.activations for layer in layers]
    return [backend.normalize(principal_projection(product)) for product in products]


def principal_projection(values: FloatArray) -> FloatArray:
    """The projection of ``values`` (M, C, h, w) on the first principal component over positions, (M, h, w).

    Zero where nothing varies; NaN where a value of the item is not finite.
    """
    maps = [
        _projection(item.reshape(len(item), -1).astype(np.float64))
        if np.isfinite(item).all()
        else np.full(item[0].size, np.nan)
        for item in values
    ]
    return np.stack(maps).reshape(len(values), *values.shape[2:]).astype(np.float32)


def _projection(channels: DoubleArray) -> DoubleArray:
    """Of one item (C, h w), (h w,)."""
    centred = channels - channels.mean(axis=1, keepdims=True)
    if len(centred) <= centred.shape[1]:
        direction = np.linalg.eigh(centred @ centred.T).eigenvectors[:, -1]
        projection = direction @ centred
    else:
        values, vectors = np.linalg.eigh(centred.T @ centred)
        projection = vectors[:, -1] * np.sqrt(max(values[-1], 0.0))
    strength = np.abs(channels).sum(axis=0)
    upright: DoubleArray = projection if projection @ (strength - strength.mean()) >= 0 else -projection
    return upright
