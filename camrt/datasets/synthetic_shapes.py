"""Synthetic Shapes: pictures of one shape on clutter, with exact ground truth for saliency maps.

The only thing that decides the class is the drawn shape, so a faithful saliency map should cover ``object_mask`` and
nothing else. This allows metrics that need ground truth (mass IoU, ROC-AUC) where photographs have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from camrt.datasets._backgrounds import background
from camrt.datasets._colours import Colour, visible_accent
from camrt.datasets._geometry import (
    Coordinates,
    Pose,
    Window,
    disc_gauge,
    square_gauge,
    stamp,
    triangle_gauge,
)
from camrt.datasets._stream import Stream
from camrt.errors import InvalidInputError
from camrt.types import BoolArray, ByteArray

SizeRange: TypeAlias = Literal["small", "medium", "large"]

SPLITS = ("train", "validation", "test")
CLASS_NAMES = ("disc", "square", "triangle", "disc outline", "square outline", "triangle outline")
SIZE_RANGES: dict[SizeRange, tuple[int, int]] = {"small": (20, 25), "medium": (40, 50), "large": (80, 100)}
"""Bounds of the object size in px of a 224 px picture; other sizes scale with the picture."""

REFERENCE_SIZE = 224
MIN_SIZE, MAX_SIZE = 64, 2048
OUTLINE_FRACTION = 0.2

_VERSION = "camrt synthetic shapes 1"
_MARGIN = 2 / REFERENCE_SIZE
_MAX_GRAIN = 12
_SURROUNDINGS = 6 / REFERENCE_SIZE
_RANGE_NAMES: tuple[SizeRange, ...] = ("small", "medium", "large")
_GAUGES = (disc_gauge, square_gauge, triangle_gauge)
_INRADIUS = (1 / 2, 1 / 2, 1 / 3)
_CIRCUMRADIUS = (1 / 2, 0.7071067811865476, 2 / 3)


class ItemIndexError(InvalidInputError, IndexError):
    """An item number is outside the data set."""


@dataclass(frozen=True, slots=True)
class SyntheticItem:
    """One picture with its ground truth.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        object_mask: (H, W) bool, exactly the drawn pixels: true where the shape's colour replaced the background. The
            hole of an outline is false.
        class_index: index into ``CLASS_NAMES``.
        class_name: ``CLASS_NAMES[class_index]``.
        size_range: which of ``SIZE_RANGES`` the object size was drawn from.
        object_size_px: diameter of the disc, side of the square or height of the triangle, px. Outlines are measured at
            their outer edge and are a fifth of it thick.
        center: (x, y) of the shape's centroid, px; pixel (0, 0) has its centre at (0.5, 0.5).
        rotation: in degrees, [0, 360), clockwise as seen.
        color: 8-bit RGB of the shape, before the picture's grain.
    """

    image: ByteArray
    object_mask: BoolArray
    class_index: int
    class_name: str
    size_range: SizeRange
    object_size_px: float
    center: tuple[float, float]
    rotation: float
    color: Colour


@dataclass(frozen=True, slots=True)
class _Object:
    class_index: int
    size_range: SizeRange
    size_px: float
    pose: Pose

    def draw(self, image_size: int) -> tuple[Window, BoolArray]:
        """The window around the shape and its pixels in it: those with inradius - thickness < gauge <= inradius."""
        kind, is_outline = self.class_index % 3, self.class_index >= 3
        inradius = self.size_px * _INRADIUS[kind]
        inner = inradius - self.size_px * OUTLINE_FRACTION

        def test(u: Coordinates, v: Coordinates) -> BoolArray:
            gauge = _GAUGES[kind](u, v)
            return (gauge <= inradius) & (gauge > inner) if is_outline else gauge <= inradius

        reach = self.size_px * _CIRCUMRADIUS[kind] + image_size * _SURROUNDINGS
        return stamp(image_size, self.pose, reach, test)


class SyntheticShapes:
    """A data set of any length whose item i is a pure function of (split, i) and the picture size.

    The same item has the same bits on every machine, in any order and in any process. At another picture size it is the
    same scene, rendered anew (the shape's colour, chosen for contrast with the rendered pixels, can differ). Of the 18
    items from a multiple of 18 on, each class has one in each size range.

    Args:
        split: "train", "validation" or "test"; they share no items.
        length: number of items, at least 1. A longer data set begins with the items of a shorter one.
        size: height and width of the pictures in px, 64 to 2048.

    Raises:
        InvalidInputError: an argument is outside these values.
    """

    class_names = CLASS_NAMES

    def __init__(self, split: str, length: int, size: int = REFERENCE_SIZE) -> None:
        if split not in SPLITS:
            raise InvalidInputError(f"Unknown split {split!r}.", f"Use one of: {', '.join(SPLITS)}.")
        self.split = split
        self.length = _checked_integer("length", length, 1, None)
        self.size = _checked_integer("size", size, MIN_SIZE, MAX_SIZE)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> SyntheticItem:
        return self.item(index)

    def __iter__(self) -> Iterator[SyntheticItem]:
        return map(self.item, range(self.length))

    def item(self, index: int) -> SyntheticItem:
        """Item ``index`` of the split.

        Raises:
            InvalidInputError: (also an ``IndexError``) the index is not an integer in [0, length).
        """
        index = self._checked_index(index)
        clutter = background(self._stream(index, "background"), self.size)
        grain = self._grain(index)
        drawn = self._place(index)
        window, pixels = drawn.draw(self.size)
        color = visible_accent(self._stream(index, "color"), clutter[window].reshape(-1, 3))
        mask = np.zeros((self.size, self.size), dtype=np.bool_)
        mask[window] = pixels
        clutter[mask] = color
        return SyntheticItem(
            image=_with_grain(clutter, grain),
            object_mask=mask,
            class_index=drawn.class_index,
            class_name=CLASS_NAMES[drawn.class_index],
            size_range=drawn.size_range,
            object_size_px=drawn.size_px,
            center=(drawn.pose.x, drawn.pose.y),
            rotation=drawn.pose.turn * 360,
            color=color,
        )

    def label(self, index: int) -> tuple[int, SizeRange]:
        """Class index and size range of item ``index``, without drawing it.

        Raises:
            InvalidInputError: (also an ``IndexError``) the index is not an integer in [0, length).
        """
        placed = self._place(self._checked_index(index))
        return placed.class_index, placed.size_range

    def background(self, index: int) -> ByteArray:
        """Item ``index`` without its shape: (H, W, 3) uint8, equal to the item's image outside the object mask.

        Raises:
            InvalidInputError: (also an ``IndexError``) the index is not an integer in [0, length).
        """
        index = self._checked_index(index)
        return _with_grain(background(self._stream(index, "background"), self.size), self._grain(index))

    def _stream(self, index: int, part: str) -> Stream:
        return Stream(_VERSION, self.split, part, index)

    def _checked_index(self, index: object) -> int:
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or not 0 <= index < self.length:
            raise ItemIndexError(
                f"{index!r} is not an item of this data set of {self.length} items.",
                f"Use an integer from 0 to {self.length - 1}.",
            )
        return int(index)

    def _grain(self, index: int) -> ByteArray:
        """(H, W) uint8 noise around 128, of an amplitude that differs from picture to picture."""
        stream = self._stream(index, "grain")
        amplitude = stream.integer(_MAX_GRAIN + 1)
        noise = stream.octets(self.size * self.size).reshape(self.size, self.size).astype(np.int32)
        return (128 + (((noise - 128) * amplitude) >> 7)).astype(np.uint8)

    def _place(self, index: int) -> _Object:
        combinations = len(CLASS_NAMES) * len(_RANGE_NAMES)
        block, position = divmod(index, combinations)
        which = self._stream(block, "order").permutation(combinations)[position]
        class_index, range_index = divmod(which, len(_RANGE_NAMES))
        size_range = _RANGE_NAMES[range_index]
        low, high = SIZE_RANGES[size_range]
        stream = self._stream(index, "object")
        relative_size = stream.uniform(low, high) / REFERENCE_SIZE
        border = relative_size * _CIRCUMRADIUS[class_index % 3] + _MARGIN
        x, y = (self.size * stream.uniform(border, 1 - border) for _ in range(2))
        return _Object(class_index, size_range, self.size * relative_size, Pose(x, y, stream.unit()))


def _checked_integer(name: str, value: object, low: int, high: int | None) -> int:
    bounds = f"at least {low}" if high is None else f"from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidInputError(f"{name} is {value!r}.", f"Use an integer {bounds}.")
    if value < low or (high is not None and value > high):
        raise InvalidInputError(f"{name} is {value}.", f"Use an integer {bounds}.")
    return int(value)


def _with_grain(clutter: ByteArray, grain: ByteArray) -> ByteArray:
    noisy = clutter.astype(np.int16) + (grain.astype(np.int16) - 128)[:, :, None]
    image: ByteArray = np.clip(noisy, 0, 255).astype(np.uint8)
    return image
