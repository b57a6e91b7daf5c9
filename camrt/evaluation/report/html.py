"""The HTML report: one file, everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from camrt.evaluation.analysis import Analysis
from camrt.evaluation.optional import require
from camrt.evaluation.questions import COMPARED_METRICS
from camrt.evaluation.report import charts
from camrt.evaluation.report.documents import facts_rows
from camrt.evaluation.report.gallery import GalleryItem
from camrt.evaluation.report.tables import (
    agreement_tables,
    group_table,
    layer_table,
    metric_title,
    ranking_table,
    refinement_table,
)
from camrt.evaluation.store import replaced
from camrt.metrics import METRICS

_TEMPLATE = "report.html.j2"
_MOST_PROBLEMS_A_KIND = 100


def write_html(path: Path, analysis: Analysis, gallery: Sequence[GalleryItem]) -> None:
    """Writes the report; every text of the run is escaped.

    Raises:
        MissingPackageError: jinja2 or matplotlib is not installed.
    """
    jinja = require("jinja2")
    environment = jinja.Environment(
        autoescape=True, undefined=jinja.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (files("camrt.evaluation.report") / _TEMPLATE).read_text(encoding="utf-8")
    markup = require("markupsafe").Markup
    text = environment.from_string(source).render(**_content(analysis, gallery, markup))
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _content(analysis: Analysis, gallery: Sequence[GalleryItem], markup: Any) -> dict[str, Any]:
    """What the template shows; ``markup`` marks the charts as safe, whose texts matplotlib has escaped."""
    scores = analysis.scores
    shown = [name for name in COMPARED_METRICS if name in scores.metrics] or [analysis.main_metric]
    return {
        "facts": analysis.facts,
        "fact_rows": facts_rows(analysis),
        "tiles": _tiles(analysis),
        "ranking": ranking_table(analysis),
        "ranking_chart": markup(charts.ranking_chart(analysis)),
        "groups": group_table(analysis),
        "distributions": [(metric_title(name), markup(charts.distribution_chart(analysis, name))) for name in shown],
        "correlation_chart": (None if analysis.correlations is None else markup(charts.correlation_chart(analysis))),
        "agreement": agreement_tables(analysis),
        "agreement_chart": markup(charts.agreement_chart(analysis)) if analysis.agreement else None,
        "refinements": [
            {
                "chart": markup(charts.refinement_chart(analysis, name)),
                "layers": layer_table(analysis, name),
                "details": refinement_table(analysis, name),
            }
            for name in analysis.refinement
        ],
        "gallery": gallery,
        "main_metric": metric_title(analysis.main_metric),
        "problems": _problem_groups(analysis),
        "metrics": [METRICS[name] for name in scores.metrics],
    }


def _tiles(analysis: Analysis) -> list[tuple[str, str]]:
    scores, best = analysis.scores, analysis.ranking[0]
    tiles = [
        (f"{len(scores.items)}", "images"),
        (f"{len(scores.explainers)}", "explainers"),
        (f"{len(scores.metrics)}", "metrics"),
    ]
    if analysis.accuracy is not None:
        tiles.append((f"{100 * analysis.accuracy:.1f} %", "accuracy of the model"))
    tiles.append((f"{len(analysis.problems)}", "problems in the data"))
    tiles.append(
        (f"{best.means[analysis.main_metric].value:.3f}", f"best {analysis.main_metric}: {best.explainer.label}")
    )
    return tiles


def _problem_groups(analysis: Analysis) -> list[dict[str, Any]]:
    groups = []
    for kind, count in analysis.problem_counts().items():
        own = [problem for problem in analysis.problems if problem.kind == kind]
        groups.append(
            {"kind": kind, "count": count, "shown": own[:_MOST_PROBLEMS_A_KIND], "more": count - _MOST_PROBLEMS_A_KIND}
        )
    return groups
