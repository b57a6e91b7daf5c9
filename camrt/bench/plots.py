"""Plots of swept tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from camrt.bench.report import Table


def plot_table(table: Table, sweep: str, path: Path) -> Path:
    """One line a combination of the labels but ``sweep``, which grows along the x axis, as a PNG file."""
    from matplotlib.figure import Figure

    from camrt.bench.report import heading

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in series(table, sweep).items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    axes.set_title(f"{table.title} by {heading(sweep)}")
    axes.set_xlabel(heading(sweep))
    axes.set_ylabel(heading(table.figure))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path


def series(table: Table, sweep: str) -> dict[str, list[tuple[float, float]]]:
    """Name -> (swept label, figure) of its rows in order, of every combination with two rows or more."""
    varying = {
        name
        for row in table.rows
        for name, value in table.labels(row)
        if any(other.get(name) != value for other in table.rows)
    }
    found: dict[str, list[tuple[float, float]]] = {}
    for row in table.rows:
        name = ", ".join(
            value if isinstance(value, str) else f"{label} {value}"
            for label, value in table.labels(row)
            if label in varying and label != sweep
        )
        if sweep in row and table.figure in row:
            found.setdefault(name, []).append((float(row[sweep]), float(row[table.figure])))
    return {name: sorted(points) for name, points in found.items() if len(points) > 1}
