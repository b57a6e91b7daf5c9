"""One row of a bundle's check, and what its numbers are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from camrt.types import AnyArray


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One thing that was checked.

    Attributes:
        name: what was checked.
        passed: None where it could not be checked; ``detail`` says why.
        detail: what was seen.
        value: what was measured, or None where the check is no measurement.
        tolerance: the largest value that passes.
    """

    name: str
    passed: bool | None
    detail: str
    value: float | None = None
    tolerance: float | None = None


def strict_json(document: Any) -> Any:
    """Dicts and lists with None in place of numbers that JSON does not have, NaN and infinity."""
    if isinstance(document, dict):
        return {key: strict_json(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [strict_json(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document


def all_finite(*arrays: AnyArray) -> bool:
    """Whether no number of any array is NaN or infinite."""
    return all(bool(np.isfinite(array).all()) for array in arrays)


def rms(array: AnyArray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def difference(actual: AnyArray, expected: AnyArray) -> float:
    """max |actual - expected| / max |expected|; infinite where shapes differ or a value is not finite."""
    if actual.shape != expected.shape or not all_finite(actual, expected):
        return float("inf")
    scale = float(np.abs(expected).max(initial=0)) or 1.0
    worst = float(np.abs(actual - expected).max(initial=0)) / scale
    return worst if np.isfinite(worst) else float("inf")
