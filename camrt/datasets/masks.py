"""Object masks from PNG files."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import PngImagePlugin

from camrt.errors import ImageError
from camrt.preprocess.decoding import DECODER_ERRORS
from camrt.types import BoolArray

MASK_SUFFIX = ".png"


def load_mask(path: Path, size: tuple[int, int]) -> BoolArray:
    """Reads the object mask of an image of ``size`` (width, height): true where a pixel is not zero.

    Palette images count by index, colour images by any channel; transparency does not matter. The size is compared
    before any pixel is decoded.

    Returns:
        (height, width).

    Raises:
        ImageError: no readable PNG, of another size than the image, or without any object pixel.
    """
    try:
        if not path.is_file() and path.exists():
            raise ImageError("The mask cannot be read: it is not a file.", "Save it as PNG.")
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = PngImagePlugin.PngImageFile(stream)
            if picture.size != size:
                raise ImageError(
                    f"The mask has {picture.width} x {picture.height} pixels, its image {size[0]} x {size[1]}.",
                    "Save it at the size of the image.",
                )
            values = np.asarray(picture)
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(f"The mask cannot be read: {error.strerror or error}.", "Save it as PNG.") from error
    except DECODER_ERRORS as error:
        raise ImageError(f"The mask is no PNG, or damaged ({error}).", "Save it as PNG.") from error
    if picture.mode in ("LA", "RGBA"):
        values = values[..., :-1]
    mask: BoolArray = (values != 0).any(axis=2) if values.ndim == 3 else values != 0
    if not mask.any():
        raise ImageError("The mask has no object pixel.", "Mark the object with pixels that are not zero.")
    return mask
