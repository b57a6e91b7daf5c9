"""Whether the map of what a map shows is that map."""

from __future__ import annotations

from camrt.metrics.measurement import Measurement, masked_inputs
from camrt.types import DoubleArray


def coherency(measurement: Measurement) -> DoubleArray:
    """(pearson(m, explain(x * m, k)) + 1) / 2 (arXiv 2104.10252), (N,).

    Everything is explained again: the same method and class on the masked image. The correlation with a constant map
    counts as 0, so where either map is constant the score is 0.5.
    """
    again = measurement.explain_again(lambda part: masked_inputs(measurement, part))
    return (measurement.backend.pearson(measurement.maps, again) + 1) / 2
