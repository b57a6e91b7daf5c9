"""ModelInfer requests: from the message to tensors that the model takes, with every name and number checked.

Inputs:

- ``image``: FP32 (N, 3, H, W) as the model takes it; or UINT8 (N, height, width, 3), RGB pixels; or BYTES (N), each
  element a JPEG, PNG or WebP file.
- ``class_index``, optional: INT64 (N) or (N, M), the classes to explain of every image; -r is the class with the r-th
  highest logit. Without it, and without the parameter ``top_k``, the predicted class.

Outputs:

- ``logits`` FP32 (N, K)
- ``class_index`` INT64 (N, M), the explained classes
- ``saliency_map`` FP32 (N, M, H, W) in [0, 1]
- only on request, for every target layer: ``activations/LAYER`` FP32 (N, C, h, w) and ``gradients/LAYER`` FP32
  (N, M, C, h, w), the gradients of the explained logits
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from camrt.bundle import MAX_RANK, Manifest
from camrt.cam import REFINECAM, Plan, make_plan
from camrt.errors import ClassIndexError, ImageError, InvalidInputError
from camrt.explainer.arguments import MAX_OUTPUT_SIDE
from camrt.inference import open_inference_pb2 as pb
from camrt.preprocess import load_image
from camrt.server.codec import preprocessing_of
from camrt.server.models import LoadedModel
from camrt.server.open_inference.parameters import OutputSize, Parameters
from camrt.server.open_inference.tensors import BYTES, Tensor, read_tensors, shown
from camrt.server.requests import limited
from camrt.server.settings import ServerSettings
from camrt.types import FloatArray, IntArray

IMAGE, CLASS_INDEX, LOGITS, SALIENCY_MAP = "image", "class_index", "logits", "saliency_map"
ACTIVATIONS, GRADIENTS = "activations/", "gradients/"
DEFAULT_OUTPUTS = (LOGITS, CLASS_INDEX, SALIENCY_MAP)
IMAGE_DATATYPES = ("FP32", "UINT8", BYTES)

_ENVELOPE_BYTES = 64 << 10  # of a reply, for everything that is not an array
_DEFAULT_BASE, _DEFAULT_FUSION, _ORDER = "gradcam++", "product", "normalize_twice"


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Where the tensor of an image came from.

    Attributes:
        size: (width, height) of the image as it was sent.
        affine: from its pixels to those of the tensor, see Preprocessing.view.
    """

    size: tuple[int, int]
    affine: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Inference:
    """A request that can be carried out.

    Attributes:
        tensors: N, (3, H, W) float32 each.
        pictures: N; or none where the request has tensors.
        class_indices: (N, M) int64.
        plan: how maps are made.
        output_size: of saliency_map.
        outputs: in the order of the reply, none twice.
    """

    tensors: list[FloatArray]
    pictures: list[Picture]
    class_indices: IntArray
    plan: Plan
    output_size: OutputSize
    outputs: tuple[str, ...]

    @property
    def array_layers(self) -> tuple[str, ...]:
        """Layers whose activations or gradients are asked for."""
        names = [name.partition("/")[2] for name in self.outputs if name.startswith((ACTIVATIONS, GRADIENTS))]
        return tuple(dict.fromkeys(names))

    @property
    def explains(self) -> bool:
        """Whether maps are asked for."""
        return SALIENCY_MAP in self.outputs


def read_request(
    request: pb.ModelInferRequest, parameters: Parameters, model: LoadedModel, settings: ServerSettings
) -> Inference:
    """Checks, decodes and preprocesses. Takes the time that decoding takes.

    Raises:
        InvalidInputError, ImageError, ClassIndexError, LayerNotFoundError, MethodNotFoundError: what is wrong.
        UnsupportedModelError: the model takes tensors only.
    """
    manifest = model.explainer.manifest
    outputs = _outputs(request, manifest)
    plan = _plan(parameters, manifest, settings)
    tensors = read_tensors(request, {IMAGE: IMAGE_DATATYPES, CLASS_INDEX: ("INT64",)}, settings.max_batch)
    if IMAGE not in tensors:
        raise InvalidInputError(f"The input {IMAGE!r} is missing.", f"Give it as {', '.join(IMAGE_DATATYPES)}.")
    image = tensors[IMAGE]
    _check_image(image, parameters.output_size, manifest, settings)
    classes = _class_indices(tensors.get(CLASS_INDEX), parameters.top_k, image.shape[0], manifest, settings)
    _check_reply(outputs, parameters.output_size, classes.shape, manifest, settings)
    arrays, pictures = _decode(image, model, settings)
    inference = Inference(arrays, pictures, classes, plan, parameters.output_size, outputs)
    _check_pictures(inference, settings)
    return inference


def image_count(request: pb.ModelInferRequest, most: int) -> int:
    """How many images a request says that it has, for its admission: 1 to ``most``; read_request checks it."""
    for tensor in request.inputs:
        if tensor.name == IMAGE and tensor.shape:
            return max(1, min(int(tensor.shape[0]), most))
    return 1


def _outputs(request: pb.ModelInferRequest, manifest: Manifest) -> tuple[str, ...]:
    known = [*DEFAULT_OUTPUTS, *(kind + layer for layer in manifest.layer_names for kind in (ACTIVATIONS, GRADIENTS))]
    for output in request.outputs:
        if output.name not in known:
            raise InvalidInputError(f"There is no output {shown(output.name)}.", f"There are {', '.join(known)}.")
        for name in output.parameters:
            if name != "binary_data":
                raise InvalidInputError(
                    f"The parameter {shown(name)} of the output {output.name!r} is not supported.", "Leave it out."
                )
    return tuple(dict.fromkeys(output.name for output in request.outputs)) or DEFAULT_OUTPUTS


def _plan(parameters: Parameters, manifest: Manifest, settings: ServerSettings) -> Plan:
    layers = parameters.target_layers
    if isinstance(layers, tuple) and len(layers) > settings.layers:
        raise InvalidInputError(f"{len(layers)} target layers.", f"Name at most {settings.layers}.")
    plan = make_plan(
        manifest,
        parameters.method or REFINECAM,
        parameters.base_method or _DEFAULT_BASE,
        parameters.fusion or _DEFAULT_FUSION,
        layers,
        _ORDER,
    )
    return limited(plan, 0, settings)


def _check_image(image: Tensor, output_size: OutputSize, manifest: Manifest, settings: ServerSettings) -> None:
    """The shape alone: nothing is decoded."""
    shape = image.shape
    fits = {
        BYTES: len(shape) == 1,
        "UINT8": len(shape) == 4 and shape[3] == 3,
        "FP32": len(shape) == 4 and shape[1:] == manifest.input_shape,
    }
    if not fits[image.datatype]:
        wanted = {BYTES: "(N)", "UINT8": "(N, height, width, 3)", "FP32": f"(N, {str(manifest.input_shape)[1:]}"}
        raise InvalidInputError(
            f"The input {image.name!r} of {image.datatype} has the shape {list(shape)}.",
            f"Give {wanted[image.datatype]}.",
        )
    if shape[0] > settings.max_batch:
        raise InvalidInputError(f"The request has {shape[0]} images.", f"Send at most {settings.max_batch}.")
    if image.datatype == "FP32" and output_size == "original":
        raise InvalidInputError("A tensor has no original pixels.", "Use output_size input, or send the image.")


def _class_indices(
    tensor: Tensor | None, top_k: int | None, count: int, manifest: Manifest, settings: ServerSettings
) -> IntArray:
    """(N, M): the classes of every image."""
    ranks = min(manifest.num_classes, MAX_RANK)
    if top_k is not None:
        if tensor is not None:
            raise InvalidInputError("top_k and class_index exclude each other.", "Give one of them.")
        if not 1 <= top_k <= min(ranks, settings.classes):
            raise ClassIndexError(f"top_k is {top_k}.", f"Give a number in 1..{min(ranks, settings.classes)}.")
        return np.tile(-np.arange(1, top_k + 1, dtype=np.int64), (count, 1))
    if tensor is None or tensor.array is None:
        return np.full((count, 1), -1, np.int64)
    shape = tensor.shape
    if len(shape) > 2 or shape[0] != count or shape[-1] > (settings.classes if len(shape) == 2 else count):
        raise InvalidInputError(
            f"The input {tensor.name!r} has the shape {list(shape)} for {count} images.",
            f"Give ({count}) or ({count}, M), M at most {settings.classes}.",
        )
    if tensor.array.min() < -ranks or tensor.array.max() >= manifest.num_classes:
        raise ClassIndexError(
            f"The input {tensor.name!r} holds numbers outside {-ranks}..{manifest.num_classes - 1}.",
            f"Use 0 to {manifest.num_classes - 1}, or -1 to {-ranks} for ranks.",
        )
    return tensor.array.reshape(count, -1).astype(np.int64)


def _check_reply(
    outputs: Sequence[str],
    output_size: OutputSize,
    classes: tuple[int, ...],
    manifest: Manifest,
    settings: ServerSettings,
) -> None:
    """Refuses what would be computed in vain, since the reply would be too large to be sent."""
    count, explained = classes
    height, width = output_size if isinstance(output_size, tuple) else manifest.input_shape[1:]
    floats = count * manifest.num_classes
    if SALIENCY_MAP in outputs and output_size != "original":
        floats += count * explained * height * width
    if SALIENCY_MAP in outputs or isinstance(output_size, tuple):
        _check_maps(count * explained, height, width, settings)
    for layer in manifest.target_layers:
        size = math.prod(layer.shape)
        floats += count * size * (ACTIVATIONS + layer.name in outputs)
        floats += count * explained * size * (GRADIENTS + layer.name in outputs)
    _check_bytes(4 * floats + 8 * count * explained, settings)


def _check_pictures(inference: Inference, settings: ServerSettings) -> None:
    """Maps in the pixels of the originals are one array: the originals have one size, known when they are decoded."""
    if inference.output_size != "original" or not inference.explains:
        return
    sizes = {picture.size for picture in inference.pictures}
    if len(sizes) > 1:
        raise InvalidInputError("The images are of several sizes.", "Use output_size input, or send them one by one.")
    width, height = sizes.pop()
    _check_maps(inference.class_indices.size, height, width, settings)
    _check_bytes(4 * inference.class_indices.size * height * width, settings)


def _check_maps(count: int, height: int, width: int, settings: ServerSettings) -> None:
    if max(height, width) > MAX_OUTPUT_SIDE or count * height * width > settings.output_pixels:
        raise InvalidInputError(
            f"{count} maps of {height}x{width} are too large.",
            f"At most {MAX_OUTPUT_SIDE} pixels a side and {settings.output_pixels} together: "
            "use output_size input, or give a smaller one.",
        )


def _check_bytes(size: int, settings: ServerSettings) -> None:
    limit = settings.message_bytes - _ENVELOPE_BYTES
    if size > limit:
        raise InvalidInputError(
            f"The reply would have {size} bytes; at most {limit} are sent.", "Ask for fewer images, classes or outputs."
        )


def _decode(image: Tensor, model: LoadedModel, settings: ServerSettings) -> tuple[list[FloatArray], list[Picture]]:
    """What the model takes of every image, and where it came from."""
    if image.datatype == "FP32" and image.array is not None:
        if not np.isfinite(image.array).all():
            raise InvalidInputError(f"The input {image.name!r} holds numbers that are not finite.", "Check it.")
        return list(image.array.astype(np.float32, copy=False)), []
    preprocessing = preprocessing_of(model.explainer)
    tensors, pictures = [], []
    for index, source in enumerate(image.strings if image.array is None else image.array):
        try:
            picture = load_image(source, settings.image_pixels)
            tensor, affine = preprocessing.apply(picture)
        except ImageError as error:
            raise ImageError(f"Image {index} cannot be used. {error.message}", error.next_step) from error
        tensors.append(tensor)
        pictures.append(Picture(picture.size, affine))
    return tensors, pictures
