"""CSV and Markdown."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from camrt.datasets import Problem
from camrt.evaluation.analysis import Analysis
from camrt.evaluation.questions import RankingRow
from camrt.evaluation.report.tables import (
    Table,
    agreement_tables,
    group_table,
    layer_table,
    ranking_table,
    refinement_table,
)
from camrt.evaluation.store import replaced
from camrt.json_values import storable

_CSV_COLUMNS = (
    "group",
    "images",
    "method",
    "base_method",
    "fusion",
    "layers",
    "metric",
    "scores",
    "mean",
    "low",
    "high",
    "empty",
)


def write_csv(path: Path, analysis: Analysis) -> None:
    """One row a group x explainer x metric: the mean of its scores and the interval. An empty group is every image."""
    with replaced(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(_CSV_COLUMNS)
        writer.writerows(_csv_rows("", len(analysis.scores.items), analysis.ranking))
        for group, rows in analysis.group_rankings.items():
            writer.writerows(_csv_rows(group, analysis.scores.groups.count(group), rows))


def write_problems(path: Path, problems: Sequence[Problem]) -> None:
    """One row a problem."""
    with replaced(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("kind", "name", "detail"))
        writer.writerows((problem.kind, problem.name, problem.detail) for problem in problems)


def write_markdown(path: Path, analysis: Analysis) -> None:
    """The tables, with the command, the seed and the versions."""
    facts = analysis.facts
    parts = [
        f"# {_escaped(facts.name)}",
        "```\n" + facts.command.replace("```", "'''") + "\n```",
        _facts_text(analysis),
    ]
    groups = group_table(analysis)
    parts += map(_markdown, agreement_tables(analysis))
    for metric in analysis.refinement:
        parts += [_markdown(layer_table(analysis, metric)), _markdown(refinement_table(analysis, metric))]
    parts += [_markdown(ranking_table(analysis))]
    parts += [] if groups is None else [_markdown(groups)]
    if analysis.problems:
        counts = [(kind, str(count)) for kind, count in analysis.problem_counts().items()]
        parts.append(_markdown(Table("Problems of the data", ("kind", "cases"), counts)))
    with replaced(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8", errors="backslashreplace")


def facts_rows(analysis: Analysis) -> list[tuple[str, str]]:
    """What was measured with what, name and value."""
    facts, scores = analysis.facts, analysis.scores
    rows = [
        ("data", facts.data),
        ("images", f"{len(scores.items)} evaluated, {facts.chosen} chosen, {facts.found} found"),
        ("model", f"{facts.bundle} (SHA-256 {facts.bundle_sha256[:16]})"),
        ("explained class", facts.class_choice),
        ("metrics follow", facts.target),
        ("seed", f"{facts.seed}, {facts.resamples} resamples"),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items())),
    ]
    if analysis.accuracy is not None:
        rows.insert(3, ("accuracy", f"{100 * analysis.accuracy:.1f} % of these images"))
    return [(name, storable(value)) for name, value in rows]


def _csv_rows(group: str, images: int, rows: Iterable[RankingRow]) -> Iterable[Sequence[object]]:
    for row in rows:
        spec = row.explainer
        for metric, found in row.means.items():
            yield (
                group,
                images,
                spec.method,
                spec.base_method,
                spec.fusion,
                ",".join(spec.layers),
                metric,
                row.scored[metric],
                found.value,
                found.low,
                found.high,
                row.degenerate,
            )


def _facts_text(analysis: Analysis) -> str:
    return "\n".join(f"- {name}: {_escaped(value)}" for name, value in facts_rows(analysis))


def _markdown(table: Table) -> str:
    lines = [
        f"| {' | '.join(map(_escaped, table.columns))} |",
        f"|{'|'.join(['---'] * len(table.columns))}|",
        *(f"| {' | '.join(map(_escaped, row))} |" for row in table.rows),
    ]
    note = f"{table.note}\n\n" if table.note else ""
    return f"## {table.title}\n\n{note}" + "\n".join(lines)


def _escaped(text: str) -> str:
    """Text that Markdown does not take for more: one line, and no bars, tags or back quotes."""
    single = " ".join(text.split())
    for character in "\\|<`":
        single = single.replace(character, "\\" + character)
    return single
