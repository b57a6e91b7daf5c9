"""Procedural clutter: texture, light, line work and distractor blobs, nothing of it one of the six classes.

Everything is laid out in fractions of the image side, so a scene is the same at every size. Line work never closes to a
polygon: the lines of a family run side by side and never over stripes, a picture has single strokes or blobs
but not both, and each of them stays inside a grid cell of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from camrt.datasets._colours import Colour, accent, palette
from camrt.datasets._geometry import Coordinates, Pose, ShapeTest, direction, square_gauge, stamp
from camrt.datasets._stream import Stream
from camrt.types import BoolArray, ByteArray, FloatArray

_BLOB_CELLS = 3
_STROKE_CELLS = 5


def background(stream: Stream, size: int) -> ByteArray:
    """One picture of clutter, (size, size, 3) uint8."""
    kind = stream.choice(_FIELDS)
    image = _texture(stream, size, kind)
    if kind is not _stripes and stream.chance(0.5):
        _draw_lines(stream, image)
    pieces = stream.unit()
    if pieces < 0.72:
        _draw_blobs(stream, image)
    elif pieces < 0.92:
        _draw_strokes(stream, image)
    return image


def _noise(stream: Stream, size: int, cells: int) -> FloatArray:
    """Smooth value noise in [0, 1), (size, size) float32: a random lattice, interpolated with weight t^2 (3 - 2 t)."""
    lattice = stream.lattice(cells + 1, cells + 1)
    position = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / size)
    node = np.minimum(position.astype(np.int64), cells - 1)
    t = position - node.astype(np.float32)
    weight = t * t * (3 - 2 * t)
    rows = lattice[:, node] + (lattice[:, node + 1] - lattice[:, node]) * weight
    noise: FloatArray = rows[node] + (rows[node + 1] - rows[node]) * weight[:, None]
    return noise


def _fractal_noise(stream: Stream, size: int, cells: int, octaves: int) -> FloatArray:
    """Noise of doubling frequency and halving amplitude, in [0, 1), (size, size) float32."""
    total = _noise(stream, size, cells)
    for octave in range(1, octaves):
        total += _noise(stream, size, cells << octave) * np.float32(0.5**octave)
    return total * np.float32(1 / (2 - 0.5 ** (octaves - 1)))


def _ramp(stream: Stream, size: int) -> FloatArray:
    """A linear ramp in a random direction, 0 at the image centre and of slope 1 a side, (size, size) float32."""
    cosine, sine = direction(stream.unit())
    along = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(1 / size) - np.float32(0.5)
    return along[None, :] * np.float32(cosine) + along[:, None] * np.float32(sine)


def _fraction(phase: FloatArray) -> FloatArray:
    return phase - np.floor(phase)


def _triangle_wave(phase: FloatArray) -> FloatArray:
    return np.abs(2 * _fraction(phase) - 1)


def _gradient(stream: Stream, size: int) -> FloatArray:
    return _ramp(stream, size) * np.float32(0.6) + _noise(stream, size, 3) * np.float32(0.3) + np.float32(0.35)


def _clouds(stream: Stream, size: int) -> FloatArray:
    return _fractal_noise(stream, size, 2 + stream.integer(5), 4) * np.float32(1.7) - np.float32(0.35)


def _marble(stream: Stream, size: int) -> FloatArray:
    warp = _fractal_noise(stream, size, 2 + stream.integer(3), 4) * np.float32(stream.uniform(1.0, 3.0))
    return _triangle_wave(_ramp(stream, size) * np.float32(stream.uniform(1.5, 6.0)) + warp)


def _strata(stream: Stream, size: int) -> FloatArray:
    steps = np.float32(4 + stream.integer(6))
    bent = _ramp(stream, size) + np.float32(0.5) + _fractal_noise(stream, size, 3, 3) * np.float32(0.35)
    return _fraction(np.floor(bent * steps) * np.float32(0.381966))


def _stripes(stream: Stream, size: int) -> FloatArray:
    bend = _noise(stream, size, 2) * np.float32(stream.uniform(0.0, 1.5))
    wave = _triangle_wave(_ramp(stream, size) * np.float32(stream.uniform(5.0, 18.0)) + bend)
    return (wave - np.float32(0.5)) * np.float32(stream.uniform(1.0, 4.0)) + np.float32(0.5)


def _grit(stream: Stream, size: int) -> FloatArray:
    coarse = _noise(stream, size, 4 + stream.integer(4)) * np.float32(0.5)
    return coarse + _noise(stream, size, 36 + stream.integer(40)) * np.float32(0.5)


_FIELDS = (_gradient, _clouds, _marble, _strata, _stripes, _grit)


def _texture(stream: Stream, size: int, kind: Callable[[Stream, int], FloatArray]) -> ByteArray:
    """A scalar field through a colour map, lit by a smooth light and roughened by a fine grit."""
    field = kind(stream, size)
    stops = np.array(palette(stream, 2 + stream.integer(3)), dtype=np.float32)
    position = np.arange(256, dtype=np.float32) * np.float32((len(stops) - 1) / 255)
    node = np.minimum(position.astype(np.int64), len(stops) - 2)
    colour_map = stops[node] + (stops[node + 1] - stops[node]) * (position - node.astype(np.float32))[:, None]
    light = _noise(stream, size, 2) * np.float32(stream.uniform(0.0, 0.6)) + np.float32(0.75)
    light += (_noise(stream, size, 56) - np.float32(0.5)) * np.float32(stream.uniform(0.0, 0.25))
    index = np.clip(field * 255, 0, 255).astype(np.uint8)
    lit = np.take(colour_map, index, axis=0) * light[:, :, None]
    np.minimum(lit, 255, out=lit)
    image: ByteArray = lit.astype(np.uint8)
    return image


def _blend(image: ByteArray, pixels: BoolArray, colour: Colour, opacity: int) -> None:
    """Mixes ``opacity`` / 256 of a colour into the chosen pixels, in place."""
    mixed = image[pixels].astype(np.int32) * (256 - opacity) + np.array(colour, dtype=np.int32) * opacity
    image[pixels] = (mixed >> 8).astype(np.uint8)


def _draw_lines(stream: Stream, image: ByteArray) -> None:
    """A family of thin lines that run side by side, straight or wavy."""
    size = len(image)
    count = stream.uniform(4.0, 16.0)
    bend = _noise(stream, size, 3) * np.float32(stream.choice((0.0, 0.5, 1.0)))
    phase = _ramp(stream, size) * np.float32(count) + bend
    pixels = _fraction(phase) < np.float32(count * stream.uniform(0.004, 0.010))
    _blend(image, pixels, accent(stream), 100 + stream.integer(120))


def _draw_strokes(stream: Stream, image: ByteArray) -> None:
    """Short straight strokes in some cells of a grid."""
    size = len(image)
    cell = size / _STROKE_CELLS
    colour = accent(stream)
    for place in range(_STROKE_CELLS * _STROKE_CELLS):
        row, column = divmod(place, _STROKE_CELLS)
        half_length, half_width = cell * stream.uniform(0.2, 0.45), size * stream.uniform(0.002, 0.006)
        turn, drawn = stream.unit(), stream.chance(0.45)
        if drawn:
            pose = Pose((column + 0.5) * cell, (row + 0.5) * cell, turn)
            _stamp_blob(image, pose, half_length + 1, _bar(half_length, half_width), colour, 220)


def _draw_blobs(stream: Stream, image: ByteArray) -> None:
    """One to five flat distractors, each in a cell of its own of a 3 x 3 grid."""
    size = len(image)
    cell = size / _BLOB_CELLS
    for place in stream.permutation(_BLOB_CELLS * _BLOB_CELLS)[: 1 + stream.integer(5)]:
        row, column = divmod(place, _BLOB_CELLS)
        radius = cell * stream.uniform(0.2, 0.46)
        slack = cell * 0.5 - radius
        pose = Pose(
            (column + 0.5) * cell + stream.uniform(-slack, slack),
            (row + 0.5) * cell + stream.uniform(-slack, slack),
            stream.unit(),
        )
        shape = stream.choice(_BLOBS)(stream, radius)
        _stamp_blob(image, pose, radius + 1, shape, accent(stream), 160 + stream.integer(97))


def _stamp_blob(image: ByteArray, pose: Pose, radius: float, test: ShapeTest, colour: Colour, opacity: int) -> None:
    window, pixels = stamp(len(image), pose, radius, test)
    _blend(image[window], pixels, colour, opacity)


def _bar(half_length: float, half_width: float) -> ShapeTest:
    return lambda u, v: (np.abs(u) <= half_length) & (np.abs(v) <= half_width)


def _random_bar(stream: Stream, radius: float) -> ShapeTest:
    return _bar(radius * 0.95, radius * stream.uniform(0.1, 0.28))


def _lens(stream: Stream, radius: float) -> ShapeTest:
    flatness = stream.uniform(2.4, 4.0)
    return lambda u, v: u * u + v * v * (flatness * flatness) <= radius * radius


def _cross(stream: Stream, radius: float) -> ShapeTest:
    half_width = radius * stream.uniform(0.12, 0.26)
    reach = radius * 0.95
    return lambda u, v: (square_gauge(u, v) <= reach) & (np.minimum(np.abs(u), np.abs(v)) <= half_width)


def _angle(stream: Stream, radius: float) -> ShapeTest:
    corner, thickness = radius * 0.62, radius * stream.uniform(0.28, 0.45)

    def test(u: Coordinates, v: Coordinates) -> BoolArray:
        inside = (np.abs(u) <= corner) & (np.abs(v) <= corner)
        return inside & ((u <= thickness - corner) | (v <= thickness - corner))

    return test


def _wave(stream: Stream, radius: float) -> ShapeTest:
    half_width, height = radius * stream.uniform(0.1, 0.18), stream.uniform(1.0, 1.9)

    def test(u: Coordinates, v: Coordinates) -> BoolArray:
        t = u * (1 / radius)
        return (np.abs(t) <= 0.92) & (np.abs(v - (height * radius) * t * (1 - t * t)) <= half_width)

    return test


def _crescent(stream: Stream, radius: float) -> ShapeTest:
    shift = radius * stream.uniform(0.5, 0.75)
    reach = radius * radius

    def test(u: Coordinates, v: Coordinates) -> BoolArray:
        return (u * u + v * v <= reach) & ((u - shift) * (u - shift) + v * v > reach)

    return test


_BLOBS = (_random_bar, _lens, _cross, _angle, _wave, _crescent)
