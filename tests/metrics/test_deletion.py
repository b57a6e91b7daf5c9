"""Insertion and deletion on rows of 29 pixels, where each of the 29 steps changes one pixel."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from camrt.metrics.deletion import blurred, relevance_ranks
from tests.metrics.toys import Counted, image, mean_value, row_map, rows, score

WIDTH = 29
RAMP = row_map(*np.linspace(0, 1, WIDTH))


def spot(place: int) -> np.ndarray:
    """An image of mean 1 in one pixel."""
    pixels = np.zeros(WIDTH)
    pixels[place] = WIDTH
    return image(*pixels)


def test_deleting_an_even_image_is_a_straight_line() -> None:
    assert score("deletion_auc", image(*np.ones(WIDTH)), RAMP) == pytest.approx([0.5], abs=1e-6)


@pytest.mark.parametrize(("place", "points"), [(28, 1), (27, 2), (0, 29)])
def test_deletion_sees_a_spot_until_it_goes(place: int, points: int) -> None:
    """The value is 1 at that many points and then 0, so the trapezoids add up to (points - 1/2) / 29."""
    assert score("deletion_auc", spot(place), RAMP) == pytest.approx([(points - 0.5) / 29], abs=1e-6)


def test_equal_pixels_go_row_by_row() -> None:
    for place in (0, 3):
        expected = (place + 1 - 0.5) / 29
        assert score("deletion_auc", spot(place), np.zeros_like(RAMP)) == pytest.approx([expected], abs=1e-6)
    np.testing.assert_array_equal(relevance_ranks(rows([[0.5, 1, 0.5], [0, 0.5, 1]])), [[[2, 0, 3], [5, 4, 1]]])


def test_insertion_starts_from_the_blurred_image() -> None:
    """A spot of which the blur leaves the share w in its place. Inserted first, its value is w, then 1."""
    w = 1 / (1 + 2 * sum(np.exp(-(k**2) / 50) for k in range(1, 6)))

    def predict(images: np.ndarray) -> np.ndarray:
        return images[:, 0, :, 14].astype(np.float64) / WIDTH

    assert score("insertion_auc", spot(14), np.eye(WIDTH, dtype=np.float32)[None, 14:15], predict=predict) == (
        pytest.approx([((w + 1) / 2 + 28) / 29], abs=1e-6)
    )
    last = 1 - np.eye(WIDTH, dtype=np.float32)[None, 14:15]
    assert score("insertion_auc", spot(14), last, predict=predict) == pytest.approx(
        [(28 * w + (w + 1) / 2) / 29], abs=1e-6
    )


def test_the_blur_is_opencvs() -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 20, 17)).astype(np.float32)
    for actual, one in zip(blurred(images), images, strict=True):
        expected = cv2.GaussianBlur(one.transpose(1, 2, 0), (11, 11), 5, borderType=cv2.BORDER_REPLICATE)
        np.testing.assert_allclose(actual, expected.transpose(2, 0, 1), rtol=0, atol=1e-6)


def test_the_ends_of_both_curves() -> None:
    """29 changed images each; the unchanged one is shared. The last deletion is 0, the first insertion all blurred."""
    random = np.random.default_rng(0)
    inputs = random.standard_normal((1, 3, 9, 8)).astype(np.float32)
    maps = random.random((1, 9, 8), np.float32)
    counted = Counted(mean_value)
    score("deletion_auc", inputs, maps, predict=counted)
    assert sum(counted.calls) == 30
    assert any(np.array_equal(one, inputs[0]) for one in counted.images)
    deleted = np.stack([one for one in counted.images if not np.array_equal(one, inputs[0])])
    shares = [int(i * 72 / 29 + 0.5) for i in range(1, 30)]
    assert [(one == 0).all(axis=0).sum() for one in deleted] == shares
    for one, count in zip(deleted, shares, strict=True):
        gone = (one == 0).all(axis=0)
        assert maps[0][gone].min() > maps[0][~gone].max(initial=0)
        np.testing.assert_array_equal(one[:, ~gone], inputs[0][:, ~gone])
        assert gone.sum() == count
    counted = Counted(mean_value)
    score("insertion_auc", inputs, maps, predict=counted)
    assert sum(counted.calls) == 30
    assert any(np.array_equal(one, blurred(inputs)[0]) for one in counted.images)


def test_both_against_the_formula() -> None:
    random = np.random.default_rng(1)
    inputs = random.standard_normal((3, 2, 6, 5)).astype(np.float32)
    maps = random.random((3, 6, 5), np.float32)
    weights = random.standard_normal((2, 6, 5))

    def predict(images: np.ndarray) -> np.ndarray:
        return np.tanh((images * weights).sum(axis=(1, 2, 3)))[:, None]

    deletion, insertion = (score(f"{name}_auc", inputs, maps, predict=predict) for name in ("deletion", "insertion"))
    for n in range(3):
        order = sorted(range(30), key=lambda pixel: -maps[n].flat[pixel])
        curves: dict[str, list[float]] = {"deletion": [], "insertion": []}
        for point in range(30):
            chosen = np.zeros(30, bool)
            chosen[order[: int(point / 29 * 30 + 0.5)]] = True
            chosen = chosen.reshape(6, 5)
            curves["deletion"].append(predict(np.where(chosen, 0, inputs[n])[None])[0, 0])
            curves["insertion"].append(predict(np.where(chosen, inputs[n], blurred(inputs)[n])[None])[0, 0])
        for name, actual in (("deletion", deletion), ("insertion", insertion)):
            values = curves[name]
            area = sum((a + b) / 2 / 29 for a, b in pairwise(values))
            assert actual[n] == pytest.approx(area, abs=1e-6)
