"""Images and arrays of messages to tensors, and maps to bytes. Everything here is slow: it belongs into the pool."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from camrt.errors import ImageError, InvalidInputError, UnsupportedModelError
from camrt.explainer import Explainer
from camrt.explainer.arguments import MAX_OUTPUT_SIDE
from camrt.overlay import DEFAULT_COLORMAP, colormap_table, levels_of, overlay
from camrt.preprocess import Preprocessing, load_image
from camrt.types import AnyArray, BoolArray, FloatArray
from camrt.v1 import explainer_pb2 as pb

_DTYPES: dict[pb.DataType, np.dtype[Any]] = {
    pb.DATA_TYPE_UINT8: np.dtype("u1"),
    pb.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
}
_FLOATS = (pb.DATA_TYPE_FLOAT32, pb.DATA_TYPE_FLOAT16)
_MAX_AXES = 4
_DEFAULT_OPACITY = 0.6
_PNG_LEVEL = 3  # a map of 224 x 224 in half the time of the default 6, for 15 % more bytes
_JPEG_QUALITY = 90
_OVERLAYS = {pb.MAP_ENCODING_OVERLAY_PNG: "PNG", pb.MAP_ENCODING_OVERLAY_JPEG: "JPEG"}


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """An image as the model takes it.

    Attributes:
        tensor: (3, H, W) float32.
        affine: (2, 3) float32 that leads back to the pixels of the original image, see Preprocessing.view; None where a
            tensor was sent: its pixels are the original ones.
        original_size: (H, W) of the image as it was sent.
    """

    tensor: FloatArray
    affine: FloatArray | None
    original_size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Output:
    """How maps are sent, with nothing left open.

    Attributes:
        encoding: not UNSPECIFIED.
        space: not UNSPECIFIED.
        given_size: (H, W) with OUTPUT_SPACE_GIVEN.
        colormap: of overlays.
        opacity: of overlays.
    """

    encoding: pb.MapEncoding
    space: pb.OutputSpace
    given_size: tuple[int, int]
    colormap: str
    opacity: float

    @property
    def is_overlay(self) -> bool:
        """Whether the picture of the map over the image is sent, not the map."""
        return self.encoding in _OVERLAYS


def tensor_array(tensor: pb.Tensor, types: Sequence[pb.DataType], what: str) -> AnyArray:
    """The array of a message, read-only, without a copy.

    Args:
        tensor: the message.
        types: the element types that are allowed.
        what: its name for errors.

    Raises:
        InvalidInputError: another type, a shape with negative sides or too many axes, or another number of bytes.
    """
    names = " or ".join(pb.DataType.Name(kind).removeprefix("DATA_TYPE_") for kind in types)
    if tensor.data_type not in types:
        known = tensor.data_type in pb.DataType.values()
        told = pb.DataType.Name(tensor.data_type) if known else str(int(tensor.data_type))
        raise InvalidInputError(f"{what} has the data type {told}.", f"Send {names}.")
    shape, dtype = tuple(tensor.shape), _DTYPES[tensor.data_type]
    if not 1 <= len(shape) <= _MAX_AXES or min(shape) < 1:
        raise InvalidInputError(f"{what} has the shape {shape[:8]}.", "Send one to four axes, each at least 1 long.")
    wanted = dtype.itemsize
    for side in shape:
        wanted *= int(side)
    if wanted != len(tensor.data):
        raise InvalidInputError(
            f"{what} has {len(tensor.data)} bytes; {shape} of {dtype.name} are {wanted}.", "Send exactly its elements."
        )
    return np.frombuffer(tensor.data, dtype).reshape(shape)


def array_tensor(array: FloatArray) -> pb.Tensor:
    """A FLOAT32 message of an array."""
    return pb.Tensor(
        data_type=pb.DATA_TYPE_FLOAT32, shape=array.shape, data=np.ascontiguousarray(array, "<f4").tobytes()
    )


def decode(image: pb.Image, explainer: Explainer, max_pixels: int) -> Decoded:
    """What the model takes of an image that was sent.

    Args:
        image: the message.
        explainer: its preprocessing, and the shape of its input.
        max_pixels: larger images are refused, files before they are decoded.

    Raises:
        ImageError: no image, one that cannot be decoded, or one that is too large.
        InvalidInputError: a tensor of another shape or type, or that is not finite.
        UnsupportedModelError: the model takes tensors only.
    """
    if image.WhichOneof("source") == "input":
        tensor = input_tensor(image.input, explainer.manifest.input_shape)
        return Decoded(tensor, None, (tensor.shape[1], tensor.shape[2]))
    picture = _picture(image, max_pixels)
    tensor, affine = preprocessing_of(explainer).apply(picture)
    return Decoded(tensor, affine, (picture.height, picture.width))


def input_tensor(tensor: pb.Tensor, shape: tuple[int, ...]) -> FloatArray:
    """The model's input, float32 of ``shape``, from a message of that shape.

    Raises:
        InvalidInputError: another shape or type, or a value that is not finite.
    """
    array = tensor_array(tensor, _FLOATS, "The input")
    if array.shape != shape:
        raise InvalidInputError(f"The input has the shape {array.shape}; the model takes {shape}.", "Resize it.")
    values = array.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise InvalidInputError("The input has values that are not finite.", "Check the preprocessing.")
    return values


def preprocessing_of(explainer: Explainer) -> Preprocessing:
    """How images become tensors.

    Raises:
        UnsupportedModelError: nobody said.
    """
    if explainer.preprocessing is None:
        raise UnsupportedModelError(
            "The model does not say how images become tensors.",
            "Send its input as a tensor, or export the model with a preprocessing.",
        )
    return explainer.preprocessing


def resolve_output(options: pb.OutputOptions, image: pb.Image) -> Output:
    """How the maps of a request are sent, checked before anything runs.

    Raises:
        InvalidInputError: unknown enum values, a size that cannot be, an unknown colour map, an opacity outside [0, 1],
            or an overlay where no image was sent.
    """
    encoding = options.encoding or pb.MAP_ENCODING_UINT8
    is_tensor = image.WhichOneof("source") == "input"
    space = options.space or (pb.OUTPUT_SPACE_INPUT if is_tensor else pb.OUTPUT_SPACE_ORIGINAL)
    if encoding not in pb.MapEncoding.values() or space not in pb.OutputSpace.values():
        raise InvalidInputError(f"Unknown encoding {encoding} or output space {space}.", "See explainer.proto.")
    size = (options.output_height, options.output_width)
    if (space == pb.OUTPUT_SPACE_GIVEN) != (min(size) > 0):
        raise InvalidInputError(
            f"An output of {size[0]} x {size[1]} in {pb.OutputSpace.Name(space)}.",
            "With OUTPUT_SPACE_GIVEN set output_height and output_width to 1 or more, else leave them out.",
        )
    opacity = options.opacity if options.HasField("opacity") else _DEFAULT_OPACITY
    if not 0 <= opacity <= 1:
        raise InvalidInputError(f"An overlay opacity of {opacity}.", "Give a number in 0..1.")
    colormap = options.colormap or DEFAULT_COLORMAP
    colormap_table(colormap)
    if is_tensor and encoding in _OVERLAYS:
        raise InvalidInputError("An overlay needs the image, and a tensor was sent.", "Send the image, or ask for PNG.")
    return Output(encoding, space, size, colormap, opacity)


def output_size(output: Output, decoded: Decoded) -> tuple[int, int]:
    """(H, W) of the maps that are sent."""
    if output.space == pb.OUTPUT_SPACE_GIVEN:
        return output.given_size
    if output.space == pb.OUTPUT_SPACE_ORIGINAL:
        return decoded.original_size
    return decoded.tensor.shape[1], decoded.tensor.shape[2]


def check_output_size(
    output: Output, decoded: Decoded, maps: int, max_pixels: int, max_bytes: int, other_bytes: int = 0
) -> None:
    """Refuses maps that are too large to be made or sent, before anything runs.

    How many bytes a PNG or JPEG has is known when it is made: their pixels are limited, as those of every encoding.

    Args:
        output: how they are sent.
        decoded: the image.
        maps: how many.
        max_pixels: of all maps together.
        max_bytes: of the reply.
        other_bytes: that the reply has beside the maps, at least.

    Raises:
        InvalidInputError: more than that, or a side above MAX_OUTPUT_SIDE.
    """
    height, width = output_size(output, decoded)
    if max(height, width) > MAX_OUTPUT_SIDE:
        raise InvalidInputError(
            f"Maps of {height} x {width} are too long to be sent.",
            f"A side has at most {MAX_OUTPUT_SIDE} pixels: ask for OUTPUT_SPACE_INPUT, or for a size.",
        )
    bytes_a_pixel = {pb.MAP_ENCODING_UINT8: 1, pb.MAP_ENCODING_FLOAT16: 2, pb.MAP_ENCODING_FLOAT32: 4}
    pixels = maps * height * width
    size = pixels * bytes_a_pixel.get(output.encoding, 0) + other_bytes
    if pixels > max_pixels or size > max_bytes:
        raise InvalidInputError(
            f"{maps} maps of {height} x {width} are too large to be sent.",
            f"At most {max_pixels} pixels and {max_bytes} bytes together: ask for fewer classes or pixels, or for PNG.",
        )


def encode_map(saliency_map: FloatArray, output: Output, background: Image.Image | None) -> pb.Map:
    """A map as it is sent.

    Args:
        saliency_map: (H, W) in [0, 1], in the pixels that ``output`` names.
        output: the encoding.
        background: what an overlay lies on, H x W.
    """
    height, width = saliency_map.shape
    if background is not None:
        data = _file(overlay(background, saliency_map, output.colormap, output.opacity), _OVERLAYS[output.encoding])
    else:
        data = _ENCODERS[output.encoding](saliency_map)
    return pb.Map(encoding=output.encoding, height=height, width=width, data=data)


def background_of(image: pb.Image, explainer: Explainer, output: Output, max_pixels: int) -> Image.Image | None:
    """What the overlays of an image lie on, or None where none are asked for.

    The image is decoded once more: kept, it would take memory for as long as the request waits.
    """
    if not output.is_overlay:
        return None
    picture = _picture(image, max_pixels)
    if output.space == pb.OUTPUT_SPACE_ORIGINAL:
        return picture
    view = preprocessing_of(explainer).view(picture)[0]
    return view.resize(output.given_size[::-1]) if output.space == pb.OUTPUT_SPACE_GIVEN else view


def object_mask(tensor: pb.Tensor, size: tuple[int, int]) -> BoolArray:
    """(H, W), True where the object is.

    Raises:
        InvalidInputError: not (H, W) UINT8.
    """
    what = "The object mask"
    mask: BoolArray = _of_input_size(tensor_array(tensor, (pb.DATA_TYPE_UINT8,), what), size, what) != 0
    return mask


def given_map(tensor: pb.Tensor, size: tuple[int, int]) -> FloatArray:
    """A saliency map (H, W) that was sent; its values are checked where it is measured.

    Raises:
        InvalidInputError: not (H, W) FLOAT32.
    """
    return _of_input_size(tensor_array(tensor, (pb.DATA_TYPE_FLOAT32,), "The map"), size, "The map")


def _of_input_size(array: AnyArray, size: tuple[int, int], what: str) -> AnyArray:
    if array.shape != size:
        raise InvalidInputError(f"{what} has the shape {array.shape}; the model's input has {size}.", "Resize it.")
    return array


def _picture(image: pb.Image, max_pixels: int) -> Image.Image:
    source = image.WhichOneof("source")
    if source == "encoded":
        return load_image(image.encoded, max_pixels)
    if source != "pixels":
        raise ImageError("There is no image.", "Set encoded, pixels or input.")
    pixels = tensor_array(image.pixels, (pb.DATA_TYPE_UINT8,), "The image")
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(f"The image has the shape {pixels.shape}.", "Send (H, W, 3), RGB.")
    return load_image(pixels, max_pixels)


def _file(picture: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    options = {"compress_level": _PNG_LEVEL} if kind == "PNG" else {"quality": _JPEG_QUALITY}
    picture.save(stream, kind, **options)
    return stream.getvalue()


_ENCODERS: dict[pb.MapEncoding, Callable[[FloatArray], bytes]] = {
    pb.MAP_ENCODING_UINT8: lambda values: levels_of(values).tobytes(),
    pb.MAP_ENCODING_FLOAT16: lambda values: values.astype("<f2").tobytes(),
    pb.MAP_ENCODING_FLOAT32: lambda values: values.astype("<f4", copy=False).tobytes(),
    pb.MAP_ENCODING_PNG: lambda values: _file(Image.fromarray(levels_of(values)), "PNG"),
}
