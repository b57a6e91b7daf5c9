"""From an image to the input tensor, and the affine that takes a map back to the original pixels."""

from __future__ import annotations

from camrt.preprocess.decoding import DEFAULT_MAX_PIXELS, IMAGE_SUFFIXES, Encoded, ImageLike, load_image
from camrt.preprocess.measuring_inputs import folder_inputs, random_inputs
from camrt.preprocess.preprocessing import PRESETS, Preprocessing

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "IMAGE_SUFFIXES",
    "PRESETS",
    "Encoded",
    "ImageLike",
    "Preprocessing",
    "folder_inputs",
    "load_image",
    "random_inputs",
]
