from __future__ import annotations

import numpy as np
import pytest

from camrt.errors import MethodNotFoundError
from camrt.evaluation.baselines import BASELINES, baseline

CLASSES = np.zeros(3, np.int64)


@pytest.fixture
def inputs() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 3, 6, 9)).astype(np.float32)


@pytest.mark.parametrize("name", BASELINES)
def test_shape_and_range(name: str, inputs: np.ndarray) -> None:
    maps = baseline(name)(inputs, CLASSES, 0)
    assert (maps.shape, maps.dtype) == ((3, 6, 9), np.float32)
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_random_maps_depend_on_seed_and_image_only(inputs: np.ndarray) -> None:
    make = baseline("random")
    maps = make(inputs, CLASSES, 0)
    assert np.array_equal(make(inputs[[2, 0]], CLASSES[:2] + 1, 0), maps[[2, 0]])
    assert not np.array_equal(make(inputs, CLASSES, 1), maps)
    moved = inputs.copy()
    moved[1, 0, 0, 0] += np.float32(1e-6)
    again = make(moved, CLASSES, 0)
    assert [np.array_equal(one, other) for one, other in zip(again, maps, strict=True)] == [True, False, True]
    assert len({maps[0].tobytes(), maps[1].tobytes(), maps[2].tobytes()}) == 3


def test_the_others_by_hand(inputs: np.ndarray) -> None:
    assert (baseline("ones")(inputs, CLASSES, 0) == 1).all()
    half = baseline("half")(inputs, CLASSES, 0)
    assert (half[:, :, :4] == 1).all()
    assert (half[:, :, 4:] == 0).all()
    center = baseline("center")(inputs, CLASSES, 0)[0]
    assert center.max() == center[2, 4] == 1
    assert center.min() == center[0, 0] == 0
    assert np.allclose(center, center[::-1, ::-1])
    # Side 9: column 8 lies 4/9 from the middle; row 2 of 6 lies 1/12 off. Deviations are 1/4 of a side.
    bell = np.exp(-0.5 * (4 * np.array([[1 / 12, 4 / 9], [1 / 12, 0], [5 / 12, 4 / 9]])) ** 2).prod(axis=1)
    expected = (bell[0] - bell[2]) / (bell[1] - bell[2])
    assert center[2, 8] == pytest.approx(expected, abs=1e-5)


def test_an_unknown_name() -> None:
    with pytest.raises(MethodNotFoundError, match="random, ones, half, center"):
        baseline("magic")
