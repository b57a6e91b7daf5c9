"""How the model's confidence changes when it sees only what the map shows (arXiv 1710.11063, 2104.10252).

y is the value of the class on the image x, y_masked that on x * m.
"""

from __future__ import annotations

import numpy as np

from camrt.metrics.measurement import Measurement, masked_target_values, target_values
from camrt.types import BoolArray, DoubleArray


def average_drop(measurement: Measurement) -> DoubleArray:
    """max(0, (y - y_masked) / y), (N,).

    NaN where y <= 0, since a share of nothing (or of a negative logit) says nothing, and where a value is not finite.
    """
    before, after = measurement.once(target_values), measurement.once(masked_target_values)
    known = _finite(before, after) & (before > 0)
    drops = np.full(len(before), np.nan)
    drops[known] = np.maximum(0, before[known] - after[known]) / before[known]
    return drops


def increase_in_confidence(measurement: Measurement) -> DoubleArray:
    """1 if y_masked > y, else 0, (N,). NaN where a value is not finite."""
    before, after = measurement.once(target_values), measurement.once(masked_target_values)
    return np.where(_finite(before, after), after > before, np.nan)


def _finite(before: DoubleArray, after: DoubleArray) -> BoolArray:
    finite: BoolArray = np.isfinite(before) & np.isfinite(after)
    return finite
