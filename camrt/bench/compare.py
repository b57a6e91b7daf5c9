"""Two reports of the same benchmark, row by row: what got slower."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from camrt.bench.report import Report, Row, Table
from camrt.errors import InvalidInputError

_MACHINE = ("processor", "cores", "gpu")
_RATIOS = ("to_prediction", "ratio")
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

    A ratio of one run is compared where there is one: to the plain prediction, else to the table's baseline. It is what
    survives a slower or busier machine. The baseline itself, whose ratio is one, is compared by its time, but only
    where both reports are of the same machine.

    Args:
        old: the earlier report.
        new: the later one.
        limit: relative growth from which a row counts as slower.

    Raises:
        InvalidInputError: reports of different benchmarks, no row in common, figures of different units or baselines.
    """
    if old.kind != new.kind:
        raise InvalidInputError(f"One report is of {old.kind}, the other of {new.kind}.", "Compare like with like.")
    _check_baselines(old.tables, new.tables)
    before, after = _rows(old), _rows(new)
    same_machine = all(old.environment.get(name) == new.environment.get(name) for name in _MACHINE)
    changes: list[Change] = []
    for key in (key for key in after if key in before):
        figure = _figure(key, before[key], after[key], same_machine)
        if figure is not None:
            changes.append(_change(key, figure, float(before[key][figure]), float(after[key][figure]), limit))
    if not changes:
        raise InvalidInputError(
            "The reports have no row in common" + ("." if same_machine else ", or only times of different machines."),
            "Run the benchmark with the same options twice.",
        )
    return changes, list(_notes(old, new, before, after))


def _rows(report: Report) -> dict[_Key, Row]:
    return {(table.title, table.labels(row)): row for table in report.tables for row in table.rows}


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


def _change(key: _Key, figure: str, old: float, new: float, limit: float) -> Change:
    change = new / old - 1 if old else 0.0
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
