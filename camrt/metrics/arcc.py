"""One number out of several: ARCC and ADCC."""

from __future__ import annotations

import numpy as np

from camrt.metrics.coherency import coherency
from camrt.metrics.complexity import complexity
from camrt.metrics.confidence import average_drop
from camrt.metrics.measurement import Measurement
from camrt.metrics.road import road
from camrt.types import DoubleArray

_EPSILON = 1e-8


def arcc(measurement: Measurement) -> DoubleArray:
    """3 / (1/coherency + 1/(1 - complexity) + 1/clip(2 road, 0, 1)), each term + 1e-8 (arXiv 2605.14641), (N,).

    The harmonic mean: close to 0 as soon as one term is, so a map scores nothing that covers everything, or whose most
    relevant pixels matter no more than its least relevant ones (road <= 0).
    """
    terms = np.stack(
        [
            measurement.once(coherency),
            1 - measurement.once(complexity),
            np.clip(2 * measurement.once(road), 0, 1),
        ]
    )
    score: DoubleArray = 3 / (1 / (terms + _EPSILON)).sum(axis=0)
    return score


def adcc(measurement: Measurement) -> DoubleArray:
    """3 / (1/coherency + 1/(1 - complexity) + 1/(1 - average_drop)) (arXiv 2104.10252), (N,).

    0 where a term is 0; NaN where the average drop is.
    """
    terms = np.stack(
        [
            measurement.once(coherency),
            1 - measurement.once(complexity),
            1 - measurement.once(average_drop),
        ]
    )
    positive = np.where(terms > 0, terms, 1)
    score = np.where((terms <= 0).any(axis=0), 0, 3 / (1 / positive).sum(axis=0))
    return np.where(np.isnan(terms).any(axis=0), np.nan, score)
