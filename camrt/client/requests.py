"""What callers write, as messages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict, cast

import numpy as np
from PIL import Image

from camrt.errors import CamrtError, ClassIndexError, ImageError, InvalidInputError
from camrt.preprocess import ImageLike, load_image
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
    known = ExplainOptions.__annotations__
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InvalidInputError(f"Unknown option {', '.join(unknown)}.", f"The options are {', '.join(known)}.")
    try:
        return _explain_message(image, options)
    except CamrtError:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"An option cannot be sent: {error}.", "See ExplainOptions.") from error


def _explain_message(image: AnyImage, options: ExplainOptions) -> pb.ExplainRequest:
    request = pb.ExplainRequest(
        model=pb.ModelReference(name=options.get("model", ""), version=options.get("version", "")),
        image=image_message(image),
        options=method_message(options),
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


def method_message(options: ExplainOptions) -> pb.ExplanationOptions:
    """The part of the options that says how maps are made."""
    layers = options.get("target_layers") or ()
    return pb.ExplanationOptions(
        method=options.get("method", ""),
        base_method=options.get("base_method", ""),
        fusion=options.get("fusion", ""),
        target_layers=[layers] if isinstance(layers, str) else layers,
        channels=options.get("channels", 0),
    )


def image_message(image: AnyImage) -> pb.Image:
    """An image as it travels: files and bytes as they are, pixels and tensors as arrays.

    Raises:
        ImageError: the file cannot be read, or the array is no image.
    """
    if isinstance(image, bytes):
        return pb.Image(encoded=image)
    if isinstance(image, str | os.PathLike):
        try:
            return pb.Image(encoded=Path(image).read_bytes())
        except OSError as error:
            raise ImageError(f"Cannot read {image}: {error.strerror or error}.", "Check the path.") from error
    if isinstance(image, np.ndarray) and image.dtype.newbyteorder("=") in _FLOATS:
        return pb.Image(input=_tensor_message(image, _FLOATS[image.dtype.newbyteorder("=")]))
    if not isinstance(image, np.ndarray | Image.Image):
        raise ImageError(f"The image is a {type(image).__name__}.", "Give a path, bytes, a PIL image or an array.")
    pixels = np.asarray(load_image(cast(ImageLike, image)))
    return pb.Image(pixels=_tensor_message(pixels, pb.DATA_TYPE_UINT8))


def map_message(saliency_map: FloatArray) -> pb.Tensor:
    """A saliency map (H, W)."""
    return _tensor_message(np.asarray(saliency_map, np.float32), pb.DATA_TYPE_FLOAT32)


def mask_message(object_mask: BoolArray) -> pb.Tensor:
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
    items = [classes] if isinstance(classes, int | str | np.integer) else list(classes or ())
    names = [item for item in items if isinstance(item, str)]
    indices = [int(item) for item in items if not isinstance(item, str)]
    if (names and indices) or not items:
        raise ClassIndexError(f"The classes are {items!r}.", "Give indices or names, at least one, and not both.")
    selection.names.extend(names)
    selection.indices.extend(indices)
