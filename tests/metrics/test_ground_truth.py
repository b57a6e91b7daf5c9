"""Maps against object masks: values computed by hand, and brute force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from camrt.metrics import METRICS
from tests.metrics.toys import score, score_against

NAMES = [name for name, metric in METRICS.items() if metric.needs_object_mask]
MAP = [[0.2, 0.8], [0.6, 0.4]]
MASK = [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pointing_game", 1),
        ("roc_auc", 3 / 4),  # 0.8 beats 0.2 and 0.6; 0.4 beats 0.2 only
        ("mass_iou", 0.6),  # 1.2 of 2
        ("bce", -(2 * math.log(0.8) + 2 * math.log(0.4)) / 4),
        ("l2", math.sqrt(0.2)),  # squares 0.04, 0.04, 0.36, 0.36
        ("cosine", 1.2 / math.sqrt(1.2 * 2)),
    ],
)
def test_by_hand(name: str, expected: float) -> None:
    assert score_against(name, MAP, MASK) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("pointing_game", 1), ("roc_auc", 1), ("mass_iou", 1), ("bce", 0), ("l2", 0), ("cosine", 1)],
)
def test_the_object_itself_is_the_best_map(name: str, expected: float) -> None:
    assert score_against(name, MASK, MASK) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("pointing_game", 0), ("roc_auc", 0), ("mass_iou", 0), ("bce", -math.log(1e-7)), ("l2", 1), ("cosine", 0)],
)
def test_its_opposite_is_the_worst(name: str, expected: float) -> None:
    assert score_against(name, [[1, 0], [1, 0]], MASK) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_maps(value: float) -> None:
    """The object is a quarter of the image."""
    saliency, mask = [[value] * 2] * 2, [[1, 0], [0, 0]]
    clipped = min(max(value, 1e-7), 1 - 1e-7)
    expected = {
        "pointing_game": 0.25,
        "roc_auc": 0.5,
        "mass_iou": 0.25 if value else 0,
        "bce": -(math.log(clipped) + 3 * math.log(1 - clipped)) / 4,
        "l2": math.sqrt(((1 - value) ** 2 + 3 * value**2) / 4),
        "cosine": 0.5 if value else 0,
    }
    for name in NAMES:
        assert score_against(name, saliency, mask) == pytest.approx(expected[name], abs=1e-6), name


@pytest.mark.parametrize(
    ("saliency", "expected"), [([[1, 1], [1, 0]], 2 / 3), ([[1, 1], [0, 0]], 1), ([[0, 0], [1, 1]], 0.5)]
)
def test_several_maxima_count_by_their_share_on_the_object(saliency: Any, expected: float) -> None:
    assert score_against("pointing_game", saliency, [[1, 1], [0, 1]]) == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_without_an_object_nothing_is_defined(name: str) -> None:
    assert math.isnan(score_against(name, MAP, [[0, 0], [0, 0]]))


@pytest.mark.parametrize("name", NAMES)
def test_an_object_that_fills_the_image(name: str) -> None:
    assert math.isnan(score_against(name, MAP, [[1, 1], [1, 1]])) == (name == "roc_auc")


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_roc_auc_counts_pairs(levels: int) -> None:
    random = np.random.default_rng(levels)
    maps = (random.integers(0, levels, (6, 7, 9)) / (levels - 1)).astype(np.float32)
    masks = random.random((6, 7, 9)) < np.linspace(0.05, 0.9, 6)[:, None, None]
    actual = score("roc_auc", np.zeros((6, 1, 7, 9), np.float32), maps, object_masks=masks)
    for n in range(6):
        inside, outside = maps[n][masks[n]][:, None], maps[n][~masks[n]]
        assert actual[n] == pytest.approx(((inside > outside) + 0.5 * (inside == outside)).mean(), abs=1e-12)


def test_images_do_not_mix() -> None:
    random = np.random.default_rng(0)
    maps, masks = random.random((4, 5, 6), np.float32), random.random((4, 5, 6)) < 0.3
    inputs = np.zeros((4, 1, 5, 6), np.float32)
    for name in NAMES:
        together = score(name, inputs, maps, object_masks=masks)
        for n in range(4):
            part = slice(n, n + 1)
            assert score(name, inputs[part], maps[part], object_masks=masks[part])[0] == together[n], name
