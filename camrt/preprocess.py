"""From an image file to the model's input tensor, and the affine that takes a map back to the original pixels."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from camrt.errors import ImageError, InvalidInputError
from camrt.types import AnyArray, ByteArray, FloatArray

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | ByteArray"
Resize: TypeAlias = Literal["squash", "crop", "letterbox"]
Interpolation: TypeAlias = Literal["bilinear", "bicubic"]
ChannelOrder: TypeAlias = Literal["RGB", "BGR"]

DEFAULT_MAX_PIXELS = 100_000_000
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

_MIN_SIDE = 2
_MAX_INPUT_SIDE = 16384
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_SIGNATURES = (
    (0, b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (0, b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (8, b"WEBP", WebPImagePlugin.WebPImageFile),
)
_DECODER_ERRORS = (
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

    Args:
        image: a path, the bytes of a file, a PIL image, or a uint8 array (H, W), (H, W, 3) RGB or (H, W, 4) RGBA.
        max_pixels: larger images are refused; of a file, before any pixel is decoded.

    Raises:
        ImageError: the file is missing, truncated or not an image; the array has another shape or dtype; a side is
            under two pixels; or there are more than max_pixels pixels.
    """
    if isinstance(image, np.ndarray):
        return _to_rgb(_from_array(image, max_pixels), "the array")
    if isinstance(image, Image.Image):
        _check_size(image.size, "the image", max_pixels)
        return _load_rgb(image, "the image")
    if isinstance(image, bytes):
        return _decode(io.BytesIO(image), "the image", max_pixels)
    path = Path(image)
    try:
        with path.open("rb") as stream:
            return _decode(stream, str(path), max_pixels)
    except OSError as error:
        raise ImageError(f"Cannot read {path}: {error.strerror or error}.", "Check the path.") from error


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an RGB image becomes the model's input.

    The image is resized to ``size``, and value v of a channel becomes (v * scale - mean) / std, v in 0..255.

    Attributes:
        size: (H, W) of the input tensor.
        resize: squash (aspect ratio not kept), crop (shorter side to resize_to, then the centre), or letterbox (the
            whole image inside, centred on pad_value).
        resize_to: length of the shorter side before the crop, at least max(size); only with crop.
        interpolation: Pillow's filter, which is antialiased as torchvision's on PIL images.
        scale: factor on the 8-bit values.
        mean, std: one value a channel, in channel_order.
        channel_order: order of the tensor's channels.
        pad_value: 0..255, colour of the letterbox bars before normalisation.

    Raises:
        InvalidInputError: a field has a wrong type or value.
    """

    size: tuple[int, int]
    resize: Resize = "squash"
    resize_to: int | None = None
    interpolation: Interpolation = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_order: ChannelOrder = "RGB"
    pad_value: int = 114

    def __post_init__(self) -> None:
        _require(
            _is_tuple(self.size, int, 2) and all(1 <= side <= _MAX_INPUT_SIDE for side in self.size),
            f"size is {self.size!r}",
            f"Give (H, W), two integers in 1..{_MAX_INPUT_SIDE}.",
        )
        for name, choices in (("resize", Resize), ("interpolation", Interpolation), ("channel_order", ChannelOrder)):
            value = getattr(self, name)
            allowed = get_args(choices)
            _require(value in allowed, f"{name} is {value!r}", f"Choose one of {', '.join(allowed)}.")
        if self.resize == "crop":
            _require(
                _is_number(self.resize_to, int) and max(self.size) <= (self.resize_to or 0) <= _MAX_INPUT_SIDE,
                f"resize_to is {self.resize_to!r} for a crop of size {self.size}",
                f"Give an integer in {max(self.size)}..{_MAX_INPUT_SIDE}.",
            )
        else:
            _require(
                self.resize_to is None, f"resize_to is {self.resize_to!r} without a crop", "Leave it out, or use crop."
            )
        for name in ("mean", "std"):
            value = getattr(self, name)
            _require(_is_tuple(value, (int, float), 3), f"{name} is {value!r}", "Give three finite numbers.")
        _require(all(self.std), f"std is {self.std!r}", "It divides: give three numbers other than zero.")
        _require(_is_number(self.scale, (int, float)), f"scale is {self.scale!r}", "Give a finite number.")
        _require(
            _is_number(self.pad_value, int) and 0 <= self.pad_value <= 255,
            f"pad_value is {self.pad_value!r}",
            "Give an integer in 0..255.",
        )

    @classmethod
    def preset(cls, name: str, size: int | tuple[int, int] = 224) -> Preprocessing:
        """The preset called ``name`` (a key of PRESETS) for an input of ``size``: one side of a square, or (H, W).

        Raises:
            InvalidInputError: no such preset, or a wrong size.
        """
        if name not in PRESETS:
            raise InvalidInputError(f"Unknown preprocessing preset {name!r}.", f"Choose one of {', '.join(PRESETS)}.")
        return PRESETS[name]((size, size) if isinstance(size, int) else size)

    def to_dict(self) -> dict[str, Any]:
        """The fields, of types that JSON has."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """The inverse of to_dict; fields left out have their defaults.

        Raises:
            InvalidInputError: a field is unknown or has a wrong value, or size is missing.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [str(key) for key in fields if key not in known]
        _require(not unknown, f"unknown field {', '.join(unknown)}", f"The fields are {', '.join(known)}.")
        _require("size" in fields, "size is missing", "Give (H, W).")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        return cls(**values)

    def view(self, image: ImageLike) -> tuple[Image.Image, FloatArray]:
        """The image as the model sees it, before normalisation, and where each of its pixels went.

        Args:
            image: whatever load_image takes.

        Returns:
            An RGB image of H x W pixels; and the affine, float32 (2, 3), that takes (x, y, 1) in pixels of the upright
            original image to (x, y) in that H x W, pixel centres at half-integers in both. It is the ``matrix`` with
            which KernelBackend.warp_affine brings an (H, W) map back to the original's size.

        Raises:
            ImageError: as load_image; or the image is so elongated that it cannot be cropped.
        """
        rgb = load_image(image)
        if self.resize == "crop":
            return self._crop(rgb)
        return self._letterbox(rgb) if self.resize == "letterbox" else self._squash(rgb)

    def apply(self, image: ImageLike) -> tuple[FloatArray, FloatArray]:
        """The input tensor of one image, float32 (3, H, W), and the affine of ``view``.

        Raises:
            ImageError: as view.
        """
        resized, affine = self.view(image)
        pixels = np.asarray(resized)
        if self.channel_order == "BGR":
            pixels = pixels[..., ::-1]
        levels = np.arange(256) * float(self.scale)
        tensor = np.empty((3, *self.size), np.float32)
        for channel in range(3):
            table = ((levels - self.mean[channel]) / self.std[channel]).astype(np.float32)
            np.take(table, pixels[..., channel], out=tensor[channel])
        return tensor, affine

    def _squash(self, image: Image.Image) -> tuple[Image.Image, FloatArray]:
        height, width = self.size
        resized = image.resize((width, height), _FILTERS[self.interpolation])
        return resized, _affine(image.size, resized.size, (0, 0))

    def _crop(self, image: Image.Image) -> tuple[Image.Image, FloatArray]:
        height, width = self.size
        short = self.resize_to or max(self.size)
        long = short * max(image.size) // min(image.size)
        if short * long > DEFAULT_MAX_PIXELS:
            raise ImageError(
                f"An image of {image.width} x {image.height} pixels is too elongated to be resized to a shorter side "
                f"of {short} and cropped.",
                "Cut the image first, or export the model with the resize mode squash or letterbox.",
            )
        resized_size = (short, long) if image.width < image.height else (long, short)
        resized = image.resize(resized_size, _FILTERS[self.interpolation])
        left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
        return resized.crop((left, top, left + width, top + height)), _affine(image.size, resized_size, (-left, -top))

    def _letterbox(self, image: Image.Image) -> tuple[Image.Image, FloatArray]:
        height, width = self.size
        ratio = min(width / image.width, height / image.height)
        resized_size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
        left, top = (width - resized_size[0]) // 2, (height - resized_size[1]) // 2
        canvas = Image.new("RGB", (width, height), (self.pad_value,) * 3)
        canvas.paste(image.resize(resized_size, _FILTERS[self.interpolation]), (left, top))
        return canvas, _affine(image.size, resized_size, (left, top))


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PRESETS: dict[str, Callable[[tuple[int, int]], Preprocessing]] = {
    "imagenet": lambda size: Preprocessing(
        size, "crop", round(max(size) * 256 / 224), mean=_IMAGENET_MEAN, std=_IMAGENET_STD
    ),
    "imagenet-squash": lambda size: Preprocessing(size, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    "unit": lambda size: Preprocessing(size),
    "symmetric": lambda size: Preprocessing(size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "raw": lambda size: Preprocessing(size, scale=1.0),
}


def _affine(original: tuple[int, int], resized: tuple[int, int], offset: tuple[int, int]) -> FloatArray:
    return np.array(
        [[resized[0] / original[0], 0, offset[0]], [0, resized[1] / original[1], offset[1]]],
        np.float32,
    )


def _decode(stream: BinaryIO, source: str, max_pixels: int) -> Image.Image:
    """Decodes with the one decoder that the signature names, so that no other code of Pillow sees hostile bytes."""
    head = stream.read(12)
    stream.seek(0)
    decoder = next((cls for at, magic, cls in _SIGNATURES if head[at : at + len(magic)] == magic), None)
    if decoder is None:
        raise ImageError(f"{source} is not a JPEG, PNG or WebP image.", "Convert it to one of these formats.")
    try:
        image = decoder(stream)
    except _DECODER_ERRORS as error:
        raise _damaged(source, error) from error
    _check_size(image.size, source, max_pixels)
    return _load_rgb(image, source)


def _load_rgb(image: Image.Image, source: str) -> Image.Image:
    try:
        image.load()
    except _DECODER_ERRORS as error:
        raise _damaged(source, error) from error
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except _DECODER_ERRORS:
        orientation = None
    rgb = _to_rgb(image, source)
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _to_rgb(image: Image.Image, source: str) -> Image.Image:
    mode = image.mode
    if mode == "F":
        raise ImageError(f"{source} has floating-point pixels.", "Convert it to 8-bit RGB first.")
    if mode.startswith("I"):
        image = Image.fromarray(_upper_byte(np.asarray(image), source))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, (255, 255, 255))
        image.paste(rgba, mask=rgba.getchannel("A"))
    rgb = image.convert("RGB")
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


def _is_number(value: object, kind: type | tuple[type, ...]) -> bool:
    return (
        isinstance(value, (int, float))
        and isinstance(value, kind)
        and not isinstance(value, bool)
        and abs(value) < math.inf
    )


def _is_tuple(value: object, kind: type | tuple[type, ...], length: int) -> bool:
    return isinstance(value, tuple) and len(value) == length and all(_is_number(item, kind) for item in value)


def _require(condition: bool, problem: str, next_step: str) -> None:
    if not condition:
        raise InvalidInputError(f"Preprocessing: {problem}.", next_step)
