"""The tables of a report as rows of text, whatever they are printed into."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from camrt.cam import REFINECAM
from camrt.evaluation.analysis import Analysis
from camrt.evaluation.explainers import ExplainerSpec
from camrt.evaluation.questions import Interval, RankingRow, RefinementRow, shown_groups
from camrt.metrics import METRICS

UP, DOWN = "↑", "↓"


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows of text; ``note`` says what the numbers are."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def number(value: float) -> str:
    """Three decimals; a dash where there is none; powers of ten where three decimals say nothing."""
    if math.isnan(value):
        return "-"
    if 0 < abs(value) < 0.0005 or abs(value) >= 1e5:
        return f"{value:.1e}"
    return f"{value:.3f}"


def interval(found: Interval) -> str:
    """``0.912 [0.905, 0.918]``."""
    if math.isnan(found.value):
        return "-"
    return f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"


def mean_text(row: RankingRow, metric: str, images: int, with_interval: bool) -> str:
    """A mean, with the number of its scores where some of the images have none."""
    found, scored = row.means[metric], row.scored[metric]
    text = interval(found) if with_interval else number(found.value)
    return text if scored == images else f"{text} (n={scored})"


def metric_title(name: str) -> str:
    """A metric's name with an arrow to its better end."""
    return f"{name} {UP if METRICS[name].higher_is_better else DOWN}"


def ranking_table(analysis: Analysis, metrics: Sequence[str] | None = None) -> Table:
    """Explainers and their means, the best first; the main metric comes first."""
    names = list(metrics or analysis.scores.metrics)
    names.sort(key=lambda name: name != analysis.main_metric)
    images = len(analysis.scores.items)
    rows = [
        (
            str(place),
            row.explainer.label,
            *(mean_text(row, name, images, name == analysis.main_metric) for name in names),
            f"{100 * row.degenerate:.0f} %",
        )
        for place, row in enumerate(analysis.ranking, 1)
    ]
    note = (
        f"Means over {images} images, or over the n that have a score, sorted by {analysis.main_metric}; in brackets "
        "its 95 % bootstrap interval over images. Empty: share of maps that say nothing because a layer's map, or the "
        "whole, is constant."
    )
    return Table("Ranking", ("", "explainer", *map(metric_title, names), "empty"), rows, note)


def group_table(analysis: Analysis) -> Table | None:
    """The main metric by group; None where there are no groups, or too many to be looked at."""
    groups = {name: analysis.group_rankings[name] for name in shown_groups(analysis.scores)}
    if len(groups) < 2:
        return None
    by_key: dict[str, dict[tuple[str, str, str, str], RankingRow]] = {
        name: {row.explainer.key: row for row in rows} for name, rows in groups.items()
    }
    counts = {name: analysis.scores.groups.count(name) for name in groups}
    rows = [
        (
            row.explainer.label,
            *(
                mean_text(by_key[name][row.explainer.key], analysis.main_metric, images, True)
                for name, images in counts.items()
            ),
        )
        for row in analysis.ranking
    ]
    sizes = ", ".join(f"{name}: {count} images" for name, count in counts.items())
    return Table(f"{metric_title(analysis.main_metric)} by group", ("explainer", *groups), rows, f"{sizes}.")


def agreement_tables(analysis: Analysis) -> list[Table]:
    """Metrics without ground truth against those with it, overall and apart; none where a kind is missing."""
    if not analysis.agreement:
        return []
    first = analysis.agreement[0]
    against = [
        (
            row.metric,
            interval(row.mean),
            f"{100 * row.best_share:.0f} %",
            *(interval(found) for found in row.correlations.values()),
        )
        for row in analysis.agreement
    ]
    apart = [
        (
            row.metric,
            *(interval(found) for found in row.by_group.values()),
            *([interval(row.without_baselines)] if row.without_baselines else []),
            interval(row.within_image),
        )
        for row in analysis.agreement
    ]
    bare = ["without baselines"] if first.without_baselines else []
    explainers, images = len(analysis.scores.explainers), len(analysis.scores.items)
    return [
        Table(
            "Which metric without ground truth agrees with the ground truth?",
            ("metric", "mean", "best in", *first.correlations),
            against,
            f"Spearman's correlation over {explainers} explainers x {images} images with metrics that know the object, "
            "and the mean of these; signs turned so that 1 means that a better score goes with a better score; 95 % "
            "bootstrap intervals over images. best in: share of resamples where the metric's mean is the highest.",
        ),
        Table(
            "The same mean for parts of the data",
            ("metric", *first.by_group, *bare, "within an image"),
            apart,
            "Images of one group; explainers that are no baselines; correlations over the explainers of each image, "
            "averaged over images.",
        ),
    ]


def refinement_table(analysis: Analysis, metric: str) -> Table:
    """RefineCAM against each base method alone, by one metric."""
    rows = [
        (
            row.base_method,
            row.explainer.label,
            interval(row.score),
            "" if _is_reference(row) else interval(row.over_coarsest),
            interval(row.over_best) if row.explainer.method == REFINECAM else "",
        )
        for row in analysis.refinement[metric]
    ]
    note = (
        "Means, and mean differences image by image to the base method at its coarsest layer and at the single layer "
        "where its mean is best (chosen on the same images); 95 % bootstrap intervals."
    )
    columns = ("base method", "explainer", metric_title(metric), "over coarsest layer", "over best layer")
    return Table(f"RefineCAM against its base methods: {metric_title(metric)}", columns, rows, note)


def layer_table(analysis: Analysis, metric: str) -> Table:
    """One row a base method: its mean at each single layer, and refined as more than one family has it."""
    families: dict[str, dict[str, RefinementRow]] = {}
    for row in analysis.refinement[metric]:
        families.setdefault(row.base_method, {})[_short(row.explainer)] = row
    own = Counter(name for family in families.values() for name in family)
    columns = [name for name, count in own.items() if count > 1 or len(families) == 1]
    rows = [
        [base, *(interval(family[name].score) if name in family else "-" for name in columns)]
        for base, family in families.items()
    ]
    return Table(f"{metric_title(metric)} per layer and fused", ("base method", *columns), rows)


def _short(spec: ExplainerSpec) -> str:
    return f"{spec.fusion}, {spec.shown_layers}" if spec.method == REFINECAM else spec.shown_layers


def _is_reference(row: RefinementRow) -> bool:
    return row.over_coarsest.value == row.over_coarsest.low == row.over_coarsest.high == 0
