"""Two reports of the same benchmark, row by row: what got slower."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from camrt.bench.report import Report
from camrt.errors import InvalidInputError

_NOT_COMPARABLE = ("processor", "cores")


@dataclass(frozen=True, slots=True)
class Change:
    """One row that both reports have.

    Attributes:
        table: title of its table.
        labels: what identifies it.
        figure: what is compared: ratio (to the baseline of the same run) where both have one, else the median.
        old, new: the two figures.
        change: new / old - 1.
        verdict: "slower", "faster" or "same".
    """

    table: str
    labels: str
    figure: str
    old: float
    new: float
    change: float
    verdict: str


def compare_reports(old: Report, new: Report, limit: float = 0.10) -> tuple[list[Change], list[str]]:
    """Changes of every row that both have, and notes on what cannot be compared.

    A ratio to the baseline of the same run is compared where there is one: it is what survives a slower or busier
    machine. The baseline itself, whose ratio is one, is compared by its median.

    Args:
        old: the earlier report.
        new: the later one.
        limit: relative growth from which a row counts as slower.

    Raises:
        InvalidInputError: reports of different benchmarks, or no row in common.
    """
    if old.kind != new.kind:
        raise InvalidInputError(f"One report is of {old.kind}, the other of {new.kind}.", "Compare like with like.")
    before = {(table.title, table.labels(row)): row for table in old.tables for row in table.rows}
    after = {(table.title, table.labels(row)): row for table in new.tables for row in table.rows}
    changes: list[Change] = []
    for key, row in after.items():
        if key not in before:
            continue
        changes.extend(
            _change(key, figure, float(before[key][figure]), float(row[figure]), limit)
            for figure in _figures(before[key], row)
        )
    if not changes:
        raise InvalidInputError("The reports have no row in common.", "Run the benchmark with the same options twice.")
    return changes, list(_notes(old, new, len(before.keys() - after.keys()), len(after.keys() - before.keys())))


def _figures(old: dict[str, str | int | float], new: dict[str, str | int | float]) -> Iterator[str]:
    """The ratio, but of the baseline itself; else the median."""
    if "ratio" in old and "ratio" in new and (old["ratio"], new["ratio"]) != (1.0, 1.0):
        yield "ratio"
    elif "median_ms" in old and "median_ms" in new:
        yield "median_ms"


def _change(
    key: tuple[str, tuple[tuple[str, object], ...]], figure: str, old: float, new: float, limit: float
) -> Change:
    change = new / old - 1 if old else 0.0
    verdict = "slower" if change > limit else "faster" if change < -limit / (1 + limit) else "same"
    labels = ", ".join(f"{name} {value}" for name, value in key[1])
    return Change(key[0], labels, figure, old, new, change, verdict)


def _notes(old: Report, new: Report, gone: int, added: int) -> Iterator[str]:
    for name in _NOT_COMPARABLE:
        one, other = old.environment.get(name), new.environment.get(name)
        if one != other:
            yield f"{name}: {one!r} then {other!r}; only ratios compare."
    if gone or added:
        yield f"{gone} rows only in the old report, {added} only in the new one."
    yield from (f"new report: {note}" for note in new.notes)
