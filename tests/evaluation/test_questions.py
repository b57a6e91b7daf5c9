from __future__ import annotations

import numpy as np
import pytest

from camrt.evaluation.questions import agreement, main_metric_of, ranking, refinement
from tests.evaluation.fixtures import baseline, make_scores, plain, refined


def test_the_ranking_puts_the_better_end_first_and_missing_scores_last() -> None:
    values = np.array([[[0.2], [np.nan], [0.9], [0.5]], [[0.4], [np.nan], [0.7], [0.5]]])
    explainers = (plain("gradcam"), plain("layercam"), refined(), baseline())
    up = ranking(make_scores(values, ("arcc",), explainers), "arcc", 20, 0)
    down = ranking(make_scores(values, ("complexity",), explainers), "complexity", 20, 0)
    assert [row.explainer.method for row in up] == ["refinecam", "random", "gradcam", "layercam"]
    assert [row.explainer.method for row in down] == ["gradcam", "random", "refinecam", "layercam"]
    assert up[0].means["arcc"].value == pytest.approx(0.8)
    assert (up[0].means["arcc"].low, up[0].means["arcc"].high) == pytest.approx((0.7, 0.9))


def known_agreement() -> tuple[np.ndarray, tuple[str, ...]]:
    """arcc orders as mass_iou does, complexity (low is good) half; l2 (low is good) is mass_iou turned round."""
    rng = np.random.default_rng(0)
    truth = rng.random((30, 4))
    values = np.stack([-(truth + rng.normal(0, 0.4, truth.shape)), truth**3, truth, -truth], axis=2)
    return values, ("complexity", "arcc", "mass_iou", "l2")


def test_agreement_turns_signs_and_finds_the_best() -> None:
    values, metrics = known_agreement()
    groups = ("small",) * 15 + ("large",) * 15
    explainers = (plain("gradcam"), plain("layercam"), refined(), baseline())
    rows = agreement(make_scores(values, metrics, explainers, groups), 60, 0)
    assert [row.metric for row in rows] == ["arcc", "complexity"]
    best, other = rows
    assert best.mean.value == pytest.approx(1)
    assert {name: found.value for name, found in best.correlations.items()} == pytest.approx({"mass_iou": 1, "l2": 1})
    assert (best.best_share, other.best_share) == (1, 0)
    assert 0.3 < other.mean.value < 0.9
    assert other.mean.low < other.mean.value < other.mean.high
    assert list(best.by_group) == ["small", "large"]
    assert best.within_image.value == pytest.approx(1)
    assert best.without_baselines is not None
    assert other.without_baselines.value != other.mean.value


def test_agreement_needs_both_kinds_of_metrics() -> None:
    values, metrics = known_agreement()
    explainers = (plain("gradcam"), plain("layercam"), refined(), baseline())
    assert agreement(make_scores(values[..., :2], metrics[:2], explainers), 5, 0) == []
    assert agreement(make_scores(values[..., 2:], metrics[2:], explainers), 5, 0) == []


def test_refinement_compares_image_by_image() -> None:
    layers = (plain("gradcam", "stage3"), plain("gradcam", "stage1"))
    explainers = (refined("gradcam"), *layers, refined("layercam"), baseline())
    # Columns: refined, coarsest, finest, another base without single layers, baseline.
    values = np.array([[0.9, 0.5, 0.6, 1, 0], [0.8, 0.5, 0.3, 1, 0], [0.7, 0.2, 0.9, 1, 0]])[..., None]
    rows = refinement(make_scores(values, ("arcc",), explainers), "arcc", 2000, 0)
    assert [(row.base_method, row.explainer.shown_layers) for row in rows] == [
        ("gradcam", "stage3"),
        ("gradcam", "stage1"),
        ("gradcam", "all"),
    ]
    fused = rows[2]
    assert fused.score.value == pytest.approx(0.8)
    # Over the coarsest layer 0.4, 0.3, 0.5; over the best single one, stage1 (mean 0.6), 0.3, 0.5, -0.2.
    assert fused.over_coarsest.value == pytest.approx(0.4)
    assert (fused.over_coarsest.low, fused.over_coarsest.high) == pytest.approx((0.3, 0.5))
    assert fused.over_best.value == pytest.approx(0.2)
    assert rows[0].over_coarsest.value == rows[0].over_coarsest.low == rows[0].over_coarsest.high == 0


def test_the_ranking_counts_the_scores_of_each_mean() -> None:
    values = np.array([[[0.2, 1], [np.nan, np.nan]], [[0.4, np.nan], [np.nan, 3]], [[0.1, np.nan], [np.nan, 3]]])
    rows = ranking(make_scores(values, ("arcc", "mass_iou"), (plain("gradcam"), baseline())), "arcc", 20, 0)
    assert [row.scored for row in rows] == [{"arcc": 3, "mass_iou": 1}, {"arcc": 0, "mass_iou": 2}]


def test_refinement_where_lower_is_better() -> None:
    explainers = (refined("gradcam"), plain("gradcam", "stage3"), plain("gradcam", "stage1"))
    values = np.array([[0.1, 0.5, 0.6], [0.1, 0.3, 0.6]])[..., None]
    rows = refinement(make_scores(values, ("complexity",), explainers), "complexity", 20, 0)
    assert rows[-1].over_best.value == pytest.approx(-0.3)


def test_main_metric() -> None:
    assert main_metric_of(("road", "arcc")) == "arcc"
    assert main_metric_of(("road", "l2")) == "road"


def test_a_group_is_its_images() -> None:
    values = np.arange(6.0).reshape(3, 2, 1)
    scores = make_scores(values, ("arcc",), (plain("gradcam"), baseline()), ("b", "a", "b"))
    assert scores.group_names == ("b", "a")
    assert scores.of_group("b").metric("arcc").tolist() == [[0, 1], [4, 5]]
    assert scores.without_baselines().metric("arcc").tolist() == [[0], [2], [4]]
    sizes = make_scores(values, ("arcc",), (plain("gradcam"), baseline()), ("large", "small", "medium"))
    assert sizes.group_names == ("small", "medium", "large")
