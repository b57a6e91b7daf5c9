"""What the arguments of ``export`` mean, and what they must not be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from camrt.bundle import SaliencyOutput
from camrt.errors import InvalidInputError
from camrt.exporter.map_graph import checked_saliency
from camrt.preprocess import Preprocessing


def nominal_size(
    preprocess: str | Preprocessing | Mapping[str, Any] | None, image_size: tuple[int, int] | None
) -> tuple[int, int] | None:
    """The (H, W) that the caller asks for; a preset's name asks for none."""
    given = None if image_size is None else _checked_size(image_size)
    if preprocess is None or isinstance(preprocess, str):
        return given
    if not isinstance(preprocess, Preprocessing | Mapping):
        raise InvalidInputError(
            f"preprocess is {preprocess!r}.", "Give a preset's name, a Preprocessing or its fields."
        )
    size = (preprocess if isinstance(preprocess, Preprocessing) else Preprocessing.from_dict(preprocess)).size
    if given not in (None, size):
        raise InvalidInputError(
            f"image_size is {image_size}, but the preprocessing makes images of {size}.", "Leave image_size out."
        )
    return size


def _checked_size(size: Sequence[int]) -> tuple[int, int]:
    """(H, W), two positive integers, of Python or of NumPy."""
    given = size if isinstance(size, tuple | list) else ()
    sides = [int(side) for side in given if isinstance(side, int | np.integer) and type(side) is not bool]
    if len(given) != 2 or len(sides) != 2 or min(sides) < 1:
        raise InvalidInputError(f"image_size is {size}.", "Give (H, W), two positive integers.")
    return sides[0], sides[1]


def checked_preprocessing(
    given: str | Preprocessing | Mapping[str, Any] | None, input_shape: tuple[int, int, int]
) -> Preprocessing | None:
    """The Preprocessing that was asked for in one of its three forms."""
    if given is None:
        return None
    if input_shape[0] != 3:
        raise InvalidInputError(
            f"The model takes images of {input_shape[0]} channels; preprocessing makes three.",
            "Leave preprocess out, and explain tensors.",
        )
    if isinstance(given, str):
        return Preprocessing.preset(given, input_shape[1:])
    return given if isinstance(given, Preprocessing) else Preprocessing.from_dict(given)


def check_class_names(names: Sequence[str] | None, num_classes: int) -> None:
    """Refuses names that are not one string a class."""
    if names is None:
        return
    if isinstance(names, str) or not isinstance(names, Sequence | np.ndarray):
        raise InvalidInputError(
            f"class_names is a {type(names).__name__}.", "Give a list of strings, in the order of the logits."
        )
    wrong = [name for name in names if not isinstance(name, str) or not _is_utf8(name)]
    if wrong:
        raise InvalidInputError(
            f"The class name {wrong[0]!r} is no text.", "Give strings, one a class, in the order of the logits."
        )
    if len(names) != num_classes:
        raise InvalidInputError(
            f"{len(names)} class names for a model of {num_classes} classes.",
            "Give one name a class, in the order of the logits.",
        )


def _is_utf8(name: str) -> bool:
    """Whether a manifest can hold ``name``; half a surrogate pair it cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_emit(emit: str, base_method: str | None, fusion: str | None, order: str | None) -> SaliencyOutput | None:
    """What ``emit`` and the three names ask for."""
    if emit == "map":
        return checked_saliency(base_method, fusion, order)
    if emit != "gradients":
        raise InvalidInputError(f"emit is {emit!r}.", 'Choose "gradients" or "map".')
    if (base_method, fusion, order) != (None, None, None):
        raise InvalidInputError(
            "base_method, fusion and order are those of the map in the graph, and there is none.",
            'Add emit="map", or give them to Explainer.explain.',
        )
    return None
