"""One row of a bundle's check, and what its numbers are made of."""

from __future__ import annotations

from dataclasses import dataclass

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
