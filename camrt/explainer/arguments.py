"""What callers may pass to an Explainer, checked."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sequence
from typing import Final, SupportsIndex, TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from camrt.bundle import Manifest
from camrt.errors import ImageError, InvalidInputError
from camrt.preprocess import DEFAULT_MAX_PIXELS, Encoded, ImageLike, Preprocessing
from camrt.types import AnyArray, FloatArray

Scalar = TypeVar("Scalar", bound=np.generic)

MAX_OUTPUT_SIDE: Final = 16384
"""Longest side of a saliency map that callers may ask for, as of a model's input: the working memory of a fusion grows
with the sides of its output, not with their product."""


def as_list(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """One image as a list of one."""
    if isinstance(images, str | Encoded | os.PathLike | np.ndarray | Image.Image):
        return [images]
    if not isinstance(images, Iterable):
        raise ImageError(f"Images are {type(images).__name__}.", "Give paths, bytes, PIL images or uint8 arrays.")
    return list(images)


def checked_size(size: object) -> tuple[int, int]:
    """``size`` if it is an (H, W) that a saliency map can have."""
    sides = tuple(size) if isinstance(size, tuple | list) else ()
    if len(sides) != 2 or not all(isinstance(side, int | np.integer) and side > 0 for side in sides):
        raise InvalidInputError(f"output_size is {size!r}.", "Give (H, W); for images also 'original' or 'input'.")
    if max(sides) > MAX_OUTPUT_SIDE or int(sides[0]) * int(sides[1]) > DEFAULT_MAX_PIXELS:
        raise InvalidInputError(
            f"output_size is {size!r}.",
            f"At most {MAX_OUTPUT_SIDE} pixels a side and {DEFAULT_MAX_PIXELS} together are allowed.",
        )
    return int(sides[0]), int(sides[1])


def whole_number(value: object, name: str) -> int:
    """``value`` if it is an integer; no number is rounded to one."""
    try:
        return operator.index(cast(SupportsIndex, value))
    except TypeError as error:
        raise InvalidInputError(f"{name} is {value!r}.", "Give an integer.") from error


def image_numbers(images: int, explanations: int) -> Sequence[int]:
    """The image that each explanation belongs to: its own, or the only one."""
    return range(images) if images == explanations else [0] * explanations


def checked_tensor(inputs: AnyArray) -> FloatArray:
    """``inputs`` if it is a float32 array of finite numbers."""
    if not isinstance(inputs, np.ndarray) or inputs.dtype != np.float32:
        kind = getattr(inputs, "dtype", type(inputs).__name__)
        raise InvalidInputError(f"Inputs are {kind}, not a float32 array.", "Convert them with .astype(np.float32).")
    if inputs.ndim != 4:
        raise InvalidInputError(f"Inputs have the shape {inputs.shape}.", "Give (N, C, H, W); add the batch axis.")
    if not np.isfinite(inputs).all():
        bad = np.argwhere(~np.isfinite(inputs))[0].tolist()
        raise InvalidInputError(f"Inputs hold {inputs[tuple(bad)]} at {bad}.", "Check the preprocessing.")
    return np.ascontiguousarray(inputs)


def one_an_item(array: npt.NDArray[Scalar], count: int, name: str) -> npt.NDArray[Scalar]:
    """``array`` with one entry an item: its own, or the only one shared by all ``count`` (without a copy).

    Raises:
        InvalidInputError: no array, or another number of entries.
    """
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise InvalidInputError(f"The {name} are a {type(array).__name__}.", "Give an array, one entry a map.")
    if len(array) == count:
        return array
    if len(array) != 1:
        raise InvalidInputError(f"{len(array)} {name} for {count} maps.", "Give one a map, or a single one for all.")
    return np.broadcast_to(array, (count, *array.shape[1:]))


def chosen_preprocessing(given: str | Preprocessing | None, manifest: Manifest) -> Preprocessing | None:
    """What the caller asks for, else what the manifest says.

    Raises:
        InvalidInputError: what the caller asks for does not make the tensors that the bundle takes.
    """
    if given is None:
        return None if manifest.preprocessing is None else Preprocessing.from_dict(manifest.preprocessing)
    channels, *size = manifest.input_shape
    if channels != 3:
        raise InvalidInputError(
            f"The bundle takes images of {channels} channels; preprocessing makes three.",
            "Leave preprocess out, and explain tensors.",
        )
    if not isinstance(given, Preprocessing):
        return Preprocessing.preset(given, (size[0], size[1]))
    if list(given.size) != size:
        raise InvalidInputError(
            f"The preprocessing makes images of {given.size}; the bundle takes {tuple(size)}.",
            f"Give a Preprocessing of size={tuple(size)}.",
        )
    return given
