"""An analysis as types that JSON has."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any

from camrt.evaluation.analysis import Analysis
from camrt.evaluation.explainers import ExplainerSpec
from camrt.json_values import storable, strict_json


def to_json(analysis: Analysis) -> dict[str, Any]:
    """Facts, ranking, agreement, refinement, problems: NaN and infinity are null, bytes that are no UTF-8 escapes."""
    document: dict[str, Any] = {
        "run": {name: _plain(value) for name, value in asdict(analysis.facts).items()},
        "images": len(analysis.scores.items),
        "accuracy": analysis.accuracy,
        "main_metric": analysis.main_metric,
        "ranking": [_plain(row) for row in analysis.ranking],
        "agreement": [_plain(row) for row in analysis.agreement],
        "refinement": {metric: [_plain(row) for row in rows] for metric, rows in analysis.refinement.items()},
        "problem_counts": analysis.problem_counts(),
        "problems": [asdict(problem) for problem in analysis.problems],
    }
    values: dict[str, Any] = strict_json(document)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, ExplainerSpec):
        return {**asdict(value), "label": value.label, "layers": list(value.layers)}
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return storable(value) if isinstance(value, str) else value
