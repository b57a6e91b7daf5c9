"""The table of measurements as one array, for statistics and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from camrt.datasets.synthetic_shapes import SIZE_RANGES
from camrt.evaluation.explainers import ExplainerSpec
from camrt.evaluation.optional import require
from camrt.evaluation.store import RunFolderError
from camrt.metrics import METRICS
from camrt.types import BoolArray, DoubleArray, IntArray

_ITEM_COLUMNS = ("item", "group", "class_index", "predicted", "probability", "correct")


@dataclass(frozen=True, slots=True)
class Scores:
    """n items x E explainers x M metrics.

    Attributes:
        items: n ids.
        groups: n names, empty where an item has none.
        explainers: E of them.
        metrics: M names.
        values: (n, E, M), NaN where undefined.
        degenerate: (n, E) whether the map says nothing.
        class_index, predicted: (n,) the explained and the predicted class.
        probability: (n,) of the explained class.
        correct: (n,) 1 where the prediction is the true class, 0 where not, NaN where nobody knows.
    """

    items: tuple[str, ...]
    groups: tuple[str, ...]
    explainers: tuple[ExplainerSpec, ...]
    metrics: tuple[str, ...]
    values: DoubleArray
    degenerate: BoolArray
    class_index: IntArray
    predicted: IntArray
    probability: DoubleArray
    correct: DoubleArray

    def metric(self, name: str) -> DoubleArray:
        """The scores (n, E) of one metric."""
        return self.values[:, :, self.metrics.index(name)]

    @property
    def group_names(self) -> tuple[str, ...]:
        """The groups, in the order of their first items; sizes from small to large."""
        found = dict.fromkeys(group for group in self.groups if group)
        sizes = tuple(size for size in SIZE_RANGES if size in found)
        return sizes if len(sizes) == len(found) else tuple(found)

    def of_group(self, name: str) -> Scores:
        """The items of one group."""
        rows = [row for row, group in enumerate(self.groups) if group == name]
        return replace(
            self,
            items=tuple(self.items[row] for row in rows),
            groups=(name,) * len(rows),
            **{key: getattr(self, key)[rows] for key in _ARRAYS},
        )

    def without_baselines(self) -> Scores:
        """The explainers that know the model."""
        kept = [place for place, spec in enumerate(self.explainers) if not spec.is_baseline]
        return replace(
            self,
            explainers=tuple(self.explainers[place] for place in kept),
            values=self.values[:, kept],
            degenerate=self.degenerate[:, kept],
        )

    def oriented(self) -> DoubleArray:
        """``values``, negated where a lower score is better."""
        signs = [1.0 if METRICS[name].higher_is_better else -1.0 for name in self.metrics]
        signed: DoubleArray = self.values * np.array(signs)
        return signed


_ARRAYS = ("values", "degenerate", "class_index", "predicted", "probability", "correct")


def read_scores(path: Path, explainers: Sequence[ExplainerSpec], metrics: Sequence[str]) -> Scores:
    """The scores in a complete table of a run, read a row group at a time.

    Raises:
        RunFolderError: the table is not one of these explainers and metrics.
    """
    parquet = require("pyarrow.parquet")
    rows_an_item = len(explainers) * len(metrics)
    values, degenerate = [], []
    an_item: dict[str, list[Any]] = {name: [] for name in _ITEM_COLUMNS}
    with path.open("rb") as stream, parquet.ParquetFile(stream) as file:
        for number in range(file.num_row_groups):
            part = file.read_row_group(number, columns=["metric", "method", "score", "degenerate", *_ITEM_COLUMNS])
            if not part.num_rows:
                continue
            if part.num_rows % rows_an_item:
                raise RunFolderError(f"{path} is damaged: {part.num_rows} rows in a part.", "Start over with --fresh.")
            _check_order(path, part, explainers, metrics)
            values.append(part.column("score").to_numpy())
            degenerate.append(part.column("degenerate").to_numpy()[:: len(metrics)])
            first = part.take(list(range(0, part.num_rows, rows_an_item)))
            for name, column in an_item.items():
                column += first.column(name).to_pylist()
    shape = len(an_item["item"]), len(explainers), len(metrics)
    return Scores(
        items=tuple(an_item["item"]),
        groups=tuple(an_item["group"]),
        explainers=tuple(explainers),
        metrics=tuple(metrics),
        values=np.concatenate(values or [np.empty(0)]).reshape(shape),
        degenerate=np.concatenate(degenerate or [np.empty(0)]).astype(np.bool_).reshape(shape[:2]),
        class_index=np.array(an_item["class_index"], np.int64),
        predicted=np.array(an_item["predicted"], np.int64),
        probability=np.array(an_item["probability"], np.float64),
        correct=np.array([np.nan if value is None else float(value) for value in an_item["correct"]]),
    )


def _check_order(path: Path, part: Any, explainers: Sequence[ExplainerSpec], metrics: Sequence[str]) -> None:
    """Rows come in the order of explainers and metrics, so that scores are a plain array."""
    head = part.slice(0, len(explainers) * len(metrics))
    wanted = [(spec.method, name) for spec in explainers for name in metrics]
    found = list(zip(head.column("method").to_pylist(), head.column("metric").to_pylist(), strict=True))
    if found and found != wanted:
        raise RunFolderError(f"{path} has other explainers or metrics.", "Start over with --fresh.")
