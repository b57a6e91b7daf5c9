"""Infidelity and max-sensitivity: exact cases, and the formulas on the perturbations that were seen."""

from __future__ import annotations

import numpy as np
import pytest

from tests.metrics.toys import Counted, mean_value, score

SIDE = 16


def inputs(count: int = 2) -> np.ndarray:
    return np.ones((count, 3, SIDE, SIDE), np.float32)


def a_map(seed: int = 0, count: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).random((count, SIDE, SIDE), np.float32)


def test_a_map_that_says_what_every_pixel_adds_has_no_infidelity() -> None:
    """The value is the sum of m, so removing a square takes away its sum of m. Half the map says the same."""
    maps = a_map()

    def predict(images: np.ndarray) -> np.ndarray:
        return (images[:, 0] * maps[0]).sum(axis=(1, 2), dtype=np.float64)[:, None]

    for scale in (1, 0.5):
        both = np.stack([scale * maps[0], scale * maps[1]])
        right, wrong = score("infidelity", inputs(), both, predict=predict)
        assert right == pytest.approx(0, abs=1e-6)
        assert wrong > 0.1


def test_infidelity_of_a_model_that_ignores_the_image_is_nothing() -> None:
    ignorant = score("infidelity", inputs(), a_map(), predict=lambda images: np.full((len(images), 1), 0.3))
    assert ignorant.tolist() == [0, 0]


def test_infidelity_is_the_formula_on_the_squares_that_were_removed() -> None:
    maps = a_map()
    counted = Counted(lambda images: mean_value(images) ** 2)
    actual = score("infidelity", inputs(), maps, predict=counted, seed=3)
    changed = np.stack([one for one in counted.images if one.min() == 0])
    assert len(counted.images) == 2 + 2 * 32
    assert len(changed) == 2 * 32
    squares = changed[:, 0].reshape(2, 32, SIDE, SIDE) == 0
    np.testing.assert_array_equal(squares[0], squares[1])
    falls = 1 - (1 - squares[0].mean(axis=(1, 2))) ** 2
    for n in range(2):
        sums = (squares[0] * maps[n]).sum(axis=(1, 2), dtype=np.float64)
        (scale,), (residual,), *_ = np.linalg.lstsq(sums[:, None], falls, rcond=None)
        assert scale > 0
        assert actual[n] == pytest.approx(residual / 32, abs=1e-9)


def test_squares_are_squares_of_many_sizes_inside_the_image() -> None:
    counted = Counted(mean_value)
    score(
        "infidelity",
        np.ones((1, 1, SIDE, 2 * SIDE), np.float32),
        np.zeros((1, SIDE, 2 * SIDE), np.float32),
        predict=counted,
    )
    sides = set()
    for one in counted.images:
        found = np.argwhere(one[0] == 0)
        if len(found):
            height, width = np.ptp(found, axis=0) + 1
            assert height == width
            assert len(found) == height * width
            sides.add(int(height))
    assert min(sides) >= SIDE / 8
    assert max(sides) <= SIDE / 2
    assert len(sides) > 4


def test_infidelity_of_an_empty_map_is_the_mean_square_of_the_falls() -> None:
    counted = Counted(mean_value)
    actual = score("infidelity", inputs(1), np.zeros((1, SIDE, SIDE), np.float32), predict=counted)
    falls = [1 - one.mean() for one in counted.images if one.min() == 0]
    assert actual == pytest.approx([np.mean(np.square(falls))], abs=1e-6)


def test_another_seed_removes_other_squares() -> None:
    counted = [Counted(mean_value), Counted(mean_value)]
    for seed, predict in enumerate(counted):
        score("infidelity", inputs(1), a_map(count=1), predict=predict, seed=seed)
    assert not np.array_equal(np.stack(counted[0].images), np.stack(counted[1].images))


def test_max_sensitivity_is_the_largest_relative_change() -> None:
    """On x = 0 and 0.5 + x as a map, the change is what was added; ||m|| = 0.5 * 16."""
    explain = Counted(lambda images, classes: 0.5 + images[:, 0])
    zeros, maps = np.zeros((2, 3, SIDE, SIDE), np.float32), np.full((2, SIDE, SIDE), 0.5, np.float32)
    actual = score("max_sensitivity", zeros, maps, explain=explain)
    moved = np.stack(explain.images).reshape(8, 2, 3, SIDE, SIDE)
    np.testing.assert_array_equal(moved[:, 0], moved[:, 1])
    assert 0.099 < np.abs(moved).max() <= 0.1
    assert abs(moved.mean()) < 0.005
    assert len({one.tobytes() for one in moved[:, 0]}) == 8
    norms = np.sqrt((moved[:, 0, 0].astype(np.float64) ** 2).sum(axis=(1, 2)))
    assert actual == pytest.approx([norms.max() / 8] * 2, abs=1e-6)
    assert norms.max() > norms.min() + 0.01


def test_an_explainer_that_does_not_look_has_no_sensitivity() -> None:
    maps = a_map()
    actual = score("max_sensitivity", inputs(1), maps[:1], explain=lambda images, classes: maps[:1])
    assert actual.tolist() == [0]


def test_sensitivity_of_an_empty_map_is_undefined() -> None:
    empty = np.zeros((2, SIDE, SIDE), np.float32)
    assert np.isnan(score("max_sensitivity", inputs(), empty)).all()
