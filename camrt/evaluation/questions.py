"""What a benchmark asks: whom to trust among metrics without ground truth, and whether refining helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from camrt.cam import REFINECAM
from camrt.evaluation.explainers import ExplainerSpec
from camrt.evaluation.scores import Scores
from camrt.evaluation.statistics import Estimates, item_correlations, means, rank_correlations
from camrt.metrics import METRICS
from camrt.types import DoubleArray

COMPARED_METRICS = ("arcc", "mass_iou")
_MOST_GROUPS = 12


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class RankingRow:
    """One explainer: its mean of every metric, and the share of its maps that say nothing.

    Attributes:
        explainer: which.
        means: metric to its mean over the images that have a score.
        scored: metric to the number of these images.
        degenerate: the share.
    """

    explainer: ExplainerSpec
    means: dict[str, Interval]
    scored: dict[str, int]
    degenerate: float


@dataclass(frozen=True, slots=True)
class AgreementRow:
    """How one metric without ground truth agrees with those that know the object.

    Correlations are Spearman's, with the sign turned where a lower score is better, so 1 is perfect agreement.

    Attributes:
        metric: its name.
        correlations: with each metric with ground truth, over all explainers and images.
        mean: their mean.
        by_group: the same mean for the images of each group.
        without_baselines: the same mean over the explainers that know the model.
        within_image: the same mean of correlations over the explainers of one image, averaged over images.
        best_share: share of the resamples where its mean is the highest.
    """

    metric: str
    correlations: dict[str, Interval]
    mean: Interval
    by_group: dict[str, Interval]
    without_baselines: Interval | None
    within_image: Interval
    best_share: float


@dataclass(frozen=True, slots=True)
class RefinementRow:
    """One explainer of a base method's family: alone at a layer, or refined over several.

    Attributes:
        base_method: the family.
        explainer: which of it.
        score: its mean.
        over_coarsest: mean difference to the base method at the coarsest layer, image by image.
        over_best: the same to the base method at its best single layer.
    """

    base_method: str
    explainer: ExplainerSpec
    score: Interval
    over_coarsest: Interval
    over_best: Interval


def ranking(scores: Scores, main_metric: str, resamples: int, seed: int) -> list[RankingRow]:
    """Every explainer with its means, the best by the main metric first; those without a score last."""
    count, metrics = len(scores.items), len(scores.metrics)
    found = means(scores.values.reshape(count, -1), resamples, seed)
    defined = (~np.isnan(scores.values)).sum(axis=0)
    rows = []
    for place, spec in enumerate(scores.explainers):
        own = {name: _interval(found, place * metrics + column) for column, name in enumerate(scores.metrics)}
        scored = {name: int(defined[place, column]) for column, name in enumerate(scores.metrics)}
        rows.append(RankingRow(spec, own, scored, float(scores.degenerate[:, place].mean()) if count else np.nan))
    sign = 1 if METRICS[main_metric].higher_is_better else -1
    return sorted(rows, key=lambda row: _sort_key(sign * row.means[main_metric].value))


def agreement(scores: Scores, resamples: int, seed: int) -> list[AgreementRow]:
    """The metrics without ground truth, the one that agrees best first; none where a kind of metric is missing."""
    blind = [name for name in scores.metrics if not METRICS[name].needs_object_mask]
    seeing = [name for name in scores.metrics if METRICS[name].needs_object_mask]
    if not blind or not seeing or len(scores.explainers) * len(scores.items) < 2:
        return []
    pooled = _pairs(scores, rank_correlations(scores.oriented(), resamples, seed), blind, seeing)
    within = _over_truth(_pairs(scores, item_correlations(scores.oriented(), resamples, seed), blind, seeing))
    groups = {
        name: _over_truth(_pairs(part, rank_correlations(part.oriented(), resamples, seed), blind, seeing))
        for name, part in ((name, scores.of_group(name)) for name in shown_groups(scores))
    }
    informed = scores.without_baselines()
    bare = None
    if 0 < len(informed.explainers) < len(scores.explainers):
        bare = _over_truth(_pairs(informed, rank_correlations(informed.oriented(), resamples, seed), blind, seeing))
    overall = _over_truth(pooled)
    best = _shares_of_best(overall.samples)
    rows = [
        AgreementRow(
            metric=name,
            correlations={truth: _interval(pooled, row, column) for column, truth in enumerate(seeing)},
            mean=_interval(overall, row),
            by_group={group: _interval(found, row) for group, found in groups.items()},
            without_baselines=None if bare is None else _interval(bare, row),
            within_image=_interval(within, row),
            best_share=float(best[row]),
        )
        for row, name in enumerate(blind)
    ]
    return sorted(rows, key=lambda row: _sort_key(row.mean.value))


def refinement(scores: Scores, metric: str, resamples: int, seed: int) -> list[RefinementRow]:
    """RefineCAM against its base methods: each family's single layers, then its refined maps."""
    values = scores.metric(metric)
    sign = 1 if METRICS[metric].higher_is_better else -1
    rows = []
    for base in dict.fromkeys(spec.base_method for spec in scores.explainers if spec.method == REFINECAM):
        family = [place for place, spec in enumerate(scores.explainers) if base in (spec.method, spec.base_method)]
        single = [place for place in family if scores.explainers[place].method == base]
        family = single + [place for place in family if place not in single]
        if base is None or not single:
            continue
        average = _nan_mean(sign * values[:, single])
        best = single[int(np.nanargmax(average))] if not np.isnan(average).all() else single[0]
        own = values[:, family]
        columns = np.concatenate([own, own - values[:, single[:1]], own - values[:, [best]]], axis=1)
        found = means(columns, resamples, seed)
        rows += [
            RefinementRow(
                base,
                scores.explainers[place],
                _interval(found, row),
                _interval(found, len(family) + row),
                _interval(found, 2 * len(family) + row),
            )
            for row, place in enumerate(family)
        ]
    return rows


def shown_groups(scores: Scores) -> tuple[str, ...]:
    """The groups, where there are few enough to be looked at one by one."""
    names = scores.group_names
    return names if len(names) <= _MOST_GROUPS else ()


def main_metric_of(metrics: Sequence[str]) -> str:
    """The metric that a report sorts by: arcc, or else the first one."""
    return "arcc" if "arcc" in metrics else metrics[0]


def _pairs(scores: Scores, found: Estimates, blind: Sequence[str], seeing: Sequence[str]) -> Estimates:
    """Of the correlations (M, M), those of metrics without ground truth (rows) and with it (columns)."""
    rows, columns = ([scores.metrics.index(name) for name in names] for names in (blind, seeing))
    at = np.ix_(rows, columns)
    return Estimates(found.value[at], found.low[at], found.high[at], found.samples[:, at[0], at[1]])


def _over_truth(found: Estimates) -> Estimates:
    """The mean over metrics with ground truth, of the estimate and of every resample."""
    return Estimates.of(_nan_mean(found.value.T), _nan_mean(np.moveaxis(found.samples, -1, 0)))


def _nan_mean(values: DoubleArray) -> DoubleArray:
    """Mean over axis 0 of what is not NaN; NaN where nothing is."""
    valid = ~np.isnan(values)
    count = valid.sum(axis=0)
    total = np.where(valid, values, 0).sum(axis=0)
    mean: DoubleArray = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def _shares_of_best(samples: DoubleArray) -> DoubleArray:
    """How often each of K columns of (B, K) is the largest."""
    known = np.where(np.isnan(samples), -np.inf, samples)
    best = known.argmax(axis=1)[np.isfinite(known).any(axis=1)]
    return np.bincount(best, minlength=samples.shape[1]) / max(len(best), 1)


def _interval(found: Estimates, *place: int) -> Interval:
    return Interval(float(found.value[place]), float(found.low[place]), float(found.high[place]))


def _sort_key(value: float) -> tuple[bool, float]:
    return bool(np.isnan(value)), -value
