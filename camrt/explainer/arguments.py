"""What callers may pass to an Explainer, checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from camrt.bundle import Manifest
from camrt.errors import ImageError, InvalidInputError
from camrt.preprocess import DEFAULT_MAX_PIXELS, ImageLike, Preprocessing
from camrt.types import AnyArray, FloatArray

Scalar = TypeVar("Scalar", bound=np.generic)


def as_list(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """One image as a list of one."""
    if isinstance(images, str | bytes | os.PathLike | np.ndarray | Image.Image):
        return [images]
    if not isinstance(images, Iterable):
        raise ImageError(f"Images are {type(images).__name__}.", "Give paths, bytes, PIL images or uint8 arrays.")
    return list(images)


def checked_size(size: object) -> tuple[int, int]:
    """``size`` if it is an (H, W) that a saliency map can have."""
    sides = tuple(size) if isinstance(size, tuple | list) else ()
    if len(sides) != 2 or not all(isinstance(side, int | np.integer) and side > 0 for side in sides):
        raise InvalidInputError(f"output_size is {size!r}.", "Give (H, W); for images also 'original' or 'input'.")
    if int(sides[0]) * int(sides[1]) > DEFAULT_MAX_PIXELS:
        raise InvalidInputError(f"output_size is {size!r}.", f"At most {DEFAULT_MAX_PIXELS} pixels are allowed.")
    return int(sides[0]), int(sides[1])


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
    """What the caller asks for, else what the manifest says."""
    if isinstance(given, Preprocessing):
        return given
    if given is not None:
        return Preprocessing.preset(given, manifest.input_shape[1:])
    return None if manifest.preprocessing is None else Preprocessing.from_dict(manifest.preprocessing)
