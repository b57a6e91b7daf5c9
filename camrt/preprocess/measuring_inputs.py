"""Inputs for measurements of a model: pictures of a folder, or random images where there are none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from camrt.errors import ImageError, InvalidInputError
from camrt.preprocess.decoding import IMAGE_SUFFIXES, load_image
from camrt.preprocess.preprocessing import Preprocessing
from camrt.types import FloatArray


def random_inputs(
    input_shape: tuple[int, int, int], preprocessing: Mapping[str, Any] | None, samples: int, rng: np.random.Generator
) -> FloatArray:
    """Random images, coarse blobs under fine noise, through a bundle's preprocessing: (samples, C, H, W) float32.

    White noise would look the same everywhere after a few strides and give near-constant maps. A model of other than
    three channels takes the grey image in each of them.
    """
    channels, height, width = input_shape
    how = Preprocessing((height, width)) if preprocessing is None else Preprocessing.from_dict(preprocessing)
    inputs = []
    for _ in range(samples):
        blobs = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        blobs = blobs.resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(blobs, np.float64) + rng.normal(0, 20, (height, width, 3))
        inputs.append(how.apply(np.clip(noisy, 0, 255).astype(np.uint8))[0])
    images = np.stack(inputs)
    return images if channels == 3 else np.repeat(images.mean(1, keepdims=True, dtype=np.float32), channels, 1)


def folder_inputs(
    folder: str | os.PathLike[str], preprocessing: Mapping[str, Any] | None, most: int | None = None
) -> FloatArray:
    """The pictures in a folder and its subfolders through a bundle's preprocessing: (N, 3, H, W) float32.

    Args:
        folder: searched for files with the suffixes of images; hidden files and folders are left out.
        preprocessing: the bundle's.
        most: no more than this many, spread evenly over the sorted paths.

    Raises:
        InvalidInputError: no preprocessing, no such folder, or no image in it.
        ImageError: an image cannot be read; the message names the file.
    """
    if preprocessing is None:
        raise InvalidInputError(
            f"Pictures of {folder} need preprocessing, and there is none.",
            "Export with preprocess=... (camrt export --preprocess), or give an array of inputs.",
        )
    root = Path(folder)
    paths = sorted(path for path in root.rglob("*") if _is_picture(path, root))
    if not paths:
        raise InvalidInputError(f"There is no image in {folder}.", f"Images end in {', '.join(IMAGE_SUFFIXES)}.")
    if most is not None and len(paths) > most:
        paths = [paths[index * len(paths) // most] for index in range(most)]
    how = Preprocessing.from_dict(preprocessing)
    return np.stack([_input_of(path, how) for path in paths])


def _is_picture(path: Path, root: Path) -> bool:
    """Whether a path under ``root`` is a file with the suffix of an image, and nothing on the way is hidden."""
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _input_of(path: Path, how: Preprocessing) -> FloatArray:
    try:
        return how.apply(load_image(path))[0]
    except InvalidInputError as error:
        reason = error.message if str(path) in error.message else f"{path}: {error.message}"
        raise ImageError(reason, f"{error.next_step} Or take the file out of the folder.".strip()) from error
