"""Means, differences and rank correlations of scores, each with a percentile bootstrap over items.

Items are what is drawn again, with all their explainers and metrics: scores of one image are not independent. NaN means
missing. Intervals are 95 %, from the 2.5th to the 97.5th percentile of the resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from camrt.types import BoolArray, DoubleArray, IntArray

_PERCENTILES = (2.5, 97.5)
_BLOCK_ELEMENTS = 1 << 23


@dataclass(frozen=True, slots=True)
class Estimates:
    """Numbers with their uncertainty.

    Attributes:
        value: (...) of the items as they are.
        low, high: (...) ends of the interval.
        samples: (B, ...) the same of every resample.
    """

    value: DoubleArray
    low: DoubleArray
    high: DoubleArray
    samples: DoubleArray

    @classmethod
    def of(cls, value: DoubleArray, samples: DoubleArray) -> Estimates:
        """With the percentiles of the samples that are not NaN; NaN where there are none."""
        low, high = (_percentile(samples, percentile) for percentile in _PERCENTILES)
        return cls(value, low, high, samples)


def bootstrap_counts(items: int, resamples: int, seed: int) -> Iterator[IntArray]:
    """How often each item is in each resample of ``items`` draws with replacement: blocks (b, items) of B rows in all.

    The numbers depend on the arguments only, not on the size of the blocks.
    """
    generator = np.random.default_rng(seed)
    chances = np.full(items, 1 / items)
    block = max(1, _BLOCK_ELEMENTS // items)
    for start in range(0, resamples, block):
        yield generator.multinomial(items, chances, size=min(block, resamples - start))


def means(values: DoubleArray, resamples: int, seed: int) -> Estimates:
    """The mean over items of each column of ``values`` (n, K), (K,); NaN are left out."""
    valid = ~np.isnan(values)
    known = np.where(valid, values, 0)
    samples = []
    for counts in bootstrap_counts(len(values), resamples, seed):
        weights: DoubleArray = counts.astype(np.float64)
        samples.append(_ratio(weights @ known, weights @ valid.astype(np.float64)))
    return Estimates.of(_ratio(known.sum(axis=0), valid.sum(axis=0)), np.concatenate(samples))


def average_ranks(values: DoubleArray) -> DoubleArray:
    """Ranks 1..P of a vector (P,); equal values share the mean of their ranks."""
    ranks: DoubleArray = _Ranker(values).ranks(np.ones((1, len(values))))[0]
    return ranks


def spearman(first: DoubleArray, second: DoubleArray) -> float:
    """Rank correlation of two vectors, over the places where neither is NaN; NaN where one is constant."""
    valid = ~(np.isnan(first) | np.isnan(second))
    ranks = np.stack([average_ranks(first[valid]), average_ranks(second[valid])])
    return float(_correlations(ranks[None], np.ones((1, ranks.shape[1])))[0, 0, 1])


def rank_correlations(scores: DoubleArray, resamples: int, seed: int) -> Estimates:
    """Spearman's correlation of every pair of metrics over all explainers and items, (M, M).

    Args:
        scores: (n, E, M) of n items, E explainers, M metrics.
        resamples: B. A resample has all explainers of every item that it draws.
        seed: of the bootstrap.

    Pairs are correlated over the points where neither is NaN. A correlation with a constant is NaN.
    """
    once = np.ones((1, len(scores)), np.int64)
    value = _clustered_correlations(scores, once)[0]
    block = max(1, _BLOCK_ELEMENTS // scores.size)
    samples = [
        _clustered_correlations(scores, counts[start : start + block])
        for counts in bootstrap_counts(len(scores), resamples, seed)
        for start in range(0, len(counts), block)
    ]
    return Estimates.of(value, np.concatenate(samples))


def item_correlations(scores: DoubleArray, resamples: int, seed: int) -> Estimates:
    """The mean over items of Spearman's correlation within an item, over its explainers, (M, M).

    scores (n, E, M). It asks whether two metrics put the explainers of one image in the same order.
    """
    count, _, metrics = scores.shape
    own = np.full((count, metrics, metrics), np.nan)
    for item, points in enumerate(scores):
        own[item] = _clustered_correlations(points[None], np.ones((1, 1), np.int64))[0]
    found = means(own.reshape(count, -1), resamples, seed)
    shape = metrics, metrics
    return Estimates(
        found.value.reshape(shape),
        found.low.reshape(shape),
        found.high.reshape(shape),
        found.samples.reshape(-1, *shape),
    )


class _Ranker:
    """Average ranks of one vector, for any number of times that each of its values counts."""

    def __init__(self, values: DoubleArray) -> None:
        self._order = np.argsort(values, kind="stable")
        ordered = values[self._order]
        is_new = np.ones(len(values), np.bool_)
        is_new[1:] = ordered[1:] != ordered[:-1]
        self._starts = np.flatnonzero(is_new)
        self._group = np.cumsum(is_new) - 1

    def ranks(self, weights: DoubleArray) -> DoubleArray:
        """(B, P) ranks of the P values where value p occurs weights[b, p] times."""
        ties = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        shared = np.cumsum(ties, axis=1) - (ties - 1) / 2
        ranks = np.empty_like(weights)
        ranks[:, self._order] = shared[:, self._group]
        return ranks


def _clustered_correlations(scores: DoubleArray, counts: IntArray) -> DoubleArray:
    """Spearman's correlations (B, M, M) of scores (n, E, M) where item i occurs counts[b, i] times."""
    _, explainers, metrics = scores.shape
    points = scores.reshape(-1, metrics)
    weights = np.repeat(counts, explainers, axis=1).astype(np.float64)
    valid = ~np.isnan(points)
    patterns, pattern_of = np.unique(valid, axis=1, return_inverse=True)
    result = np.full((len(counts), metrics, metrics), np.nan)
    for first in range(patterns.shape[1]):
        for second in range(first, patterns.shape[1]):
            own, other = np.flatnonzero(pattern_of == first), np.flatnonzero(pattern_of == second)
            columns = np.union1d(own, other)
            rows = patterns[:, first] & patterns[:, second]
            if rows.sum() < 2:
                continue
            part = weights[:, rows]
            ranks = np.stack([_Ranker(points[rows, column]).ranks(part) for column in columns], axis=1)
            found = _correlations(ranks, part)
            to_own, to_other = np.searchsorted(columns, own), np.searchsorted(columns, other)
            result[:, own[:, None], other] = found[:, to_own[:, None], to_other]
            result[:, other[:, None], own] = found[:, to_other[:, None], to_own]
    return result


def _correlations(ranks: DoubleArray, weights: DoubleArray) -> DoubleArray:
    """Pearson's correlations (B, M, M) of ranks (B, M, P) that count weights (B, P); NaN with a constant.

    The mean of ranks is known, half of their number plus 1, so those of a constant deviate by exactly 0.
    """
    centred = ranks - ((weights.sum(axis=1) + 1) / 2)[:, None, None]
    centred *= np.sqrt(weights)[:, None, :]
    covariance = np.matmul(centred, centred.transpose(0, 2, 1))
    deviation = np.sqrt(np.einsum("bmm->bm", covariance))
    scale = deviation[:, :, None] * deviation[:, None, :]
    correlations: DoubleArray = np.full_like(covariance, np.nan)
    np.divide(covariance, scale, out=correlations, where=scale > 0)
    return np.clip(correlations, -1, 1)


def _ratio(total: DoubleArray, count: DoubleArray) -> DoubleArray:
    ratio: DoubleArray = np.full(np.shape(total), np.nan)
    np.divide(total, count, out=ratio, where=count > 0)
    return ratio


def _percentile(samples: DoubleArray, percentile: float) -> DoubleArray:
    """Percentile over axis 0 without NaN; NaN where nothing is left."""
    missing: BoolArray = np.isnan(samples)
    if not missing.any():
        return np.asarray(np.percentile(samples, percentile, axis=0))
    result = np.full(samples.shape[1:], np.nan)
    some = ~missing.all(axis=0)
    result[some] = np.nanpercentile(samples[:, some], percentile, axis=0)
    return result
