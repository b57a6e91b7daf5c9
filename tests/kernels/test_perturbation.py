"""Keep masks, perturbation batches and map statistics: against NumPy, by hand, and every backend against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from camrt.errors import InvalidInputError
from camrt.kernels import KernelBackend, get_backend
from camrt.kernels.perturbation import REMOVAL_FRACTIONS
from camrt.types import FloatArray
from tests.kernels.arrays import STRIDES, maps, strided

SIZES = [(24, 25), (1, 17), (17, 1), (2, 2), (1, 1), (31, 8)]
FRACTIONS = [(0.2, 0.4, 0.6, 0.8), (0.5,), (0.001, 0.999), (0.35, 0.1, 0.75)]


def images(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def rough(seed: int, *shape: int) -> FloatArray:
    """Maps with many ties: a third of the pixels is 0, the others are multiples of 1/8."""
    return np.round(np.maximum(maps(seed, *shape) * 1.5 - 0.5, 0) * 8).astype(np.float32) / 8


def test_keep_masks_by_hand(any_backend: KernelBackend):
    # Ten values, so the 20 % most relevant are 0.8 and 0.9: what is kept lies below the quantile between 0.7 and 0.8.
    one = np.arange(10, dtype=np.float32).reshape(1, 2, 5) / 10
    masks = any_backend.keep_masks(one, [0.2, 0.8])
    assert masks.shape == (1, 4, 2, 5)
    assert masks.dtype == np.bool_
    kept = [np.flatnonzero(mask).tolist() for mask in masks[0]]
    assert kept == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1], [2, 3, 4, 5, 6, 7, 8, 9], [8, 9]]


def test_pixels_of_equal_relevance_stay_together(any_backend: KernelBackend):
    one = np.float32([[[0, 0, 0, 0, 0, 0, 0.5, 1]]])
    most, least = any_backend.keep_masks(one, [0.8])[0]
    assert not most.any()  # the quantile is 0 and nothing lies below
    assert np.flatnonzero(least).tolist() == [6, 7]
    least = any_backend.keep_masks(one, [0.2])[0, 1]
    assert np.flatnonzero(least).tolist() == [6, 7]  # all six zeros go although a fifth of eight pixels was asked for


def test_a_quantile_may_lie_between_two_neighbouring_floats(any_backend: KernelBackend):
    low = np.float32(0.3)
    middle = np.nextafter(low, np.float32(1))
    for pair in ([low, middle], [middle, np.nextafter(middle, np.float32(1))]):  # their means round down once, up once
        most = any_backend.keep_masks(np.float32([[pair]]), [0.5])[0, 0]
        assert most.tolist() == [[True, False]]


@pytest.mark.parametrize("fractions", FRACTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_keep_masks(any_backend: KernelBackend, size, fractions):
    values = np.concatenate([maps(1, 2, *size), rough(2, 2, *size)])
    masks = any_backend.keep_masks(values, fractions)
    for n, one in enumerate(values):
        for f, fraction in enumerate(fractions):
            for order, mask in ((one, masks[n, f]), (np.float32(1) - one, masks[n, len(fractions) + f])):
                threshold = np.quantile(order.astype(np.float64), round(1 - fraction, 12))
                np.testing.assert_array_equal(mask, order < threshold)


@pytest.mark.parametrize("size", [(56, 56), (96, 80), (224, 224)], ids=str)
def test_keep_masks_are_those_of_percentiles(any_backend: KernelBackend, size):
    # What ROAD's implementations do: numpy.percentile of the float32 map.
    values = np.concatenate([maps(3, 1, *size), rough(4, 1, *size)])
    masks = any_backend.keep_masks(values, (0.8, 0.6, 0.4, 0.2))
    for n, one in enumerate(values):
        for f, percentile in enumerate((20, 40, 60, 80)):
            np.testing.assert_array_equal(masks[n, f], one < np.percentile(one, percentile))
            other = np.float32(1) - one
            np.testing.assert_array_equal(masks[n, 4 + f], other < np.percentile(other, percentile))


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_perturbation_batch_is_masks_and_imputation(any_backend: KernelBackend, size, noisy):
    pictures, relevance = images(5, 2, 3, *size), maps(6, 2, *size)
    noise = images(7, 3, *size) if noisy else None
    batch = any_backend.perturbation_batch(pictures, relevance, (0.3, 0.6), noise)
    masks = any_backend.keep_masks(relevance, (0.3, 0.6))
    assert batch.shape == (2, 4, 3, *size)
    for n, b in np.ndindex(2, 4):
        keep = masks[n, b]
        filled = np.zeros_like(pictures[n])
        if keep.any():
            filled = any_backend.impute(pictures[n : n + 1], keep[None, None])[0, 0]
        expected = filled if noise is None else np.where(keep, filled, filled + noise)
        np.testing.assert_array_equal(batch[n, b], expected)


def test_perturbation_batch(backend: KernelBackend, reference: KernelBackend):
    pictures, relevance, noise = images(8, 2, 3, 40, 44), maps(9, 2, 40, 44), images(10, 3, 40, 44)
    expected = reference.perturbation_batch(pictures, relevance, noise=noise)
    np.testing.assert_allclose(backend.perturbation_batch(pictures, relevance, noise=noise), expected, atol=1e-3)
    assert expected.shape[1] == 2 * len(REMOVAL_FRACTIONS)


def test_without_anything_to_keep_an_image_is_zero_and_noise(any_backend: KernelBackend):
    pictures, noise = images(11, 1, 3, 6, 7), images(12, 3, 6, 7)
    constant = np.full((1, 6, 7), 0.5, np.float32)
    np.testing.assert_array_equal(any_backend.perturbation_batch(pictures, constant), np.zeros((1, 8, 3, 6, 7)))
    batch = any_backend.perturbation_batch(pictures, constant, noise=noise)
    np.testing.assert_array_equal(batch, np.broadcast_to(noise, (1, 8, 3, 6, 7)))


def test_masked_images(any_backend: KernelBackend):
    pictures, relevance = images(13, 3, 2, 9, 35), maps(14, 3, 9, 35)
    np.testing.assert_array_equal(any_backend.masked_images(pictures, relevance), pictures * relevance[:, None])


@pytest.mark.parametrize("size", [(24, 25), (1, 17), (2, 2), (224, 224)], ids=str)
def test_pearson(any_backend: KernelBackend, size):
    first, second = maps(15, 3, *size), maps(16, 3, *size)
    result = any_backend.pearson(first, first * np.float32(0.5) + second)
    assert result.dtype == np.float64
    expected = [
        np.corrcoef(a.ravel().astype(np.float64), (a * np.float32(0.5) + b).ravel())[0, 1]
        for a, b in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_pearson_of_maps_without_contrast(any_backend: KernelBackend):
    constant, other = np.full((1, 5, 6), 0.3, np.float32), maps(17, 1, 5, 6)
    np.testing.assert_allclose(any_backend.pearson(constant, other), [0], atol=1e-6)
    np.testing.assert_allclose(any_backend.pearson(constant, constant), [0], atol=1e-6)
    np.testing.assert_allclose(any_backend.pearson(other[:, :1, :1], other[:, :1, :1]), [0], atol=1e-6)
    np.testing.assert_allclose(any_backend.pearson(other, 1 - other), [-1], atol=1e-6)


@pytest.mark.parametrize("size", [(24, 25), (1, 17), (1, 1), (224, 224)], ids=str)
def test_mean_absolute(any_backend: KernelBackend, size):
    values = images(18, 3, *size)
    result = any_backend.mean_absolute(values)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, np.abs(values.astype(np.float64)).mean(axis=(1, 2)), rtol=1e-12)


@pytest.mark.parametrize("how", STRIDES)
def test_arrays_may_be_strided(backend: KernelBackend, how):
    pictures, relevance = images(19, 2, 3, 12, 11), maps(20, 2, 12, 11)
    if how != "channels_last":
        other = strided(relevance, how)
        np.testing.assert_array_equal(
            backend.keep_masks(other, REMOVAL_FRACTIONS), backend.keep_masks(relevance, REMOVAL_FRACTIONS)
        )
        np.testing.assert_array_equal(backend.mean_absolute(other), backend.mean_absolute(relevance))
        np.testing.assert_array_equal(backend.pearson(other, relevance), backend.pearson(relevance, relevance))
    other = strided(pictures, how)
    np.testing.assert_array_equal(
        backend.perturbation_batch(other, relevance), backend.perturbation_batch(pictures, relevance)
    )
    np.testing.assert_array_equal(backend.masked_images(other, relevance), backend.masked_images(pictures, relevance))


@pytest.mark.parametrize("seed", range(40))
def test_random_masks_are_solved(seed: int):
    # Shapes and masks of every density, so that no pattern is left out that nobody thought of.
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 40, 2))
    coarse = rng.random((1 + height // int(rng.integers(1, 6)), 1 + width // int(rng.integers(1, 6))))
    rows = np.arange(height) * coarse.shape[0] // height
    columns = np.arange(width) * coarse.shape[1] // width
    keep = (coarse[np.ix_(rows, columns)] < rng.random()) ^ (rng.random((height, width)) < rng.choice([0, 0.02, 0.2]))
    keep[0, 0] = True
    picture = images(seed, 1, 2, height, width)
    result = get_backend("native", 1).impute(picture, keep[None, None])
    expected = get_backend("reference").impute(picture, keep[None, None])
    deviation = max(float(picture.std()), 1e-3)
    np.testing.assert_allclose(result, expected, atol=1e-3 * deviation)


IMAGES, MAPS = images(21, 2, 3, 4, 5), maps(22, 2, 4, 5)
KEEP = np.ones((2, 1, 4, 5), np.bool_)
NAN = np.where(np.arange(5) == 2, np.float32(np.nan), MAPS)
REFUSED = {
    "maps of rank 2": (lambda b: b.keep_masks(MAPS[0], [0.5]), r"maps has shape \(4, 5\)"),
    "maps with NaN": (lambda b: b.keep_masks(NAN, [0.5]), r"maps holds nan at \[0, 0, 2\]"),
    "no fraction": (lambda b: b.keep_masks(MAPS, []), "removal_fractions is"),
    "fraction 0": (lambda b: b.keep_masks(MAPS, [0.0]), "between 0 and 1"),
    "fraction 1": (lambda b: b.perturbation_batch(IMAGES, MAPS, [0.5, 1.0]), "between 0 and 1"),
    "fraction NaN": (lambda b: b.keep_masks(MAPS, [float("nan")]), "between 0 and 1"),
    "other number of maps": (lambda b: b.perturbation_batch(IMAGES, MAPS[:1]), "do not fit images"),
    "maps of another size": (lambda b: b.masked_images(IMAGES, MAPS[:, :3]), "do not fit images"),
    "images of another dtype": (lambda b: b.masked_images(IMAGES.astype(np.float64), MAPS), "images .*float64"),
    "noise of another size": (lambda b: b.perturbation_batch(IMAGES, MAPS, noise=IMAGES[0, :, :3]), "noise of shape"),
    "masks of another dtype": (lambda b: b.impute(IMAGES, KEEP.astype(np.uint8)), "keep_masks is uint8"),
    "masks of rank 3": (lambda b: b.impute(IMAGES, KEEP[0]), r"keep_masks is bool of shape \(1, 4, 5\)"),
    "masks of another size": (lambda b: b.impute(IMAGES, KEEP[..., :4]), "do not fit images"),
    "no masks": (lambda b: b.impute(IMAGES, KEEP[:, :0]), r"shape \(2, 0, 4, 5\)"),
    "pairs of other shapes": (lambda b: b.pearson(MAPS, MAPS[:1]), "cannot be compared"),
    "infinite map": (lambda b: b.mean_absolute(MAPS * np.float32(np.inf)), "maps holds inf"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_inputs(any_backend: KernelBackend, name):
    call, message = REFUSED[name]
    with pytest.raises(InvalidInputError, match=message):
        call(any_backend)
