"""Image files and arrays to upright 8-bit RGB, with limits that hostile files cannot pass."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from camrt.errors import ImageError
from camrt.types import AnyArray, ByteArray

Encoded: TypeAlias = bytes | bytearray | memoryview
ImageLike: TypeAlias = "str | os.PathLike[str] | Encoded | Image.Image | ByteArray"

DEFAULT_MAX_PIXELS = 100_000_000
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

_MIN_SIDE = 2
_SIGNATURES = (
    (0, b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (0, b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (8, b"WEBP", WebPImagePlugin.WebPImageFile),
)
DECODER_ERRORS = (  # what Pillow raises for damaged files
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_ORIENTATION_TAG = 0x0112
_filter_lock = threading.Lock()
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(image: ImageLike, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decodes an image to upright 8-bit RGB without metadata.

    JPEG, PNG and WebP are decoded, nothing else; of an animation, the first frame. The EXIF orientation is applied (an
    unreadable EXIF block counts as none). Transparency is composited over white. 16-bit samples keep their upper eight
    bits; palette, grayscale, bilevel and CMYK images are converted.

    The mode "I" of PIL images has 32 bits. Its values count as 16-bit samples, as Pillow reads them from PNG files.
    Where they would all come out black, since they lie in 0..255, the image is refused: they may be 8-bit samples.

    Args:
        image: a path, the bytes of a file, a PIL image, or a uint8 array (H, W), (H, W, 3) RGB or (H, W, 4) RGBA.
        max_pixels: larger images are refused; of a file, before any pixel is decoded.

    Raises:
        ImageError: the file is missing, truncated or not an image; the array has another shape or dtype; a side is
            under two pixels; there are more than max_pixels pixels; or a PIL image has a mode that is not converted.
    """
    if isinstance(image, np.ndarray):
        return _to_rgb(_from_array(image, max_pixels), "the array")
    if isinstance(image, Image.Image):
        _check_size(image.size, "the image", max_pixels)
        return _load_rgb(image, "the image")
    if isinstance(image, Encoded):
        return _decode(io.BytesIO(image), "the image", max_pixels)
    if not isinstance(image, str | os.PathLike):
        raise ImageError(f"An image is a {type(image).__name__}.", "Give paths, bytes, PIL images or uint8 arrays.")
    path = Path(image)
    try:
        with path.open("rb") as stream:
            return _decode(stream, str(path), max_pixels)
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"Cannot read {path}: {reason}.", "Check the path.") from error


def _decode(stream: BinaryIO, source: str, max_pixels: int) -> Image.Image:
    """Decodes with the one decoder that the signature names, so that no other code of Pillow sees hostile bytes."""
    head = stream.read(12)
    stream.seek(0)
    decoder = next((cls for at, magic, cls in _SIGNATURES if head[at : at + len(magic)] == magic), None)
    if decoder is None:
        raise ImageError(f"{source} is not a JPEG, PNG or WebP image.", "Convert it to one of these formats.")
    try:
        with _quiet():
            image = decoder(stream)
    except DECODER_ERRORS as error:
        raise _damaged(source, error) from error
    _check_size(image.size, source, max_pixels)
    return _load_rgb(image, source)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Pillow's warnings about damaged metadata to itself; the lock, because warning filters are process-wide."""
    with _filter_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _load_rgb(image: Image.Image, source: str) -> Image.Image:
    try:
        image.load()
    except DECODER_ERRORS as error:
        raise _damaged(source, error) from error
    try:
        with _quiet():
            orientation = image.getexif().get(_ORIENTATION_TAG)
    except DECODER_ERRORS:
        orientation = None
    rgb = _to_rgb(image, source)
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _to_rgb(image: Image.Image, source: str) -> Image.Image:
    mode = image.mode
    if mode == "F":
        raise ImageError(f"{source} has floating-point pixels.", "Convert it to 8-bit RGB first.")
    if mode.startswith("I"):
        samples = np.asarray(image)
        levels = _upper_byte(samples, source)
        if mode == "I" and image.format != "PNG" and samples.any() and not levels.any():
            raise ImageError(
                f"{source} has the mode I and values in 0..{samples.max()}: 8-bit samples, or very dark 16-bit ones.",
                'Convert it first: image.convert("L") for 8-bit samples, image.convert("I;16") for 16-bit ones.',
            )
        image = Image.fromarray(levels)
    try:
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.new("RGB", rgba.size, (255, 255, 255))
            image.paste(rgba, mask=rgba.getchannel("A"))
        rgb = image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"{source} has the mode {mode}: {error}.", "Convert it to 8-bit RGB first.") from error
    rgb.info = {}
    return rgb


def _upper_byte(samples: AnyArray, source: str) -> ByteArray:
    if samples.min() < 0 or samples.max() > 0xFFFF:
        raise ImageError(f"{source} has pixel values outside 0..65535.", "Convert it to 8-bit RGB first.")
    return (samples >> 8).astype(np.uint8)


def _from_array(array: AnyArray, max_pixels: int) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(
            f"An image array of shape {array.shape} and dtype {array.dtype}.",
            "Give uint8 of shape (H, W), (H, W, 3) or (H, W, 4).",
        )
    _check_size((array.shape[1], array.shape[0]), "the array", max_pixels)
    return Image.fromarray(np.ascontiguousarray(array))


def _check_size(size: tuple[int, int], source: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{source} has {width} x {height} = {width * height} pixels; at most {max_pixels} are allowed.",
            "Scale the image down first.",
        )
    if min(size) < _MIN_SIDE:
        raise ImageError(
            f"{source} has {width} x {height} pixels: there is no position to explain.",
            f"Give an image of at least {_MIN_SIDE} x {_MIN_SIDE} pixels.",
        )


def _damaged(source: str, error: BaseException) -> ImageError:
    return ImageError(f"{source} is damaged or truncated ({error}).", "Check the file, or save the image again.")
