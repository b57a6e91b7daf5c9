"""What an explanation is: the saliency map, the maps it was made from, and what they explain."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from camrt.errors import InvalidInputError
from camrt.overlay import DEFAULT_COLORMAP, overlay
from camrt.preprocess import ImageLike, load_image
from camrt.types import FloatArray

_SCHEMA_VERSION = 1
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)
_SCALARS = ("class_index", "class_name", "probability", "logit", "method", "base_method", "fusion")
_LATER_SCALARS = ("order", "in_input_pixels")  # not in files that earlier versions saved


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Explanation:
    """One explained class of one image.

    Attributes:
        saliency_map: (H, W) float32 in [0, 1].
        layer_maps: layer name to its map, (h, w) float32 in [0, 1], coarse to fine.
        class_index: the explained class, 0..K-1.
        class_name: its name, or None where the bundle has no names.
        probability: the model's probability of that class.
        logit: the value before softmax or sigmoid that was differentiated.
        method: the CAM method.
        base_method: what a refined map was made from; None for a plain method.
        fusion: how the layers were combined; None where there was one.
        degenerate: names of layers whose map was constant or not finite and so says nothing; empty = fine.
        timings: stage to seconds.
        order: how the layers were brought to one size.
        in_input_pixels: whether saliency_map is known to be in the pixels of the model's input; False after it was
            brought to the original image, or to another size.
    """

    saliency_map: FloatArray
    layer_maps: Mapping[str, FloatArray]
    class_index: int
    class_name: str | None
    probability: float
    logit: float
    method: str
    base_method: str | None = None
    fusion: str | None = None
    degenerate: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    order: str = "normalize_twice"
    in_input_pixels: bool = False

    def __repr__(self) -> str:
        name = "" if self.class_name is None else f" {self.class_name!r}"
        height, width = self.saliency_map.shape
        doubt = f", degenerate={self.degenerate}" if self.degenerate else ""
        what = f"class {self.class_index}{name}, p={self.probability:.3f}, {self.method} {height}x{width}{doubt}"
        return f"Explanation({what})"

    def overlay(self, image: ImageLike, colormap: str = DEFAULT_COLORMAP, opacity: float = 0.6) -> Image.Image:
        """The map in colours over ``image`` (a path, file bytes, PIL image or uint8 array), at the image's size.

        Raises:
            ImageError: the image cannot be read.
            InvalidInputError: unknown colour map, or opacity outside [0, 1].
        """
        return overlay(load_image(image), self.saliency_map, colormap, opacity)

    def to_dict(self) -> dict[str, Any]:
        """A summary of types that JSON has: everything but the arrays, which are told by their shapes (h, w)."""
        return {
            **{name: getattr(self, name) for name in _SCALARS + _LATER_SCALARS},
            "size": list(self.saliency_map.shape),
            "layers": {name: list(layer_map.shape) for name, layer_map in self.layer_maps.items()},
            "degenerate": list(self.degenerate),
            "timings": dict(self.timings),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the explanation in the format that the suffix names.

        .npz: everything, for Explanation.load. .npy: the saliency map, float32. .png: the saliency map as a 16-bit
        grayscale image (65535 is 1); the coloured picture is ``overlay(image).save(path)``.

        Raises:
            InvalidInputError: another suffix, or the file cannot be written.
        """
        path = Path(path)
        writers = {".npz": self._save_npz, ".npy": self._save_npy, ".png": self._save_png}
        if path.suffix.lower() not in writers:
            raise InvalidInputError(
                f"Cannot save an explanation as {path.suffix or path.name!r}.", f"Choose one of {', '.join(writers)}."
            )
        try:
            writers[path.suffix.lower()](path)
        except OSError as error:
            raise InvalidInputError(f"Cannot write {path}: {error.strerror or error}.", "Check the folder.") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Explanation:
        """Reads what save wrote with the suffix .npz.

        Raises:
            InvalidInputError: the file is missing, damaged, or not such a file.
        """
        try:
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                fields = json.loads(arrays["summary"].item())
                version = fields["schema_version"]
                if version != _SCHEMA_VERSION:
                    raise ValueError(f"schema version {version}, this camrt reads {_SCHEMA_VERSION}")
                return cls(
                    saliency_map=arrays["saliency_map"],
                    layer_maps={name: arrays[f"layer_map_{i}"] for i, name in enumerate(fields["layers"])},
                    degenerate=tuple(fields["degenerate"]),
                    timings=fields["timings"],
                    **{name: fields[name] for name in _SCALARS},
                    **{name: fields[name] for name in _LATER_SCALARS if name in fields},
                )
        except _READ_ERRORS as error:
            raise InvalidInputError(
                f"{path} is not a saved explanation, or is damaged ({error}).", "Give a .npz file that save() wrote."
            ) from error

    def _save_npz(self, path: Path) -> None:
        arrays: dict[str, Any] = {f"layer_map_{i}": layer_map for i, layer_map in enumerate(self.layer_maps.values())}
        summary = json.dumps({"schema_version": _SCHEMA_VERSION, **self.to_dict()}, ensure_ascii=False)
        with path.open("wb") as stream:
            np.savez_compressed(stream, saliency_map=self.saliency_map, summary=np.array(summary), **arrays)

    def _save_npy(self, path: Path) -> None:
        with path.open("wb") as stream:
            np.save(stream, self.saliency_map)

    def _save_png(self, path: Path) -> None:
        levels = np.rint(65535 * np.clip(self.saliency_map, 0, 1)).astype(np.uint16)
        Image.fromarray(levels).save(path, "PNG")
