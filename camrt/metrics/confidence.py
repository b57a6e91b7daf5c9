"""How the model's confidence changes when it sees only what the map shows (arXiv 1710.11063, 2104.10252).

y is the value of the class on the image x, y_masked that on x * m.
"""

from __future__ import annotations

import numpy as np

from camrt.metrics.measurement import Measurement, masked_target_values, target_values
from camrt.types import DoubleArray


def average_drop(measurement: Measurement) -> DoubleArray:
    """max(0, (y - y_masked) / y), (N,). NaN where y <= 0: a share of nothing (or of a negative logit) says nothing."""
    before, after = measurement.once(target_values), measurement.once(masked_target_values)
    known = before > 0
    drops = np.where(after < before, before - after, 0) / np.where(known, before, 1)
    return np.where(known, drops, np.nan)


def increase_in_confidence(measurement: Measurement) -> DoubleArray:
    """1 if y_masked > y, else 0, (N,)."""
    return (measurement.once(masked_target_values) > measurement.once(target_values)).astype(np.float64)
