"""Two reports of the same benchmark, row by row: what got slower."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from camrt.bench.report import Report, Row, Table
from camrt.errors import InvalidInputError

_MACHINE = ("processor", "cores", "gpu")
_RATIOS = ("to_prediction", "to_reference", "ratio")
_INDEPENDENT = ("the prediction of as many images", "the prediction of the same image")
"""Baselines that are not under test, each found by the labels of the row itself."""
_TIMES = ("median_ms", "p50_ms")
_MOST_NAMED = 5
_Key: TypeAlias = tuple[str, tuple[tuple[str, object], ...]]


@dataclass(frozen=True, slots=True)
class Change:
    """One row that both reports have.

    Attributes:
        table: title of its table.
        labels: what identifies it.
        figure: the column that is compared; it grows where the row gets slower.
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

    A ratio of one run is compared where its baseline is not under test: to the plain prediction, and of a native kernel
    to the reference. It is what survives a slower or busier machine. Other rows, and the baselines themselves, whose
    ratio is one, are compared by their times, but only where both reports are of the same machine.

    Args:
        old: the earlier report.
        new: the later one.
        limit: relative growth from which a row counts as slower.

    Raises:
        InvalidInputError: reports of different benchmarks, no row in common, figures of different units or baselines,
            a figure that is not a positive number.
    """
    if old.kind != new.kind:
        raise InvalidInputError(f"One report is of {old.kind}, the other of {new.kind}.", "Compare like with like.")
    _check_baselines(old.tables, new.tables)
    before, after = _rows(old), _rows(new)
    other_networks = old.settings.get("models") != new.settings.get("models")
    same_machine = all(old.environment.get(name) == new.environment.get(name) for name in _MACHINE)
    changes: list[Change] = []
    for key in (key for key in after if key in before):
        if other_networks and "models" in after[key]:
            continue
        figure = _figure(key, before[key], after[key], same_machine)
        if figure is not None:
            changes.append(_change(key, figure, before[key], after[key], limit))
    if not changes:
        raise InvalidInputError(
            "The reports have no row in common" + ("." if same_machine else ", or only times of different machines."),
            "Run the benchmark with the same options twice, on the same machine.",
        )
    notes = list(_notes(old, new, before, after))
    if other_networks and any("models" in row for row in after.values()):
        notes.append("Means are of other networks; they are not compared.")
    return changes, notes


def _rows(report: Report) -> dict[_Key, Row]:
    return {(table.title, table.labels(row)): row for table in report.tables for row in _comparable(table)}


def _comparable(table: Table) -> list[Row]:
    """The rows of a table without ratios to what is under test, with those of native kernels to the reference."""
    if table.ratio_to in _INDEPENDENT:
        return table.rows
    rows: list[Row] = [{name: value for name, value in row.items() if name != "ratio"} for row in table.rows]
    references = {
        (row["kernel"], row.get("batch")): float(row["median_ms"])
        for row in rows
        if row.get("backend") == "reference" and "kernel" in row and "median_ms" in row
    }
    for row in rows:
        reference = references.get((row.get("kernel", ""), row.get("batch")))
        if reference and row.get("backend") != "reference" and "median_ms" in row:
            row["to_reference"] = float(row["median_ms"]) / reference
    return rows


def _check_baselines(old: list[Table], new: list[Table]) -> None:
    before = {table.title: table.ratio_to for table in old}
    for table in new:
        base = before.get(table.title, table.ratio_to)
        if base != table.ratio_to:
            raise InvalidInputError(
                f"{table.title}: ratios to {base!r} in the old report, to {table.ratio_to!r} in the new one.",
                "Run the benchmark again with the same camrt.",
            )


def _figure(key: _Key, old: Row, new: Row, same_machine: bool) -> str | None:
    """The column to compare, or None where there is nothing that compares.

    Raises:
        InvalidInputError: both rows have figures, but of different names, hence units.
    """
    ratio = next((name for name in _RATIOS if name in old and name in new), None)
    if ratio is not None and (old[ratio], new[ratio]) != (1.0, 1.0):
        return ratio
    time = next((name for name in _TIMES if name in old and name in new), None)
    mine, theirs = _float_columns(old), _float_columns(new)
    if time is None and any(name in row for name in _TIMES for row in (old, new)) and mine and theirs:
        raise InvalidInputError(
            f"{_text(key)}: the old report has {', '.join(sorted(mine - theirs)) or 'nothing'} where the new one has "
            f"{', '.join(sorted(theirs - mine)) or 'nothing'}.",
            "Run the benchmark again with the same camrt.",
        )
    return time if same_machine else None


def _float_columns(row: Row) -> set[str]:
    return {name for name, value in row.items() if isinstance(value, float)}


def _change(key: _Key, figure: str, before: Row, after: Row, limit: float) -> Change:
    """What became of one figure.

    Raises:
        InvalidInputError: it is not a positive number in both.
    """
    old, new = float(before[figure]), float(after[figure])
    if not all(0 < value < math.inf for value in (old, new)):
        raise InvalidInputError(
            f"{_text(key)}: {figure} is {old:g} in the old report and {new:g} in the new one.",
            "Run the benchmark again.",
        )
    change = new / old - 1
    verdict = "slower" if change > limit else "faster" if change < -limit / (1 + limit) else "same"
    return Change(key[0], _labels(key), figure, old, new, change, verdict)


def _labels(key: _Key) -> str:
    return ", ".join(f"{name} {value}" for name, value in key[1])


def _text(key: _Key) -> str:
    return f"{key[0]} ({_labels(key)})"


def _notes(old: Report, new: Report, before: Mapping[_Key, Row], after: Mapping[_Key, Row]) -> Iterator[str]:
    for name in _MACHINE:
        one, other = old.environment.get(name), new.environment.get(name)
        if one != other:
            yield f"{name}: {one!r} then {other!r}; only ratios are compared."
    if old.settings.get("bundle") != new.settings.get("bundle"):
        yield f"bundle: {old.settings.get('bundle')!r} then {new.settings.get('bundle')!r}."
    yield from _missing("old", [key for key in before if key not in after])
    yield from _missing("new", [key for key in after if key not in before])
    yield from (f"new report: {note}" for note in new.notes)


def _missing(which: str, keys: Collection[_Key]) -> Iterator[str]:
    if keys:
        named = "; ".join(_text(key) for key in list(keys)[:_MOST_NAMED])
        more = f"; and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
        yield f"Only in the {which} report: {named}{more}."
