"""What callers write, as messages."""

from __future__ import annotations

import operator
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, SupportsIndex, TypeAlias, TypedDict, cast

import numpy as np
from PIL import Image

from camrt.errors import CamrtError, ClassIndexError, ImageError, InvalidInputError
from camrt.preprocess import Encoded, ImageLike, load_image
from camrt.types import AnyArray, BoolArray, FloatArray, IntArray
from camrt.v1 import explainer_pb2 as pb

Classes: TypeAlias = "int | str | Sequence[int | str] | IntArray | None"
AnyImage: TypeAlias = "ImageLike | FloatArray"
OutputSize: TypeAlias = "str | tuple[int, int]"
Precision: TypeAlias = Literal["uint8", "float16", "float32"]

ENCODINGS = {
    "uint8": pb.MAP_ENCODING_UINT8,
    "float16": pb.MAP_ENCODING_FLOAT16,
    "float32": pb.MAP_ENCODING_FLOAT32,
}
_FLOATS = {np.dtype(np.float32): pb.DATA_TYPE_FLOAT32, np.dtype(np.float16): pb.DATA_TYPE_FLOAT16}
_SPACES = {"original": pb.OUTPUT_SPACE_ORIGINAL, "input": pb.OUTPUT_SPACE_INPUT}
_EVALUATE_OPTIONS = (
    "class_indices",
    "method",
    "base_method",
    "fusion",
    "target_layers",
    "channels",
    "seed",
    "model",
    "version",
)


class ExplainOptions(TypedDict, total=False):
    """Arguments of explain; what is left out is the server's default.

    Attributes:
        class_indices: a class index, a class name, -r for the class with the r-th highest logit, or several of them.
            Default: the predicted class.
        top_k: explains the k most probable classes; not together with class_indices.
        method, base_method, fusion: as in Explainer.explain.
        target_layers: as in Explainer.explain.
        channels: scorecam and ablationcam: most channels of a layer that are tried; default the server's limit.
        output_size: "original" (the default for images), "input" (for tensors), or (H, W) of what the model sees.
        precision: how maps travel: "uint8" (the default), "float16" or "float32".
        return_probabilities: fetches the probabilities of all classes.
        return_layer_maps: fetches the map of every layer.
        return_arcc: measures ARCC of every map; slow.
        seed: of ARCC.
        model, version: of the server's models; default the only one, the newest.
    """

    class_indices: Classes
    top_k: int | None
    method: str
    base_method: str
    fusion: str
    target_layers: str | Sequence[str] | None
    channels: int
    output_size: OutputSize | None
    precision: Precision
    return_probabilities: bool
    return_layer_maps: bool
    return_arcc: bool
    seed: int
    model: str
    version: str


def explain_message(image: AnyImage, options: ExplainOptions) -> pb.ExplainRequest:
    """A request of Explain.

    Raises:
        ImageError: the image cannot be read, or is no image.
        InvalidInputError, ClassIndexError: options that cannot be sent.
    """
    with _checked(options, ExplainOptions.__annotations__):
        request = pb.ExplainRequest(
            model=pb.ModelReference(name=options.get("model", ""), version=options.get("version", "")),
            image=_image_message(image),
            options=_method_message(options),
            output=_output_message(options.get("output_size"), options.get("precision", "uint8")),
            return_probabilities=options.get("return_probabilities", False),
            return_layer_maps=options.get("return_layer_maps", False),
            return_arcc=options.get("return_arcc", False),
            seed=options.get("seed", 0),
        )
        classes, top_k = options.get("class_indices"), options.get("top_k")
        if classes is not None and top_k is not None:
            raise ClassIndexError("top_k and class_indices exclude each other.", "Give one of them.")
        if top_k is not None:
            request.top_k = top_k
        if classes is not None:
            _select(request.selection, classes)
        return request


def evaluate_message(
    image: AnyImage,
    metrics: Sequence[str],
    saliency_map: FloatArray | None,
    object_mask: BoolArray | None,
    options: ExplainOptions,
) -> pb.EvaluateRequest:
    """A request of Evaluate.

    Raises:
        ImageError: the image cannot be read, or is no image.
        InvalidInputError, ClassIndexError: options that cannot be sent, or are not those of Evaluate.
    """
    with _checked(options, _EVALUATE_OPTIONS):
        if isinstance(metrics, str) or not metrics:
            raise InvalidInputError(f"Metrics are {metrics!r}.", "Give a list of names, at least one.")
        request = pb.EvaluateRequest(
            model=pb.ModelReference(name=options.get("model", ""), version=options.get("version", "")),
            image=_image_message(image),
            options=_method_message(options),
            metrics=metrics,
            seed=options.get("seed", 0),
            saliency_map=None if saliency_map is None else _map_message(saliency_map),
            object_mask=None if object_mask is None else _mask_message(object_mask),
        )
        item = options.get("class_indices")
        if isinstance(item, str):
            request.class_name = item
        elif item is not None:
            request.class_index = _index(item)
        return request


@contextmanager
def _checked(options: ExplainOptions, known: Collection[str]) -> Iterator[None]:
    """Around the making of a message: refuses unknown options, and values that a message cannot hold.

    Raises:
        InvalidInputError: one of these.
    """
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InvalidInputError(f"Unknown option {', '.join(unknown)}.", f"The options are {', '.join(known)}.")
    try:
        yield
    except CamrtError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInputError(f"An option cannot be sent: {error}.", "See ExplainOptions.") from error


def _method_message(options: ExplainOptions) -> pb.ExplanationOptions:
    """The part of the options that says how maps are made."""
    return pb.ExplanationOptions(
        method=options.get("method", ""),
        base_method=options.get("base_method", ""),
        fusion=options.get("fusion", ""),
        target_layers=_layers(options.get("target_layers")),
        channels=options.get("channels", 0),
    )


def _layers(given: str | Sequence[str] | None) -> list[str]:
    if given is None:
        return []
    layers = [given] if isinstance(given, str) else list(given)
    if not layers:
        raise InvalidInputError("target_layers is empty.", "Name some layers, or leave it out.")
    return layers


def _image_message(image: AnyImage) -> pb.Image:
    """An image as it travels: files and bytes as they are, pixels and tensors as arrays.

    Raises:
        ImageError: the file cannot be read, or the array is no image.
    """
    if isinstance(image, Encoded):
        return pb.Image(encoded=bytes(image))
    if isinstance(image, str | os.PathLike):
        try:
            return pb.Image(encoded=Path(image).read_bytes())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"Cannot read {image}: {reason}.", "Check the path.") from error
    if isinstance(image, np.ndarray) and image.dtype.newbyteorder("=") in _FLOATS:
        return pb.Image(input=_tensor_message(image, _FLOATS[image.dtype.newbyteorder("=")]))
    if not isinstance(image, np.ndarray | Image.Image):
        raise ImageError(f"The image is a {type(image).__name__}.", "Give a path, bytes, a PIL image or an array.")
    pixels = np.asarray(load_image(cast(ImageLike, image)))
    return pb.Image(pixels=_tensor_message(pixels, pb.DATA_TYPE_UINT8))


def _map_message(saliency_map: FloatArray) -> pb.Tensor:
    """A saliency map (H, W)."""
    return _tensor_message(np.asarray(saliency_map, np.float32), pb.DATA_TYPE_FLOAT32)


def _mask_message(object_mask: BoolArray) -> pb.Tensor:
    """An object mask (H, W)."""
    return _tensor_message(np.asarray(object_mask).astype(bool).astype(np.uint8), pb.DATA_TYPE_UINT8)


def _tensor_message(array: AnyArray, data_type: pb.DataType) -> pb.Tensor:
    little_endian = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return pb.Tensor(data_type=data_type, shape=array.shape, data=little_endian.tobytes())


def _output_message(size: OutputSize | None, precision: str) -> pb.OutputOptions:
    if precision not in ENCODINGS:
        raise InvalidInputError(f"precision is {precision!r}.", f"Choose one of {', '.join(ENCODINGS)}.")
    output = pb.OutputOptions(encoding=ENCODINGS[precision])
    if isinstance(size, str):
        if size not in _SPACES:
            raise InvalidInputError(f"output_size is {size!r}.", "Give 'original', 'input', or (H, W).")
        output.space = _SPACES[size]
    elif size is not None:
        output.space = pb.OUTPUT_SPACE_GIVEN
        output.output_height, output.output_width = size
    return output


def _select(selection: pb.ClassSelection, classes: Classes) -> None:
    """Writes the classes; the message keeps indices and names apart, so they are not mixed."""
    items = [classes] if isinstance(classes, str) or not isinstance(classes, Iterable) else list(classes)
    names = [item for item in items if isinstance(item, str)]
    indices = [_index(item) for item in items if not isinstance(item, str)]
    if (names and indices) or not items:
        raise ClassIndexError(f"The classes are {items!r}.", "Give indices or names, at least one, and not both.")
    selection.names.extend(names)
    selection.indices.extend(indices)


def _index(item: object) -> int:
    """A class index or rank; no number is rounded to one."""
    try:
        return operator.index(cast(SupportsIndex, item))
    except TypeError as error:
        raise ClassIndexError(f"{item!r} is no class.", "Give one index, one name, or -r for a rank.") from error
