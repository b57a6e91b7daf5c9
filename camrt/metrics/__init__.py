"""How good a saliency map is: ARCC, the metrics it is built from and compared with, and those that know the object."""

from __future__ import annotations

from camrt.metrics.measurement import DEFAULT_BATCH_SIZE, MapFunction, Measurement, ScoreFunction
from camrt.metrics.registry import METRICS, Metric, check_metrics, get_metric, measure

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "METRICS",
    "MapFunction",
    "Measurement",
    "Metric",
    "ScoreFunction",
    "check_metrics",
    "get_metric",
    "measure",
]
