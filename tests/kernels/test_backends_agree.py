"""Every backend against the reference, on every kernel."""

from __future__ import annotations

import numpy as np
import pytest

from camrt.kernels import KernelBackend
from camrt.kernels.backend import CHANNEL_RULES, FUSIONS, ORDERS, PIXEL_RULES
from camrt.types import AnyArray, FloatArray
from tests.kernels.arrays import FUSED_SIZES, LAYER_SHAPES, STRIDES, layer, maps, strided

TOLERANCE = 1e-5
RULES = CHANNEL_RULES + PIXEL_RULES
AFFINE = {
    "scale and shift": [[0.3, 0.0, 1.0], [0.0, 0.2, -1.0]],
    "flip": [[-0.5, 0.0, 9.0], [0.0, 0.4, 0.0]],
    "rotation": [[0.3, 0.1, 1.0], [-0.1, 0.2, 2.0]],
    "constant column": [[0.0, 0.0, 2.5], [0.0, 0.5, 0.0]],
    "outside": [[0.1, 0.0, -50.0], [0.0, 1.0, 0.0]],
    "identity": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
}


def assert_close(result: AnyArray, expected: AnyArray) -> None:
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("shape", LAYER_SHAPES, ids=str)
@pytest.mark.parametrize("rule", CHANNEL_RULES)
def test_channel_weights(backend: KernelBackend, reference: KernelBackend, rule, shape):
    arrays = layer(1, *shape)
    assert_close(backend.channel_weights(*arrays, rule), reference.channel_weights(*arrays, rule))


@pytest.mark.parametrize("rule", CHANNEL_RULES)
def test_channel_weights_where_denominators_nearly_vanish(backend: KernelBackend, reference: KernelBackend, rule):
    # Activations of both signs: some 2 G^2 + S G^3 come close to 0, where any other order of operations shows.
    rng = np.random.default_rng(2)
    activations = rng.standard_normal((2, 40, 13, 11), dtype=np.float32)
    gradients = rng.standard_normal((2, 40, 13, 11), dtype=np.float32)
    expected = reference.channel_weights(activations, gradients, rule)
    assert_close(backend.channel_weights(activations, gradients, rule), expected)


@pytest.mark.parametrize("shape", LAYER_SHAPES, ids=str)
@pytest.mark.parametrize("rule", PIXEL_RULES)
def test_pixel_weights(backend: KernelBackend, reference: KernelBackend, rule, shape):
    arrays = layer(3, *shape)
    np.testing.assert_array_equal(backend.pixel_weights(*arrays, rule), reference.pixel_weights(*arrays, rule))


@pytest.mark.parametrize("shape", LAYER_SHAPES, ids=str)
@pytest.mark.parametrize("axes", [2, 4])
def test_weighted_sum(backend: KernelBackend, reference: KernelBackend, axes, shape):
    activations, gradients = layer(4, *shape)
    weights = gradients if axes == 4 else gradients.mean(axis=(2, 3))
    assert_close(backend.weighted_sum(activations, weights), reference.weighted_sum(activations, weights))


@pytest.mark.parametrize("shape", LAYER_SHAPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_layer_map(backend: KernelBackend, reference: KernelBackend, rule, shape):
    arrays = layer(5, *shape)
    result = backend.layer_map(*arrays, rule)
    assert_close(result, reference.layer_map(*arrays, rule))
    assert result.min() >= 0
    assert result.max() <= 1


@pytest.mark.parametrize("rule", RULES)
def test_layer_maps_is_layer_map_of_every_layer(backend: KernelBackend, rule):
    layers = [layer(seed, *shape) for seed, shape in enumerate(LAYER_SHAPES)]
    together = backend.layer_maps([a for a, _ in layers], [g for _, g in layers], rule)
    for result, arrays in zip(together, layers, strict=True):
        np.testing.assert_array_equal(result, backend.layer_map(*arrays, rule))


@pytest.mark.parametrize("how", STRIDES)
@pytest.mark.parametrize("rule", RULES)
def test_layer_map_of_strided_arrays(backend: KernelBackend, rule, how):
    activations, gradients = layer(6, 2, 2, 6, 7, 5)
    result = backend.layer_map(strided(activations, how), strided(gradients, how), rule)
    np.testing.assert_array_equal(result, backend.layer_map(activations, gradients, rule))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 7), (3, 5, 200)], ids=str)
def test_normalize(backend: KernelBackend, reference: KernelBackend, shape):
    values = maps(7, *shape) - np.float32(0.3)
    assert_close(backend.normalize(values), reference.normalize(values))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("sizes", "output_size"), FUSED_SIZES, ids=str)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_fuse_layers(backend: KernelBackend, reference: KernelBackend, order, fusion, sizes, output_size, count):
    layers = [maps(seed, count, *size) for seed, size in enumerate(sizes)]
    result, degenerate = backend.fuse_layers(layers, output_size, fusion, order)
    expected, expected_degenerate = reference.fuse_layers(layers, output_size, fusion, order)
    assert_close(result, expected)
    np.testing.assert_array_equal(degenerate, expected_degenerate)


def _degenerate(kind: str, size: tuple[int, int]) -> FloatArray:
    values = maps(8, *size)
    match kind:
        case "zeros" | "constant":
            values[:] = 0 if kind == "zeros" else 0.7
        case "negative":
            values -= 2
        case _:
            values[size[0] // 2, -1] = {"nan": np.nan, "inf": np.inf, "minus inf": -np.inf}[kind]
    return values


@pytest.mark.parametrize("kind", ["zeros", "constant", "negative", "nan", "inf", "minus inf"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_fuse_layers_with_degenerate_maps(backend: KernelBackend, reference: KernelBackend, order, fusion, kind):
    fine, coarse = maps(9, 3, 14, 14), maps(10, 3, 5, 5)
    fine[1] = _degenerate(kind, (14, 14))
    coarse[2] = _degenerate(kind, (5, 5))
    result, degenerate = backend.fuse_layers([fine, coarse], (30, 31), fusion, order)
    np.testing.assert_array_equal(degenerate, [[False, False], [True, False], [False, True]])
    assert np.isfinite(result).all()
    fine[1], coarse[2] = 0, 0
    expected, _ = reference.fuse_layers([fine, coarse], (30, 31), fusion, order)
    assert_close(result, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", RULES)
def test_layer_map_that_is_not_finite(backend: KernelBackend, reference: KernelBackend, rule, value):
    for index in (0, 1):
        arrays = layer(11, 2, 2, 6, 9, 7)
        arrays[index][1, 3, 4, 6] = value
        result, expected = backend.layer_map(*arrays, rule), reference.layer_map(*arrays, rule)
        assert_close(result, expected)
        assert np.isfinite(result[0]).all()


@pytest.mark.parametrize("values", [[np.nan, 1], [np.inf, 1], [-np.inf, 1], [3, 3], [-3, -1]], ids=str)
def test_normalize_without_contrast(any_backend: KernelBackend, values):
    result = any_backend.normalize(np.float32([[values], [[1, 3]]]))
    np.testing.assert_array_equal(np.isnan(result[0]), not np.isfinite(values).all())
    assert np.isnan(result[0]).all() or not result[0].any()
    np.testing.assert_allclose(result[1], [[0, 1]], atol=1e-6)


@pytest.mark.parametrize(("sizes", "output_size"), FUSED_SIZES, ids=str)
def test_resize(backend: KernelBackend, reference: KernelBackend, sizes, output_size):
    for size in sizes:
        values = maps(12, 2, *size)
        np.testing.assert_array_equal(backend.resize(values, output_size), reference.resize(values, output_size))


def test_resize_to_the_same_size_keeps_every_bit(any_backend: KernelBackend):
    values = maps(13, 2, 6, 37)
    np.testing.assert_array_equal(any_backend.resize(values, (6, 37)), values)


def test_resize_does_not_spread_infinity_to_pixels_that_have_no_share_of_it(any_backend: KernelBackend):
    values = maps(13, 2, 6, 37)
    values[0, 2, 5], values[1, 1, 1] = np.inf, np.nan
    result = any_backend.resize(values, (6, 37))
    np.testing.assert_array_equal(np.isfinite(result), np.isfinite(values))


@pytest.mark.parametrize("how", STRIDES)
def test_maps_may_be_strided(backend: KernelBackend, how):
    values = maps(14, 2, 9, 8)
    other = strided(values, how)
    np.testing.assert_array_equal(backend.normalize(other), backend.normalize(values))
    np.testing.assert_array_equal(backend.resize(other, (20, 21)), backend.resize(values, (20, 21)))
    np.testing.assert_array_equal(
        backend.fuse_layers([other, values], (20, 21))[0], backend.fuse_layers([values, values], (20, 21))[0]
    )


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("size", [(12, 10), (1, 1), (7, 40), (33, 2)], ids=str)
@pytest.mark.parametrize("output_size", [(24, 25), (70, 3), (1, 1)], ids=str)
def test_warp_affine(backend: KernelBackend, reference: KernelBackend, output_size, size, name):
    values, matrix = maps(15, 2, *size), np.float32(AFFINE[name])
    expected = reference.warp_affine(values, matrix, output_size)
    np.testing.assert_array_equal(backend.warp_affine(values, matrix, output_size), expected)


def test_inputs_are_not_written_to(any_backend: KernelBackend):
    activations, gradients = layer(16, 2, 1, 6, 9, 7)
    layers = [maps(17, 2, 9, 9), maps(18, 2, 3, 3)]
    for array in (activations, gradients, *layers):
        array.flags.writeable = False
    for rule in RULES:
        any_backend.layer_map(activations, gradients, rule)
    any_backend.fuse_layers(layers, (20, 20))
    any_backend.normalize(layers[0])
    any_backend.warp_affine(layers[0], np.float32([[1, 0, 0], [0, 1, 0]]), (4, 4))
