"""How an image becomes the model's input, and the affine that takes a map back to the original pixels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image

from camrt.errors import ImageError, InvalidInputError
from camrt.preprocess.decoding import DEFAULT_MAX_PIXELS, ImageLike, load_image
from camrt.types import FloatArray

Resize: TypeAlias = Literal["squash", "crop", "letterbox"]
Interpolation: TypeAlias = Literal["bilinear", "bicubic"]
ChannelOrder: TypeAlias = Literal["RGB", "BGR"]

_MAX_INPUT_SIDE = 16384
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


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
