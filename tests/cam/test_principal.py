from __future__ import annotations

import numpy as np
import pytest

from camrt.cam import CAM_METHODS
from camrt.cam.principal import principal_projection
from camrt.kernels import get_backend
from camrt.types import LayerOutputs

SHAPES = [(2, 3, 4, 5), (1, 30, 3, 2), (3, 6, 2, 3), (1, 4, 1, 9), (2, 1, 5, 5)]


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_svd(item: np.ndarray) -> np.ndarray:
    """Of one (C, h, w), without a sign."""
    positions = item.reshape(len(item), -1).T.astype(np.float64)
    centred = positions - positions.mean(axis=0)
    return (centred @ np.linalg.svd(centred)[2][0]).reshape(item.shape[1:])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_projection_is_that_of_the_singular_value_decomposition(shape: tuple[int, ...]) -> None:
    array = values(shape)
    for item, projection in zip(array, principal_projection(array), strict=True):
        np.testing.assert_allclose(np.abs(projection), np.abs(by_svd(item)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_map_is_bright_where_the_channels_are_strong(shape: tuple[int, ...], sign: int) -> None:
    array = sign * np.abs(values(shape))
    strength = np.abs(array).sum(axis=1)
    for projection, strong in zip(principal_projection(array), strength, strict=True):
        assert (projection * (strong - strong.mean())).sum() >= 0
    np.testing.assert_allclose(principal_projection(-array), principal_projection(array), rtol=0, atol=1e-5)


def test_nothing_varies_and_nothing_finite() -> None:
    array = np.ones((3, 4, 2, 2), np.float32)
    array[1, 2, 0, 1], array[2, 0, 0, 0] = np.nan, np.inf
    projection = principal_projection(array)
    assert np.all(projection[0] == 0)
    assert np.isnan(projection[1:]).all()


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_eigencam_does_not_depend_on_the_class_and_eigengradcam_does(backend: str) -> None:
    layer = LayerOutputs("layer", np.abs(values((1, 6, 4, 4))), values((2, 6, 4, 4), 1))
    kernels = get_backend(backend)
    (eigen,) = CAM_METHODS["eigencam"].layer_maps(kernels, [layer])
    (gradient,) = CAM_METHODS["eigengradcam"].layer_maps(kernels, [layer])
    assert eigen.shape == (1, 4, 4)
    assert gradient.shape == (2, 4, 4)
    np.testing.assert_array_equal(eigen, kernels.normalize(principal_projection(layer.activations)))
    expected = kernels.normalize(principal_projection(layer.gradients * layer.activations))
    np.testing.assert_array_equal(gradient, expected)
