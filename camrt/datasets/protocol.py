"""What an evaluation needs of a data set: items that load themselves, and what is wrong with the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from camrt.errors import InvalidInputError
from camrt.json_values import storable
from camrt.preprocess import Preprocessing
from camrt.types import BoolArray, FloatArray


class DatasetError(InvalidInputError):
    """A data set has nothing to evaluate, or does not exist."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the data that could not be used as it was meant.

    Its texts are made such that every file holds them: see ``storable``.

    Attributes:
        kind: what is wrong, the same words for every such case, e.g. "unreadable image".
        name: the file or folder, relative to the data set.
        detail: the reason.
    """

    kind: str
    name: str
    detail: str = ""

    def __post_init__(self) -> None:
        for part in ("kind", "name", "detail"):
            object.__setattr__(self, part, storable(getattr(self, part)))


@dataclass(frozen=True, slots=True)
class Sample:
    """One loaded item.

    Attributes:
        image: upright RGB.
        object_mask: (height, width) of the image, true on the object; None where there is no usable mask.
        problem: why the mask is missing, where one was expected.
    """

    image: Image.Image
    object_mask: BoolArray | None = None
    problem: Problem | None = None


class DatasetItem(Protocol):
    """One image of a data set, not loaded yet."""

    @property
    def item_id(self) -> str:
        """Names the item within the data set; no two items share it; UTF-8 text."""
        ...

    @property
    def class_index(self) -> int | None:
        """The true class, or None where nobody knows it."""
        ...

    @property
    def group(self) -> str:
        """What to compare apart, e.g. the object's size range; empty where there is nothing."""
        ...

    def load(self) -> Sample:
        """Reads the image; ImageError where it cannot be read."""
        ...


class Dataset(Protocol):
    """Items in a fixed order."""

    @property
    def name(self) -> str:
        """What the report calls it."""
        ...

    @property
    def items(self) -> Sequence[DatasetItem]:
        """In the order of evaluation."""
        ...

    @property
    def has_masks(self) -> bool:
        """Whether items have object masks."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes where the items, their classes or their files change."""
        ...

    @property
    def problems(self) -> Sequence[Problem]:
        """What is wrong already without loading anything."""
        ...


def to_input(sample: Sample, preprocessing: Preprocessing) -> tuple[FloatArray, BoolArray | None]:
    """The input tensor (3, H, W) of a sample, and its object mask in input pixels (H, W)."""
    tensor, affine = preprocessing.apply(sample.image)
    if sample.object_mask is None:
        return tensor, None
    return tensor, mask_in_view(sample.object_mask, affine, preprocessing.size)


def mask_in_view(object_mask: BoolArray, affine: FloatArray, size: tuple[int, int]) -> BoolArray:
    """The mask as the model sees it: nearest neighbour through the affine of Preprocessing.view.

    Args:
        object_mask: (height, width) of the original image.
        affine: (2, 3), takes (x, y, 1) of the original to the view, pixel centres at half-integers in both.
        size: (H, W) of the view.

    Returns:
        (H, W), each pixel what the original has where its centre lies; false outside the original.
    """
    scale_x, offset_x = float(affine[0, 0]), float(affine[0, 2])
    scale_y, offset_y = float(affine[1, 1]), float(affine[1, 2])
    columns = np.floor((np.arange(size[1]) + 0.5 - offset_x) / scale_x).astype(np.int64)
    rows = np.floor((np.arange(size[0]) + 0.5 - offset_y) / scale_y).astype(np.int64)
    height, width = object_mask.shape
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None, :]
    nearest = object_mask[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)[None, :]]
    seen: BoolArray = nearest & inside
    return seen
