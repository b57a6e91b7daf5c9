"""Exact, unsmoothed shape tests on pixel centres.

Only ``+ - * /``, comparisons and square roots are used, which IEEE 754 rounds identically everywhere; sines and
cosines, which differ between mathematics libraries, come from a fixed polynomial.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from camrt.types import BoolArray

Coordinates: TypeAlias = npt.NDArray[np.float64]
Window: TypeAlias = tuple[slice, slice]
ShapeTest: TypeAlias = Callable[[Coordinates, Coordinates], BoolArray]

_HALF_PI = 1.5707963267948966
_HALF_SQRT3 = 0.8660254037844386
_SINE_TERMS = (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800)
_COSINE_TERMS = (1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800)


def _polynomial(terms: tuple[float, ...], x: float) -> float:
    value = 0.0
    for term in reversed(terms):
        value = value * x + term
    return value


def direction(turn: float) -> tuple[float, float]:
    """(cos, sin) of ``turn`` full turns, within 1e-6; bit-for-bit the same on every machine."""
    quarters = math.floor(turn * 4)
    angle = (turn * 4 - quarters) * _HALF_PI
    cosine, sine = _polynomial(_COSINE_TERMS, angle * angle), angle * _polynomial(_SINE_TERMS, angle * angle)
    return ((cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine))[quarters % 4]


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a shape lies: centre in pixels (pixel (0, 0) has its centre at (0.5, 0.5)), rotation in full turns."""

    x: float
    y: float
    turn: float


def stamp(size: int, pose: Pose, radius: float, test: ShapeTest) -> tuple[Window, BoolArray]:
    """Tests the pixel centres within ``radius`` of a pose.

    Args:
        size: side of the square image, px.
        pose: origin and rotation of the frame (u, v) in which ``test`` works.
        radius: half the side of the window, px; the shape must lie inside.
        test: maps u and v, each (h, w) in px, to the pixels of the shape.

    Returns:
        The window (rows, columns) of the image and the (h, w) bool pixels of the shape in it.
    """
    rows, columns = (slice(max(0, math.floor(c - radius)), min(size, math.ceil(c + radius))) for c in (pose.y, pose.x))
    cosine, sine = direction(pose.turn)
    dy = (np.arange(rows.start, rows.stop, dtype=np.float64) + 0.5 - pose.y)[:, None]
    dx = (np.arange(columns.start, columns.stop, dtype=np.float64) + 0.5 - pose.x)[None, :]
    return (rows, columns), test(cosine * dx + sine * dy, cosine * dy - sine * dx)


def disc_gauge(u: Coordinates, v: Coordinates) -> Coordinates:
    """Distance from the centre: the discs of radius r are the points with gauge <= r."""
    return np.sqrt(u * u + v * v)


def square_gauge(u: Coordinates, v: Coordinates) -> Coordinates:
    """Largest distance along an axis: the squares of half-side r are the points with gauge <= r."""
    return np.maximum(np.abs(u), np.abs(v))


def triangle_gauge(u: Coordinates, v: Coordinates) -> Coordinates:
    """Largest distance along a side's normal: the regular triangles of inradius r are the points with gauge <= r."""
    return np.maximum(v, _HALF_SQRT3 * np.abs(u) - 0.5 * v)
