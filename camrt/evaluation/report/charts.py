"""Charts as SVG text that stands alone in an HTML page: no external resource, no script."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from camrt.cam import REFINECAM
from camrt.evaluation.analysis import Analysis
from camrt.evaluation.explainers import ExplainerSpec
from camrt.evaluation.optional import require
from camrt.evaluation.questions import Interval
from camrt.evaluation.report.tables import metric_title
from camrt.metrics import METRICS

_REFINED, _PLAIN, _BASELINE = "#0b6e6e", "#5b7fb5", "#a3a3a3"
_GROUPS = ("#0b6e6e", "#d9822b", "#7b5ea7", "#5b7fb5", "#b0413e", "#6b8e23")
_ROW_INCHES, _MOST_ROWS, _MOST_GROUPS = 0.235, 60, len(_GROUPS)
_STYLE = {
    "font.size": 9,
    "font.family": ["DejaVu Sans"],
    "text.parse_math": False,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "xtick.color": "#555555",
    "ytick.color": "#333333",
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
}


def ranking_chart(analysis: Analysis) -> str:
    """Means of the main metric with their intervals, the best on top."""
    rows = analysis.ranking[:_MOST_ROWS]
    with _figure("ranking", 9.5, _height(len(rows))) as (axes, finish):
        for place, row in enumerate(rows):
            found = row.means[analysis.main_metric]
            _draw_interval(axes, found, place, _colour(row.explainer))
        _name_rows(axes, [row.explainer.label for row in rows])
        axes.set_xlabel(f"mean {metric_title(analysis.main_metric)}, 95 % interval")
        return finish()


def distribution_chart(analysis: Analysis, metric: str) -> str:
    """Box plots of the scores of every explainer: quartiles, whiskers from the 5th to the 95th percentile."""
    rows = analysis.ranking[:_MOST_ROWS]
    values = analysis.scores.metric(metric)
    place_of = {spec.key: place for place, spec in enumerate(analysis.scores.explainers)}
    columns = [values[:, place_of[row.explainer.key]] for row in rows]
    with _figure(f"distribution-{metric}", 9.5, _height(len(rows))) as (axes, finish):
        boxes = axes.boxplot(
            [column[~np.isnan(column)] for column in columns],
            orientation="horizontal",
            positions=range(len(rows)),
            whis=(5, 95),
            widths=0.6,
            showfliers=False,
            patch_artist=True,
            medianprops={"color": "#222222"},
            boxprops={"linewidth": 0},
            whiskerprops={"color": "#999999"},
            capprops={"color": "#999999"},
        )
        for box, row in zip(boxes["boxes"], rows, strict=True):
            box.set_facecolor(_colour(row.explainer))
            box.set_alpha(0.65)
        _name_rows(axes, [row.explainer.label for row in rows])
        axes.set_xlabel(metric_title(metric))
        return finish()


def correlation_chart(analysis: Analysis) -> str:
    """Heat map of Spearman's correlations between metrics, signs turned where lower is better."""
    assert analysis.correlations is not None
    names = sorted(analysis.scores.metrics, key=lambda name: METRICS[name].needs_object_mask)
    order = [analysis.scores.metrics.index(name) for name in names]
    values = analysis.correlations.value[np.ix_(order, order)]
    side = 2.2 + 0.42 * len(names)
    with _figure("correlations", side + 0.8, side) as (axes, finish):
        axes.grid(visible=False)
        mesh = axes.pcolormesh(values, cmap="RdBu", vmin=-1, vmax=1, edgecolors="white", linewidth=1)
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                shown = "-" if np.isnan(value) else f"{value:.2f}"
                colour = "white" if abs(value) > 0.6 else "#333333"
                axes.text(column + 0.5, row + 0.5, shown, ha="center", va="center", fontsize=7.5, color=colour)
        blind = sum(not METRICS[name].needs_object_mask for name in names)
        if 0 < blind < len(names):
            for draw in (axes.axhline, axes.axvline):
                draw(blind, color="#222222", linewidth=1.5)
        ticks = np.arange(len(names)) + 0.5
        axes.set_xticks(ticks, names, rotation=45, ha="right")
        axes.set_yticks(ticks, names)
        axes.set_xlim(0, len(names))
        axes.set_ylim(len(names), 0)
        axes.tick_params(length=0)
        axes.figure.colorbar(mesh, ax=axes, shrink=0.6, label="Spearman's correlation")
        return finish()


def agreement_chart(analysis: Analysis) -> str:
    """How each metric without ground truth agrees with the ground truth: all images, and each group."""
    rows = analysis.agreement
    groups = list(rows[0].by_group)[:_MOST_GROUPS]
    with _figure("agreement", 9.5, _height(len(rows), 2.2)) as (axes, finish):
        for place, row in enumerate(rows):
            _draw_interval(axes, row.mean, place, "#222222", size=6, label="all images" if place == 0 else None)
            for number, group in enumerate(groups):
                offset = 0.2 + 0.55 * (number + 1) / (len(groups) + 1) - 0.1
                label = group if place == 0 else None
                _draw_interval(axes, row.by_group[group], place + offset, _GROUPS[number], size=3.5, label=label)
        _name_rows(axes, [row.metric for row in rows], margin=0.8)
        axes.axvline(0, color="#888888", linewidth=0.8)
        axes.set_xlabel("mean Spearman correlation with the metrics with ground truth, 95 % interval")
        if groups:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        return finish()


def refinement_chart(analysis: Analysis, metric: str) -> str:
    """Means of the families of base methods: single layers, coarse to fine, then refined."""
    rows = analysis.refinement[metric]
    labels, place, base = [], 0.0, rows[0].base_method
    places = []
    for row in rows:
        place += 0.6 if row.base_method != base else 0
        base = row.base_method
        places.append(place)
        labels.append(row.explainer.label)
        place += 1
    with _figure(f"refinement-{metric}", 9.5, _height(len(rows), 1.15)) as (axes, finish):
        for at, row in zip(places, rows, strict=True):
            _draw_interval(axes, row.score, at, _colour(row.explainer))
        axes.set_yticks(places, labels)
        axes.set_ylim(places[-1] + 0.7, -0.7)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"mean {metric_title(metric)}, 95 % interval")
        return finish()


@contextmanager
def _figure(name: str, width: float, height: float) -> Iterator[tuple[Any, Callable[[], str]]]:
    """Axes to draw on, and the function that makes them SVG. No display and no global state is touched."""
    matplotlib = require("matplotlib")
    figures = require("matplotlib.figure")
    canvas = require("matplotlib.backends.backend_svg").FigureCanvasSVG
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        canvas(figure)

        def finish() -> str:
            stream = io.StringIO()
            figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
            return _inline(stream.getvalue(), name)

        yield figure.add_subplot(), finish


def _inline(svg: str, name: str) -> str:
    """The bare element, without declarations that name addresses, its ids apart from those of other charts."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace("xlink:href", "href").replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


def _draw_interval(
    axes: Any, found: Interval, place: float, colour: str, size: float = 5, label: str | None = None
) -> None:
    if np.isnan(found.value):
        return
    axes.plot([found.low, found.high], [place, place], color=colour, linewidth=1.6, alpha=0.6, solid_capstyle="round")
    axes.plot([found.value], [place], "o", color=colour, markersize=size, label=label, linestyle="none")


def _name_rows(axes: Any, names: Sequence[str], margin: float = 0.7) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 1 + margin, -0.7)
    axes.tick_params(axis="y", length=0)


def _height(rows: int, stretch: float = 1.0) -> float:
    return 0.9 + _ROW_INCHES * stretch * rows


def _colour(spec: ExplainerSpec) -> str:
    if spec.is_baseline:
        return _BASELINE
    return _REFINED if spec.method == REFINECAM else _PLAIN
