"""Parameters of a ModelInfer request: which there are, and their types.

``method``, ``base_method``, ``fusion`` (text) and ``target_layers`` (names with commas between, or one of all, top,
above) are those of Explainer.explain. ``top_k`` (integer) explains the k most probable classes of every image.
``output_size`` (text) is the size of saliency_map: "input" (default), "original" (the pixels of the images, which must
be of one size), or "HxW" of what the model sees. ``timeout`` (integer) is in microseconds.

Names that the protocol reserves and that ask for nothing here are ignored; those that ask for what this server does
not do (sequence_*, priority) are refused, and so are unknown names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from camrt.errors import InvalidInputError
from camrt.inference import open_inference_pb2 as pb
from camrt.server.open_inference.tensors import shown

Pixels: TypeAlias = Literal["input", "original"]
OutputSize: TypeAlias = Pixels | tuple[int, int]

_TEXT = ("method", "base_method", "fusion", "target_layers", "output_size")
_NUMBERS = ("top_k", "timeout")
_IGNORED = ("binary_data_output", "headers")
_IGNORED_PREFIX = "triton_"
_LONGEST_TEXT = 10_000
_PIXELS: dict[str, Pixels] = {"input": "input", "original": "original"}
_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a request; None where one is not given."""

    method: str | None = None
    base_method: str | None = None
    fusion: str | None = None
    target_layers: str | tuple[str, ...] | None = None
    top_k: int | None = None
    output_size: OutputSize = "input"
    timeout_seconds: float | None = None


def read_parameters(given: Mapping[str, pb.InferParameter]) -> Parameters:
    """The parameters of a request.

    Raises:
        InvalidInputError: an unknown name, or a value of a wrong type or range.
    """
    texts: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for name, value in given.items():
        if name in _TEXT:
            texts[name] = _text(name, value)
        elif name in _NUMBERS:
            numbers[name] = _number(name, value)
        elif name not in _IGNORED and not name.startswith(_IGNORED_PREFIX):
            raise InvalidInputError(
                f"The parameter {shown(name)} is not supported.", f"There are {', '.join((*_TEXT, *_NUMBERS))}."
            )
    timeout = numbers.get("timeout", 0)
    return Parameters(
        method=texts.get("method"),
        base_method=texts.get("base_method"),
        fusion=texts.get("fusion"),
        target_layers=_layers(texts["target_layers"]) if "target_layers" in texts else None,
        top_k=numbers.get("top_k"),
        output_size=_output_size(texts.get("output_size", "input")),
        timeout_seconds=timeout / 1e6 if timeout else None,
    )


def _text(name: str, value: pb.InferParameter) -> str:
    text = value.string_param
    if value.WhichOneof("parameter_choice") != "string_param" or not text or len(text) > _LONGEST_TEXT:
        raise InvalidInputError(f"The parameter {name!r} is no text, or empty or too long.", "Give it as string_param.")
    return text


def _number(name: str, value: pb.InferParameter) -> int:
    kind = value.WhichOneof("parameter_choice")
    number = value.int64_param if kind == "int64_param" else value.uint64_param
    if kind not in ("int64_param", "uint64_param") or number < 0:
        raise InvalidInputError(f"The parameter {name!r} is no number, or negative.", "Give it as int64_param.")
    return int(number)


def _layers(text: str) -> str | tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    return names if len(names) > 1 else names[0]


def _output_size(text: str) -> OutputSize:
    if text in _PIXELS:
        return _PIXELS[text]
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidInputError(f"output_size is {shown(text)}.", "Give input, original, or HEIGHTxWIDTH.")
    return int(match[1]), int(match[2])
