"""How much of the image a map covers."""

from __future__ import annotations

from camrt.metrics.measurement import Measurement
from camrt.types import DoubleArray


def complexity(measurement: Measurement) -> DoubleArray:
    """mean |m| (arXiv 2104.10252), (N,). 0 for an empty map, 1 for a map of ones."""
    return measurement.backend.mean_absolute(measurement.maps)
