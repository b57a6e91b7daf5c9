"""``METRICS``: name -> how a map is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from camrt.errors import InvalidInputError, MethodNotFoundError
from camrt.metrics.arcc import adcc, arcc
from camrt.metrics.coherency import coherency
from camrt.metrics.complexity import complexity
from camrt.metrics.confidence import average_drop, increase_in_confidence
from camrt.metrics.deletion import deletion_auc, insertion_auc
from camrt.metrics.ground_truth import bce, cosine, l2, mass_iou, pointing_game, roc_auc
from camrt.metrics.measurement import Measurement
from camrt.metrics.road import road
from camrt.metrics.sensitivity import infidelity, max_sensitivity
from camrt.types import DoubleArray


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: its name in the API.
        summary: its formula in one line; m the map, x the image, y the value of the class, g the object mask.
        higher_is_better: whether a better map scores higher.
        needs_object_mask: whether it compares with an object mask.
        score: the N scores of a measurement, NaN where the metric is undefined.
    """

    name: str
    summary: str
    higher_is_better: bool
    needs_object_mask: bool
    score: Callable[[Measurement], DoubleArray]


def get_metric(name: str) -> Metric:
    """The metric called ``name``; MethodNotFoundError lists the names there are."""
    if name not in METRICS:
        raise MethodNotFoundError(f"Unknown metric {name!r}.", f"Choose some of {', '.join(METRICS)}.")
    return METRICS[name]


def check_metrics(names: Sequence[str], object_masks: bool) -> tuple[Metric, ...]:
    """The metrics called ``names``, if they can be computed.

    Args:
        names: names of metrics.
        object_masks: whether object masks are there.

    Raises:
        MethodNotFoundError: an unknown name.
        InvalidInputError: no name, a single string, or a metric that needs object masks where there are none.
    """
    if isinstance(names, str) or not names:
        raise InvalidInputError(f"Metrics are {names!r}.", f"Give a list of some of {', '.join(METRICS)}.")
    metrics = tuple(get_metric(name) for name in names)
    blind = [] if object_masks else [metric.name for metric in metrics if metric.needs_object_mask]
    if blind:
        raise InvalidInputError(
            f"There are no object masks, and {', '.join(blind)} cannot do without.",
            "Give object_masks=, (N, H, W) bool, or leave these metrics out.",
        )
    return metrics


def measure(names: Sequence[str], measurement: Measurement) -> dict[str, DoubleArray]:
    """Scores (N,) of every metric that is named; what several of them need is computed once.

    Raises:
        MethodNotFoundError, InvalidInputError: as check_metrics, before anything runs.
    """
    metrics = check_metrics(names, measurement.has_object_masks)
    return {metric.name: measurement.once(metric.score) for metric in metrics}


_WITHOUT_GROUND_TRUTH = (
    ("complexity", "mean |m|", False, complexity),
    ("coherency", "(pearson(m, explain(x m)) + 1) / 2", True, coherency),
    ("road", "(mean LeRF - mean MoRF) / 2, removed pixels imputed", True, road),
    ("arcc", "harmonic mean of coherency, 1 - complexity, clip(2 road, 0, 1)", True, arcc),
    ("adcc", "harmonic mean of coherency, 1 - complexity, 1 - average_drop", True, adcc),
    ("average_drop", "max(0, (y(x) - y(x m)) / y(x))", False, average_drop),
    ("increase_in_confidence", "1 if y(x m) > y(x), else 0", True, increase_in_confidence),
    ("insertion_auc", "area under y while x is put into its blurred copy, most relevant first", True, insertion_auc),
    ("deletion_auc", "area under y while x is set to 0, most relevant first", False, deletion_auc),
    ("infidelity", "mean (a sum_S m - (y(x) - y(x without S)))^2 over squares S, best a", False, infidelity),
    ("max_sensitivity", "max ||explain(x + e) - m|| / ||m||, |e| <= 0.1", False, max_sensitivity),
)
_WITH_GROUND_TRUTH = (
    ("pointing_game", "1 if the maximum of m is on g, else 0", True, pointing_game),
    ("roc_auc", "chance that m is higher on g than beside it", True, roc_auc),
    ("mass_iou", "sum m g / sum m", True, mass_iou),
    ("bce", "mean binary cross-entropy of m against g", False, bce),
    ("l2", "sqrt(mean (m - g)^2)", False, l2),
    ("cosine", "sum m g / (||m|| ||g||)", True, cosine),
)

METRICS: dict[str, Metric] = {
    name: Metric(name, summary, higher_is_better, needs_object_mask, score)
    for needs_object_mask, rows in ((False, _WITHOUT_GROUND_TRUTH), (True, _WITH_GROUND_TRUTH))
    for name, summary, higher_is_better, score in rows
}
