"""What a Measurement shares, how it batches, what it refuses; and the registry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from camrt.errors import ClassIndexError, InvalidInputError, MethodNotFoundError
from camrt.metrics import METRICS, Measurement, get_metric, measure
from tests.metrics.toys import Counted, flat_map, mean_value, measurement

SIDE = 10
BLIND = [name for name, metric in METRICS.items() if not metric.needs_object_mask]
# Images a metric sends through predict and through explain, for each image measured.
COSTS = {
    "complexity": (0, 0),
    "coherency": (0, 1),
    "road": (8, 0),
    "arcc": (8, 1),
    "adcc": (2, 1),
    "average_drop": (2, 0),
    "increase_in_confidence": (2, 0),
    "insertion_auc": (30, 0),
    "deletion_auc": (30, 0),
    "infidelity": (33, 0),
    "max_sensitivity": (0, 8),
}


def arrays(count: int = 3, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "inputs": random.standard_normal((count, 3, SIDE, SIDE)).astype(np.float32),
        "maps": random.random((count, SIDE, SIDE), np.float32),
        "object_masks": random.random((count, SIDE, SIDE)) < 0.3,
    }


def make(**changes: Any) -> Measurement:
    return measurement(**{**arrays(), **changes})


# Shared work


@pytest.mark.parametrize("name", BLIND)
def test_what_a_metric_costs_alone(name: str) -> None:
    predict, explain = Counted(mean_value), Counted(flat_map)
    measure([name], make(predict=predict, explain=explain))
    assert (sum(predict.calls), sum(explain.calls)) == (3 * COSTS[name][0], 3 * COSTS[name][1])


def test_all_metrics_together_share_their_passes() -> None:
    """x and x m once, 8 for ROAD, 29 and 29 changed by insertion and deletion, 32 squares; coherency and 8 draws."""
    predict, explain = Counted(mean_value), Counted(flat_map)
    measured = measure(list(METRICS), make(predict=predict, explain=explain))
    assert list(measured) == list(METRICS)
    assert sum(predict.calls) == 3 * (1 + 1 + 8 + 29 + 29 + 32)
    assert sum(explain.calls) == 3 * (1 + 8)


def test_metrics_say_the_same_alone_and_together() -> None:
    together = measure(list(METRICS), make())
    for name in METRICS:
        np.testing.assert_array_equal(measure([name], make())[name], together[name], err_msg=name)


def test_asking_again_computes_nothing() -> None:
    predict = Counted(mean_value)
    again = make(predict=predict)
    first = measure(["arcc"], again)
    calls = list(predict.calls)
    second = measure(["road", "arcc"], again)
    assert predict.calls == calls
    assert first["arcc"] is second["arcc"]


def test_metrics_with_ground_truth_ask_nobody() -> None:
    predict, explain = Counted(mean_value), Counted(flat_map)
    measure([name for name in METRICS if name not in BLIND], make(predict=predict, explain=explain))
    assert predict.calls == explain.calls == []


# Batches


@pytest.mark.parametrize(
    ("batch_size", "road", "coherency"),
    [(32, [32, 24], [7]), (16, [16, 16, 16, 8], [4, 3]), (8, [8] * 7, [2, 2, 2, 1]), (3, [3, 3, 2] * 7, [1] * 7)],
)
def test_images_go_together_up_to_the_batch_size(batch_size: int, road: list[int], coherency: list[int]) -> None:
    predict, explain = Counted(mean_value), Counted(flat_map)
    fields = {**arrays(7), "predict": predict, "explain": explain, "batch_size": batch_size}
    measure(["arcc"], measurement(**fields))
    assert predict.calls == road
    assert explain.calls == coherency


def test_each_image_keeps_its_class_in_every_batch() -> None:
    """A model that knows one pixel a class, and an explainer that tells the class it was asked for."""
    inputs = np.zeros((5, 1, 1, 5), np.float32)
    inputs[:, 0, 0] = 1 + np.arange(5)
    classes = np.array([4, 0, 3, 1, 2])
    asked: list[int] = []

    def explain(images: np.ndarray, of: np.ndarray) -> np.ndarray:
        asked.extend(of.tolist())
        return np.full((len(images), 1, 5), 0.5, np.float32)

    half = np.full((5, 1, 5), 0.5, np.float32)
    fields = {
        "class_indices": classes,
        "predict": lambda images: images[:, 0, 0].astype(np.float64),
        "explain": explain,
    }
    several = measurement(inputs, half, batch_size=8, **fields)
    measure(["coherency"], several)
    assert asked == classes.tolist()
    assert several.values(inputs, np.arange(5)).tolist() == (1.0 + classes).tolist()
    assert several.values_of_variants(lambda part: inputs[part][:, None].repeat(3, axis=1), 3).tolist() == [
        [1.0 + k] * 3 for k in classes
    ]


def test_one_image_costs_arcc_two_calls() -> None:
    predict, explain = Counted(mean_value), Counted(flat_map)
    measure(["arcc"], measurement(**{**arrays(1), "predict": predict, "explain": explain}))
    assert (predict.calls, explain.calls) == ([8], [1])


# The registry


def test_entries_fit_their_names() -> None:
    for name, metric in METRICS.items():
        assert get_metric(name) is metric
        assert metric.name == name
        assert metric.summary
        assert "\n" not in metric.summary
        assert metric.score.__doc__
    lower = {name for name, metric in METRICS.items() if not metric.higher_is_better}
    assert lower == {"complexity", "average_drop", "deletion_auc", "infidelity", "max_sensitivity", "bce", "l2"}
    assert set(METRICS) - set(BLIND) == {"pointing_game", "roc_auc", "mass_iou", "bce", "l2", "cosine"}
    assert set(COSTS) == set(BLIND)


def test_scores_are_one_double_an_image() -> None:
    for name, scores in measure(list(METRICS), make()).items():
        assert scores.shape == (3,), name
        assert scores.dtype == np.float64, name
        assert np.isfinite(scores).all() or name in ("average_drop", "adcc")


# Refusals


def test_an_unknown_metric_is_refused_before_anything_runs() -> None:
    predict = Counted(mean_value)
    with pytest.raises(MethodNotFoundError, match=r"'guess'.*road, arcc"):
        measure(["road", "guess"], make(predict=predict))
    assert predict.calls == []
    for names in ("road", [], ()):
        with pytest.raises(InvalidInputError, match="Give a list"):
            measure(names, make())


def test_object_masks_are_asked_for_before_anything_runs() -> None:
    predict = Counted(mean_value)
    with pytest.raises(InvalidInputError, match=r"mass_iou, l2 .*object_masks="):
        measure(["road", "mass_iou", "l2"], make(predict=predict, object_masks=None))
    assert predict.calls == []
    with pytest.raises(InvalidInputError, match="object_masks="):
        make(object_masks=None).object_masks  # noqa: B018


def with_value(value: float) -> np.ndarray:
    maps = arrays()["maps"]
    maps[1, 2, 3] = value
    return maps


REFUSED: list[tuple[str, type[InvalidInputError], dict[str, Any]]] = [
    ("inputs-double", InvalidInputError, {"inputs": np.zeros((3, 3, SIDE, SIDE))}),
    ("inputs-rank", InvalidInputError, {"inputs": np.zeros((3, SIDE, SIDE), np.float32)}),
    ("inputs-empty", InvalidInputError, {"inputs": np.zeros((0, 3, SIDE, SIDE), np.float32)}),
    ("inputs-nan", InvalidInputError, {"inputs": np.full((3, 3, SIDE, SIDE), np.nan, np.float32)}),
    ("inputs-list", InvalidInputError, {"inputs": [[0.0]]}),
    ("maps-size", InvalidInputError, {"maps": np.zeros((3, SIDE, SIDE - 1), np.float32)}),
    ("maps-count", InvalidInputError, {"maps": np.zeros((2, SIDE, SIDE), np.float32)}),
    ("maps-double", InvalidInputError, {"maps": np.zeros((3, SIDE, SIDE))}),
    ("maps-none", InvalidInputError, {"maps": None}),
    ("maps-nan", InvalidInputError, {"maps": with_value(np.nan)}),
    ("maps-inf", InvalidInputError, {"maps": with_value(np.inf)}),
    ("maps-high", InvalidInputError, {"maps": with_value(1.1)}),
    ("maps-low", InvalidInputError, {"maps": with_value(-0.1)}),
    ("classes-count", ClassIndexError, {"class_indices": np.zeros(2, np.int64)}),
    ("classes-rank", ClassIndexError, {"class_indices": np.array([0, -1, 0])}),
    ("classes-float", ClassIndexError, {"class_indices": np.zeros(3)}),
    ("classes-list", ClassIndexError, {"class_indices": [0, 0, 0]}),
    ("masks-size", InvalidInputError, {"object_masks": np.zeros((3, SIDE - 1, SIDE), bool)}),
    ("masks-count", InvalidInputError, {"object_masks": np.zeros((1, SIDE, SIDE), bool)}),
    ("masks-bytes", InvalidInputError, {"object_masks": np.zeros((3, SIDE, SIDE), np.uint8)}),
    ("batch-zero", InvalidInputError, {"batch_size": 0}),
    ("batch-float", InvalidInputError, {"batch_size": 8.0}),
    ("seed-negative", InvalidInputError, {"seed": -1}),
    ("seed-text", InvalidInputError, {"seed": "1"}),
]


@pytest.mark.parametrize(("error", "changes"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_arrays_that_do_not_fit_are_refused(error: type[InvalidInputError], changes: dict[str, Any]) -> None:
    with pytest.raises(error) as caught:
        make(**{"class_indices": np.zeros(3, np.int64), **changes})
    assert caught.value.next_step


def test_rounding_of_a_map_is_no_reason_to_refuse_it() -> None:
    maps = with_value(1 + 1e-6)
    before = maps.copy()
    assert make(maps=maps).maps.max() == 1
    np.testing.assert_array_equal(maps, before)


@pytest.mark.parametrize(
    ("name", "error", "changes"),
    [
        ("coherency", InvalidInputError, {"explain": lambda images, classes: np.full((3, SIDE, SIDE), np.nan, "f4")}),
        ("coherency", InvalidInputError, {"explain": lambda images, classes: np.zeros((3, 2, 2), np.float32)}),
        ("coherency", InvalidInputError, {"explain": lambda images, classes: images[:, 0]}),  # not in [0, 1]
        ("max_sensitivity", InvalidInputError, {"explain": lambda images, classes: None}),
        ("road", InvalidInputError, {"predict": lambda images: np.zeros(len(images))}),
        ("road", InvalidInputError, {"predict": lambda images: np.zeros((1, 5))}),
        ("road", InvalidInputError, {"predict": lambda images: [0.5]}),
        ("road", ClassIndexError, {"class_indices": np.array([0, 3, 0])}),
    ],
)
def test_what_functions_return_is_checked(name: str, error: type[InvalidInputError], changes: dict[str, Any]) -> None:
    with pytest.raises(error) as caught:
        measure([name], make(**changes))
    assert caught.value.next_step
