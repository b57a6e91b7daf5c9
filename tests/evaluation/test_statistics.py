from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from camrt.evaluation.statistics import (
    average_ranks,
    bootstrap_counts,
    item_correlations,
    means,
    rank_correlations,
    spearman,
)


def awkward_scores(seed: int = 0) -> np.ndarray:
    """(20, 6, 4): ties, dependence, missing values of several patterns."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(20, 6, 4))
    scores[..., 1] = np.round(scores[..., 0] + 0.5 * scores[..., 1])
    scores[3:5, :, 2] = np.nan
    scores[rng.random((20, 6)) < 0.1, 3] = np.nan
    return scores


def scipy_spearman(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first.ravel(), second.ravel()
    valid = ~(np.isnan(first) | np.isnan(second))
    return float(stats.spearmanr(first[valid], second[valid]).statistic)


def test_ranks_by_hand_and_against_scipy() -> None:
    assert average_ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4, 1, 4, 2, 4]
    values = np.random.default_rng(0).integers(0, 9, 200).astype(float)
    assert np.array_equal(average_ranks(values), stats.rankdata(values))


def test_spearman_by_hand() -> None:
    # Ranks 1 2 3 4 and 1 3 2 4: 1 - 6 * (1 + 1) / (4 * 15) = 0.8.
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([0.1, 7, 5, 80])) == pytest.approx(0.8)
    assert spearman(np.array([1.0, 2, np.nan, 4]), np.array([9.0, 8, 7, 6])) == pytest.approx(-1)
    assert np.isnan(spearman(np.array([1.0, 2, 3]), np.array([5.0, 5, 5])))


def test_rank_correlations_against_scipy() -> None:
    scores = awkward_scores()
    found = rank_correlations(scores, 3, 0)
    for first in range(4):
        for second in range(4):
            expected = 1.0 if first == second else scipy_spearman(scores[..., first], scores[..., second])
            assert found.value[first, second] == pytest.approx(expected, abs=1e-12)


def test_every_resample_is_the_correlation_of_the_drawn_images() -> None:
    scores = awkward_scores(1)
    found = rank_correlations(scores, 25, 7)
    counts = np.concatenate(list(bootstrap_counts(20, 25, 7)))
    assert (counts.sum(axis=1) == 20).all()
    for sample, count in zip(found.samples, counts, strict=True):
        drawn = scores[np.repeat(np.arange(20), count)]
        for first, second in ((0, 1), (0, 2), (2, 3), (1, 3)):
            expected = scipy_spearman(drawn[..., first], drawn[..., second])
            assert sample[first, second] == pytest.approx(expected, abs=1e-12)
    assert found.low == pytest.approx(np.percentile(found.samples, 2.5, axis=0))
    assert found.high == pytest.approx(np.percentile(found.samples, 97.5, axis=0))


def test_correlations_within_items_against_scipy() -> None:
    scores = awkward_scores(2)
    found = item_correlations(scores, 10, 0)
    own = [scipy_spearman(item[:, 0], item[:, 2]) for item in scores if not np.isnan(item[:, 2]).any()]
    assert found.value[0, 2] == pytest.approx(np.mean(own), abs=1e-12)


def test_a_constant_correlates_with_nothing() -> None:
    scores = awkward_scores()
    scores[..., 0] = 0.1 + 0.2
    found = rank_correlations(scores, 5, 0)
    assert np.isnan(found.value[0]).all()
    assert np.isnan(found.low[0]).all()
    assert np.isfinite(found.value[1:, 1:]).all()


def test_means_leave_out_what_is_missing() -> None:
    values = np.array([[1.0, np.nan, 5.0], [3.0, np.nan, np.nan], [8.0, np.nan, 7.0]])
    found = means(values, 40, 3)
    assert found.value[[0, 2]].tolist() == [4.0, 6.0]
    assert np.isnan([found.value[1], found.low[1], found.high[1]]).all()
    counts = np.concatenate(list(bootstrap_counts(3, 40, 3)))
    drawn = [values[np.repeat(np.arange(3), count)] for count in counts]
    assert found.samples[:, 0] == pytest.approx([sample[:, 0].mean() for sample in drawn])
    known = np.array([np.isfinite(sample[:, 2]).any() for sample in drawn])
    assert found.samples[known, 2] == pytest.approx(
        [np.nanmean(s[:, 2]) for s, k in zip(drawn, known, strict=True) if k]
    )
    assert np.isnan(found.samples[~known, 2]).all()


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, (900, 1))
    found = means(values, 4000, 0)
    error = float(values.std(ddof=1)) / 30
    assert found.value[0] - found.low[0] == pytest.approx(1.96 * error, rel=0.08)
    assert found.high[0] - found.value[0] == pytest.approx(1.96 * error, rel=0.08)


def test_resamples_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = awkward_scores()
    whole = rank_correlations(scores, 30, 5).samples, means(scores.reshape(20, -1), 30, 5).samples
    monkeypatch.setattr("camrt.evaluation.statistics._BLOCK_ELEMENTS", 60)
    parts = rank_correlations(scores, 30, 5).samples, means(scores.reshape(20, -1), 30, 5).samples
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
    assert not np.array_equal(whole[1], means(scores.reshape(20, -1), 30, 6).samples)
