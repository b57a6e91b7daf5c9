"""Reports: one JSON document, the same as Markdown tables, and plots where matplotlib is installed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from camrt.errors import InvalidInputError

SCHEMA = 1
Row: TypeAlias = dict[str, "str | int | float"]
FIGURES = (
    "calls",
    "median_ms",
    "p90_ms",
    "p99_ms",
    "min_ms",
    "images_per_second",
    "ratio",
    "ratio_lower_quartile",
    "ratio_upper_quartile",
)
_HIDDEN = ("min_ms", "ratio_lower_quartile", "ratio_upper_quartile")
_HEADINGS = {
    "median_ms": "median ms",
    "p90_ms": "p90 ms",
    "p99_ms": "p99 ms",
    "images_per_second": "images / s",
}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that belong together.

    Attributes:
        title: heading.
        rows: labels (text, whole numbers) and figures (floating-point numbers) by column.
        ratio_to: what ``ratio`` is divided by.
        sweep: labels that grow, each along the x axis of a plot of its own.
        figure: the column that is plotted.
    """

    title: str
    rows: list[Row]
    ratio_to: str = ""
    sweep: tuple[str, ...] = ()
    figure: str = "median_ms"

    def labels(self, row: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
        """What identifies a row: its texts and whole numbers, but no figures."""
        return tuple(
            (name, value) for name, value in row.items() if not isinstance(value, float) and name not in FIGURES
        )


@dataclass(frozen=True, slots=True)
class Report:
    """One run of a benchmark.

    Attributes:
        kind: latency, throughput, sizes, kernels, server, peers; the name of its files.
        command: what made it.
        environment: from describe_machine.
        settings: options of the run.
        tables: the results.
        limits: what the machine can do at most, from machine_limits.
        notes: sentences for the reader, such as that the machine was not quiet.
    """

    kind: str
    command: str
    environment: dict[str, Any]
    settings: dict[str, Any]
    tables: list[Table]
    limits: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A document that load_report reads; figures that are no finite number are left out of it."""
        tables = [
            {
                "title": table.title,
                "ratio_to": table.ratio_to,
                "sweep": table.sweep,
                "figure": table.figure,
                "rows": [_finite(row) for row in table.rows],
            }
            for table in self.tables
        ]
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "command": self.command,
            "environment": self.environment,
            "settings": self.settings,
            "limits": _finite(self.limits),
            "notes": self.notes,
            "tables": tables,
        }

    def to_markdown(self) -> str:
        """Tables with the command, the machine and the notes."""
        machine = self.environment
        lines = [f"# {self.kind}", "", f"`{self.command}`", ""]
        lines.append(f"{machine['processor']}, {machine['cores']} cores, {machine['system']}.")
        if machine.get("gpu"):
            lines.append(f"GPU: {'; '.join(machine['gpu'])}.")
        lines += [f"- {note}" for note in self.notes]
        if self.limits:
            lines += ["", *(f"- {name}: {number:.1f}" for name, number in self.limits.items())]
        for table in self.tables:
            lines += ["", f"## {table.title}", ""]
            if table.ratio_to:
                lines += [f"ratio: time / time of {table.ratio_to}, median over the rounds.", ""]
            lines += _markdown(table.rows)
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Writes KIND.json, KIND.md and a plot a swept table into ``folder``; the files, in this order.

        Raises:
            InvalidInputError: the folder cannot be written.
        """
        document, text = folder / f"{self.kind}.json", folder / f"{self.kind}.md"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            document.write_text(json.dumps(self.to_json(), indent=2, allow_nan=False, default=str) + "\n")
            text.write_text(self.to_markdown())
        except OSError as error:
            raise InvalidInputError(f"Cannot write to {folder}: {error.strerror}.", "Choose another folder.") from error
        return [document, text, *self._plots(folder)]

    def _plots(self, folder: Path) -> list[Path]:
        if find_spec("matplotlib") is None:
            return []
        from camrt.bench.plots import plot_table, series

        swept = [(table, label) for table in self.tables for label in table.sweep if series(table, label)]
        return [
            plot_table(table, label, folder / f"{self.kind}_{number}.png")
            for number, (table, label) in enumerate(swept, 1)
        ]


def load_report(path: Path) -> Report:
    """The report in a JSON file that a benchmark wrote.

    Raises:
        InvalidInputError: it cannot be read, or is no such file.
    """
    try:
        document = json.loads(path.read_text())
        if document["schema"] != SCHEMA:
            raise InvalidInputError(
                f"{path} has schema {document['schema']}; this camrt reads {SCHEMA}.", "Run it again."
            )
        tables = [_table(**table) for table in document["tables"]]
        texts: dict[str, Any] = {name: str(document[name]) for name in ("kind", "command")}
        objects: dict[str, Any] = {name: dict(document[name]) for name in ("environment", "settings", "limits")}
        return Report(tables=tables, notes=list(document["notes"]), **texts, **objects)
    except OSError as error:
        raise InvalidInputError(f"Cannot read {path}: {error.strerror}.", "Check the path.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        raise InvalidInputError(f"{path} is no report of `camrt bench` ({why}).", "Name its .json file.") from error


def _table(*, rows: list[Row], sweep: str | list[str] | None = None, **others: str) -> Table:
    """A table of a JSON document; earlier ones name one swept label at most, as text.

    Raises:
        TypeError: a figure is no number, a label no text or number.
    """
    for row in rows:
        for name, value in row.items():
            if not isinstance(value, int | float if name in FIGURES else int | float | str):
                raise TypeError(f"{name} is {value!r}")
    return Table(rows=rows, sweep=(sweep,) if isinstance(sweep, str) else tuple(sweep or ()), **others)


def _finite(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The same without what JSON has no number for."""
    return {name: value for name, value in figures.items() if not isinstance(value, float) or math.isfinite(value)}


def shown_columns(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """The columns of a table in their order, without those that only programs need."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [name for name in names if name not in _HIDDEN]


def heading(name: str) -> str:
    """How a column is called in a table."""
    return _HEADINGS.get(name, name.replace("_", " "))


def cell(value: object) -> str:
    """Text of one cell: three significant digits, whole numbers as they are."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def _markdown(rows: Sequence[Row]) -> list[str]:
    columns = shown_columns(rows)
    lines = ["| " + " | ".join(heading(name) for name in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(name)) for name in columns) + " |" for row in rows]
    return lines
