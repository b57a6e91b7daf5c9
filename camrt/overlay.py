"""Colour maps, and the picture of a saliency map on its image."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.polynomial.polynomial import polyval
from PIL import Image

from camrt.errors import InvalidInputError
from camrt.types import AnyArray, ByteArray, FloatArray

_Polynomials: TypeAlias = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]

# Minimax fits, red, green, blue over [0, 1], constant term first; at most 7 of 255 levels off the named tables.
_POLYNOMIALS: dict[str, _Polynomials] = {
    "viridis": (
        (0.2610, 1.0593, -14.0808, 73.7338, -210.5627, 315.8423, -228.1455, 62.8799),
        (0.0036, 1.4995, -0.8769, -1.1564, 4.8757, -4.3885, 0.2378, 0.7101),
        (0.3242, 2.0595, -10.1750, 41.5485, -117.3742, 191.8373, -162.7445, 54.6645),
    ),
    "inferno": (
        (0.0045, -0.3189, 19.8032, -105.9990, 332.3592, -628.0047, 700.8998, -427.6598, 109.9013),
        (-0.0075, 1.1017, -9.2605, 29.4143, 5.5861, -190.3388, 382.3741, -309.0379, 91.1750),
        (0.0281, -0.3972, 54.0459, -396.7846, 1302.4227, -2288.3580, 2187.6526, -1055.1510, 197.1723),
    ),
    "turbo": (
        (0.2142, -2.2487, 76.2538, -658.0844, 2300.2235, -3494.4392, 1371.7497, 2272.6231, -2748.6243, 882.8362),
        (0.0661, 3.7935, -20.7860, 167.1046, -686.0096, 1531.6477, -2000.7197, 1492.7937, -566.1712, 78.2911),
        (0.2106, 9.7273, -55.9659, 281.5132, -1165.7271, 2633.6685, -2845.4091, 1010.7751, 434.5043, -303.3079),
    ),
}

COLORMAPS = ("turbo", "jet", "viridis", "inferno", "gray")
DEFAULT_COLORMAP = "turbo"

_BAND_PIXELS = 1 << 20  # of rows that are worked on together: an image may have a hundred million

# At and above this value the overlay has its whole opacity; below it the image shows through more and more.
_OPAQUE_FROM = 0.5


@cache
def colormap_table(name: str) -> ByteArray:
    """The colours of the values 0, 1/255, ..., 1: uint8 (256, 3), RGB, read-only.

    gray: (x, x, x). jet: channel c is clip(1.5 - abs(4 x - c), 0, 1) with c = 3, 2, 1. The others: polynomials.

    Raises:
        InvalidInputError: no such colour map.
    """
    x = np.linspace(0.0, 1.0, 256)
    channels: list[AnyArray]
    if name == "gray":
        channels = [x, x, x]
    elif name == "jet":
        channels = [1.5 - np.abs(4 * x - peak) for peak in (3, 2, 1)]
    elif name in _POLYNOMIALS:
        channels = [polyval(x, coefficients) for coefficients in _POLYNOMIALS[name]]
    else:
        raise InvalidInputError(f"Unknown colour map {name!r}.", f"Choose one of {', '.join(COLORMAPS)}.")
    table: ByteArray = np.rint(255 * np.clip(np.stack(channels, axis=1), 0, 1)).astype(np.uint8)
    table.flags.writeable = False
    return table


def colorize(saliency_map: FloatArray, colormap: str = DEFAULT_COLORMAP) -> ByteArray:
    """The colours of a map in [0, 1]: (H, W) to uint8 (H, W, 3), RGB; values outside [0, 1] count as 0 or 1.

    Raises:
        InvalidInputError: the map is not (H, W), is empty or not finite, or there is no such colour map.
    """
    return colormap_table(colormap)[levels_of(saliency_map)]


def overlay(
    image: Image.Image, saliency_map: FloatArray, colormap: str = DEFAULT_COLORMAP, opacity: float = 0.6
) -> Image.Image:
    """The coloured map over the image.

    Pixel = image * (1 - a) + colour(m) * a, with a = opacity * s(m / 0.5) and the smooth step s(t) = 3 t^2 - 2 t^3 on
    [0, 1]: where the map is low the image stays as it is, from m = 0.5 the colours have the whole opacity.

    Args:
        image: RGB, any size.
        saliency_map: (H, W) in [0, 1]; resized bilinearly where the image has another size.
        colormap: one of COLORMAPS.
        opacity: 0 (the image) to 1.

    Returns:
        An RGB image of the image's size.

    Raises:
        InvalidInputError: as colorize; or opacity is outside [0, 1].
    """
    if not 0 <= opacity <= 1:
        raise InvalidInputError(f"An overlay opacity of {opacity}.", "Give a number in 0..1.")
    levels = levels_of(resize_map(saliency_map, image.size))
    t = np.clip(np.arange(256) / 255 / _OPAQUE_FROM, 0, 1)
    alpha = np.rint(255 * opacity * t * t * (3 - 2 * t)).astype(np.uint8)
    table = colormap_table(colormap)
    picture = Image.new("RGB", image.size)
    for rows in _bands(levels):
        band = levels[rows]
        box = (0, rows.start, image.width, rows.stop)
        colours = Image.fromarray(table[band])
        picture.paste(Image.composite(colours, image.crop(box).convert("RGB"), Image.fromarray(alpha[band])), box)
    return picture


def resize_map(saliency_map: FloatArray, size: tuple[int, int]) -> FloatArray:
    """A map of another size, bilinear (antialiased where it shrinks): (h, w) to (H, W) with size = (W, H)."""
    _check(saliency_map)
    if saliency_map.shape == (size[1], size[0]):
        return saliency_map
    values = np.ascontiguousarray(saliency_map, np.float32)
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def levels_of(saliency_map: FloatArray) -> ByteArray:
    """A map (H, W) in [0, 1] as uint8, 255 is 1; values outside [0, 1] count as 0 or 1.

    Raises:
        InvalidInputError: the map is not (H, W), is empty or not finite.
    """
    _check(saliency_map)
    levels = np.empty(saliency_map.shape, np.uint8)
    for rows in _bands(levels):
        levels[rows] = np.rint(255 * np.clip(saliency_map[rows], 0, 1))
    return levels


def _bands(levels: ByteArray) -> Iterator[slice]:
    """Rows to work on together."""
    height, width = levels.shape
    rows = max(1, _BAND_PIXELS // width)
    return (slice(start, min(start + rows, height)) for start in range(0, height, rows))


def _check(saliency_map: FloatArray) -> None:
    if saliency_map.ndim != 2 or not saliency_map.size:
        raise InvalidInputError(f"A saliency map of shape {saliency_map.shape}.", "Give one map, (H, W).")
    if not np.isfinite(saliency_map).all():
        raise InvalidInputError("The saliency map has values that are not finite.", "Explain the image again.")
