"""Complexity, coherency, ROAD, ARCC, ADCC, average drop, increase: values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from camrt.kernels import available_backends, get_backend
from camrt.metrics import measure
from tests.metrics.toys import Counted, first_channel, image, mean_value, measurement, row_map, rows, score

BACKENDS = [status.name for status in available_backends() if status.available]
STAIRS = image(0, 1, 2, 3, 4)
RAMP = row_map(0, 0.25, 0.5, 0.75, 1)
# The imputation of a kernel may be wrong by 1e-3 standard deviations of the image.
IMPUTATION = 1e-3 * float(STAIRS.std())


def test_complexity_is_the_mean() -> None:
    inputs, maps = np.zeros((2, 3, 2, 2), np.float32), rows([[0, 0.5], [1, 0.5]], [[0, 0], [0, 1]])
    np.testing.assert_allclose(score("complexity", inputs, maps), [0.5, 0.25], rtol=0, atol=1e-7)


def test_coherency_is_the_correlation_with_the_map_of_the_masked_image() -> None:
    """x m = (1, 0, 0.5, 0): deviations (5, -3, 1, -3) / 8 from their mean, those of m (4, -4, 0, 0) / 8."""
    correlation = (5 * 4 + 3 * 4) / math.sqrt((25 + 9 + 1 + 9) * (16 + 16))
    scores = score("coherency", image(1, 1, 1, 0), row_map(1, 0, 0.5, 0.5), explain=first_channel)
    assert scores == pytest.approx([(correlation + 1) / 2], abs=1e-6)
    assert scores == pytest.approx([0.926401], abs=1e-6)


def test_coherency_of_maps_that_agree_and_that_are_opposite() -> None:
    saliency = row_map(0, 0.25, 0.5, 1)
    same = score("coherency", STAIRS[..., :4], saliency, explain=lambda images, classes: saliency)
    opposite = score("coherency", STAIRS[..., :4], saliency, explain=lambda images, classes: 1 - saliency)
    assert same == pytest.approx([1], abs=1e-6)
    assert opposite == pytest.approx([0], abs=1e-6)


def test_coherency_explains_the_masked_image_for_its_class() -> None:
    seen = []

    def explain(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        seen.append((images.copy(), classes.copy()))
        return images[:, 0] / 4

    score("coherency", STAIRS, RAMP, explain=explain, class_indices=np.array([2]))
    ((images, classes),) = seen
    np.testing.assert_allclose(images, image(0, 0.25, 1, 2.25, 4), rtol=0, atol=1e-6)
    assert classes.tolist() == [2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_road(backend: str) -> None:
    """In one row, what is missing at an end becomes its nearest known pixel.

    Most relevant first: (0 1 2 3 3), (0 1 2 2 2), (0 1 1 1 1), (0 0 0 0 0), mean 20 / 20. Least relevant first:
    (1 1 2 3 4), (2 2 2 3 4), (3 3 3 3 4), (4 4 4 4 4), mean 60 / 20.
    """
    kernels = get_backend(backend, 1)
    assert score("road", STAIRS, RAMP, backend=kernels) == pytest.approx([1.0], abs=IMPUTATION)
    assert score("road", STAIRS, 1 - RAMP, backend=kernels) == pytest.approx([-1.0], abs=IMPUTATION)


def test_road_does_not_ask_for_the_unchanged_image() -> None:
    predict = Counted(lambda images: images.mean(axis=(2, 3), dtype=np.float64))
    score("road", STAIRS, RAMP, predict=predict)
    assert predict.calls == [8]
    assert not any(np.array_equal(one, STAIRS[0]) for one in predict.images)


@pytest.mark.parametrize("backend", BACKENDS)
def test_road_adds_one_field_of_noise_where_pixels_went(backend: str) -> None:
    seed, scale = 7, 0.5
    noise = scale * np.random.default_rng(seed).standard_normal((1, 1, 5), np.float32)
    filled = rows([0, 1, 2, 3, 3], [0, 1, 2, 2, 2], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0])
    gone = np.arange(5) > np.array([3, 2, 1, 0])[:, None]
    predict = Counted(lambda images: images.mean(axis=(2, 3), dtype=np.float64))
    kernels = get_backend(backend, 1)
    inputs, maps = np.concatenate([STAIRS, STAIRS]), np.concatenate([RAMP, RAMP])
    score("road", inputs, maps, predict=predict, backend=kernels, seed=seed, noise_scale=scale)
    images = np.stack(predict.images).reshape(2, 8, 5)
    np.testing.assert_allclose(images[0, :4], filled + np.where(gone, noise[0], 0), rtol=0, atol=IMPUTATION)
    np.testing.assert_array_equal(images[0], images[1])


def test_noise_by_default() -> None:
    seeds = [score("road", STAIRS, RAMP, seed=seed, noise_scale=0.01)[0] for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert abs(seeds[0] - 1) < 0.02


def test_arcc() -> None:
    """Coherency 1/2, complexity 1/2, road 1 (clipped to 1): 3 / (2 + 2 + 1). With road -1: the third term is 1e8."""
    assert score("arcc", STAIRS, RAMP) == pytest.approx([0.6], abs=1e-6)
    assert score("arcc", STAIRS, 1 - RAMP) == pytest.approx([3e-8], rel=1e-6)


def test_arcc_where_road_is_not_clipped() -> None:
    """A tenth of the stairs: road 0.1, and 3 / (2 + 2 + 1 / 0.2) = 1 / 3."""
    assert score("arcc", STAIRS / 10, RAMP) == pytest.approx([1 / 3], abs=1e-4)


def test_average_drop_and_increase() -> None:
    """y = 2. Times the ramp: (0 0.25 1 2.25 4), y_masked = 1.5. Class 1 has the negative of both."""
    inputs, maps = np.concatenate([STAIRS] * 3), np.concatenate([RAMP] * 3)
    measured = measure(
        ["average_drop", "increase_in_confidence"], measurement(inputs, maps, class_indices=np.array([0, 1, 2]))
    )
    np.testing.assert_allclose(measured["average_drop"], [0.25, np.nan, np.nan], rtol=0, atol=1e-6)
    assert measured["increase_in_confidence"].tolist() == [0, 1, 0]


def test_a_rise_is_no_drop() -> None:
    """y = 0.2; without the second pixel 0.6."""
    inputs, maps = image(3, -2, 0, 0, 0), row_map(1, 0, 0, 0, 0)
    assert score("average_drop", inputs, maps).tolist() == [0]
    assert score("increase_in_confidence", inputs, maps).tolist() == [1]


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("masked", [False, True], ids=["image", "masked_image"])
def test_a_prediction_that_is_not_finite_is_no_score(broken: float, masked: bool) -> None:
    """The second of two images has such a value, as it is or masked; the other keeps its scores."""

    def predict(images: np.ndarray) -> np.ndarray:
        values = mean_value(images)
        values[images.mean(axis=(1, 2, 3)) == (3.0 if masked else 4.0)] = broken
        return values

    inputs, maps = np.concatenate([STAIRS, STAIRS + 2]), np.concatenate([RAMP, np.full_like(RAMP, 0.75)])
    names = ["average_drop", "increase_in_confidence", "adcc"]
    scores = measure(names, measurement(inputs, maps, predict=predict))
    for name in names:
        assert np.isnan(scores[name]).tolist() == [False, True], name
    assert scores["average_drop"][0] == pytest.approx(0.25, abs=1e-6)


def test_adcc() -> None:
    """Coherency 1/2, complexity 1/2, average drop 1/4: 3 / (2 + 2 + 4 / 3) = 9 / 16."""
    assert score("adcc", STAIRS, RAMP) == pytest.approx([0.5625], abs=1e-6)


def test_adcc_with_a_term_of_zero_and_without_one_of_them() -> None:
    """A map of ones has complexity 1. Class 1 has a negative value, so no average drop."""
    assert score("adcc", STAIRS, np.ones_like(RAMP)).tolist() == [0]
    assert np.isnan(score("adcc", STAIRS, RAMP, class_indices=np.array([1]))).tolist() == [True]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_maps(backend: str, value: float) -> None:
    names = ["complexity", "coherency", "road", "arcc", "adcc", "average_drop"]
    maps = np.full_like(RAMP, value)
    measured = measure(names, measurement(STAIRS, maps, backend=get_backend(backend, 1)))
    assert measured["complexity"] == pytest.approx([value], abs=1e-7)
    assert measured["coherency"] == pytest.approx([0.5], abs=1e-7)
    assert measured["road"] == pytest.approx([0], abs=1e-7)
    assert measured["arcc"] == pytest.approx([0], abs=1e-6)
    assert measured["average_drop"] == pytest.approx([1 - value], abs=1e-6)
    expected = 3 / (2 + 1 / (1 - value) + 1 / value) if 0 < value < 1 else 0
    assert measured["adcc"] == pytest.approx([expected], abs=1e-6)
