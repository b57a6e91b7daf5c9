"""Colours in 8-bit RGB, drawn from a :class:`Stream` and compared with integer arithmetic only."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from camrt.datasets._stream import Stream
from camrt.types import BoolArray, ByteArray

Colour: TypeAlias = tuple[int, int, int]

MIN_CONTRAST = 45
_VISIBLE_FRACTION = 0.95
_CANDIDATES = 24


def from_hsv(hue: float, saturation: float, value: float) -> Colour:
    """The colour of a hue in turns, a saturation and a value in [0, 1]."""

    def channel(offset: int) -> int:
        position = hue * 6 + offset
        position -= 6 * math.floor(position / 6)
        return int(255 * value * (1 - saturation * max(0.0, min(position, 4 - position, 1.0))))

    return channel(5), channel(3), channel(1)


def palette(stream: Stream, count: int) -> list[Colour]:
    """``count`` colours that go together: neighbouring hues around one or two opposite ones, of varied brightness."""
    base = stream.unit()
    opposite = 0.5 if stream.chance(0.3) else 0.0
    brightness = [stream.uniform(0.12, 0.55), stream.uniform(0.5, 0.98)]
    return [
        from_hsv(
            base + opposite * (k % 2) + stream.uniform(-0.09, 0.09),
            stream.uniform(0.1, 0.75),
            min(1.0, max(0.05, brightness[k % 2] + stream.uniform(-0.12, 0.12))),
        )
        for k in range(count)
    ]


def accent(stream: Stream) -> Colour:
    """A colour of any hue for a thing that stands on the background, the object and its distractors alike."""
    return from_hsv(stream.unit(), stream.uniform(0.0, 1.0), stream.uniform(0.1, 1.0))


def contrast(colour: Colour, pixels: ByteArray) -> npt.NDArray[np.int32]:
    """How well a colour stands out from each pixel, 0 to 255: 0.7 x luma difference + 0.3 x largest channel difference.

    Args:
        colour: 8-bit RGB.
        pixels: (..., 3) uint8.

    Returns:
        (...) int32.
    """
    red, green, blue = (pixels[..., k].astype(np.int32) - colour[k] for k in range(3))
    luma = np.abs(299 * red + 587 * green + 114 * blue) // 1000
    largest = np.maximum(np.maximum(np.abs(red), np.abs(green)), np.abs(blue))
    ratio: npt.NDArray[np.int32] = (7 * luma + 3 * largest) // 10
    return ratio


def visible_accent(stream: Stream, surroundings: ByteArray) -> Colour:
    """An accent that a person can see against its surroundings.

    The first of the drawn candidates with a contrast of at least ``MIN_CONTRAST`` to 95 % of the pixels wins; if none
    has it, the one with the largest share does.

    Args:
        stream: source of the candidates.
        surroundings: (n, 3) uint8, the background under and around the thing to be coloured.
    """
    best, best_share = (0, 0, 0), -1.0
    for _ in range(_CANDIDATES):
        candidate = accent(stream)
        clear: BoolArray = contrast(candidate, surroundings) >= MIN_CONTRAST
        share = int(np.count_nonzero(clear)) / clear.size
        if share >= _VISIBLE_FRACTION:
            return candidate
        if share > best_share:
            best, best_share = candidate, share
    return best
