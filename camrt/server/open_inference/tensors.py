"""Tensors of the Open Inference Protocol, exactly as long as their shapes say.

A tensor is typed (``contents``, a list of numbers) or raw (an entry of ``raw_input_contents``: little-endian, rows
first; before every element of BYTES its length, 4 bytes little-endian). A request has one kind only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from camrt.errors import InvalidInputError
from camrt.inference import open_inference_pb2 as pb
from camrt.types import AnyArray

BYTES = "BYTES"
MAX_RANK = 8
MAX_TENSORS = 64
MAX_TYPED_NUMBERS = 1 << 19
"""Of typed contents; 2 MiB of FP32. Python reads them one by one, and holds its lock meanwhile."""

_DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "INT64": np.dtype("<i8"), "FP32": np.dtype("<f4")}
_FIELDS = {"UINT8": "uint_contents", "INT64": "int64_contents", "FP32": "fp32_contents", BYTES: "bytes_contents"}
_LENGTH_BYTES = 4
_LONGEST_SHOWN = 80


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One input.

    Attributes:
        name: its name.
        datatype: UINT8, INT64, FP32 or BYTES.
        shape: as the client says; its product is the number of elements.
        array: the elements in that shape, read-only; None with BYTES.
        strings: the elements of BYTES, rows first; empty with another type.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    array: AnyArray | None
    strings: tuple[bytes, ...] = ()


def shown(text: str) -> str:
    """What a client calls something, short enough for an error message."""
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "...")


def read_tensors(
    request: pb.ModelInferRequest, allowed: Mapping[str, Sequence[str]], max_strings: int
) -> dict[str, Tensor]:
    """The inputs of a request by name.

    Args:
        request: not looked at before.
        allowed: name of an input -> its data types.
        max_strings: most elements of an input of BYTES.

    Raises:
        InvalidInputError: an unknown or doubled name, a data type that is not allowed, contents that do not fit the
            shape, both kinds of contents, or shared memory.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidInputError(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs.",
            "Give one entry an input, or typed contents for all.",
        )
    if len(request.inputs) > MAX_TENSORS:
        raise InvalidInputError(f"The request has {len(request.inputs)} inputs.", f"Give {', '.join(allowed)}.")
    tensors: dict[str, Tensor] = {}
    for index, message in enumerate(request.inputs):
        if message.name not in allowed:
            raise InvalidInputError(
                f"There is no input {shown(message.name)}.", f"The inputs are {', '.join(allowed)}."
            )
        if message.name in tensors:
            raise InvalidInputError(f"The input {message.name!r} is given twice.", "Give it once.")
        tensors[message.name] = _read(message, raw[index] if raw else None, allowed[message.name], max_strings)
    return tensors


def _read(
    message: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, datatypes: Sequence[str], max_strings: int
) -> Tensor:
    name, datatype, shape = message.name, message.datatype, tuple(message.shape)
    if datatype not in datatypes:
        raise InvalidInputError(
            f"The input {name!r} has the data type {shown(datatype)}.", f"Give {' or '.join(datatypes)}."
        )
    if any(key.startswith("shared_memory") for key in message.parameters):
        raise InvalidInputError(f"The input {name!r} is in shared memory.", "Send its contents: it is not supported.")
    if not 1 <= len(shape) <= MAX_RANK or min(shape) < 1:
        raise InvalidInputError(
            f"The input {name!r} has the shape {list(shape[:MAX_RANK])}.", "Give 1 or more elements along every axis."
        )
    if datatype == BYTES and math.prod(shape) > max_strings:
        raise InvalidInputError(
            f"The input {name!r} has {math.prod(shape)} elements.", f"Give at most {max_strings} a request."
        )
    if raw is None:
        return _read_typed(message, shape)
    if message.HasField("contents"):
        raise InvalidInputError(f"The input {name!r} has typed and raw contents.", "Give one of them.")
    if datatype == BYTES:
        return Tensor(name, datatype, shape, None, _split(raw, math.prod(shape), name))
    dtype = _DTYPES[datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise _wrong_length(name, f"{len(raw)} bytes", shape, f"{expected} bytes of {datatype}")
    return Tensor(name, datatype, shape, np.frombuffer(raw, dtype).reshape(shape))


def _read_typed(message: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...]) -> Tensor:
    name, datatype, count = message.name, message.datatype, math.prod(shape)
    field = _FIELDS[datatype]
    others = [descriptor.name for descriptor, _ in message.contents.ListFields() if descriptor.name != field]
    if others:
        raise InvalidInputError(f"The input {name!r} is {datatype} and has {others[0]}.", f"Use {field}.")
    values = getattr(message.contents, field)
    if len(values) != count:
        raise _wrong_length(name, f"{len(values)} elements in {field}", shape, f"{count} elements")
    if datatype == BYTES:
        return Tensor(name, datatype, shape, None, tuple(values))
    if count > MAX_TYPED_NUMBERS:
        raise InvalidInputError(
            f"The input {name!r} has {count} numbers in {field}.",
            f"Send more than {MAX_TYPED_NUMBERS} of them in raw_input_contents.",
        )
    numbers = np.fromiter(values, np.dtype("u4") if datatype == "UINT8" else _DTYPES[datatype], count)
    if datatype == "UINT8" and numbers.max() > 255:
        raise InvalidInputError(f"The input {name!r} is UINT8 and holds {numbers.max()}.", "Give numbers in 0..255.")
    return Tensor(name, datatype, shape, numbers.astype(_DTYPES[datatype], copy=False).reshape(shape))


def _split(raw: bytes, count: int, name: str) -> tuple[bytes, ...]:
    """``count`` elements, each after its length, and nothing else."""
    if count * _LENGTH_BYTES > len(raw):  # before anything is sized by what the client says
        raise InvalidInputError(
            f"The input {name!r} has {len(raw)} bytes; {count} elements have at least {count * _LENGTH_BYTES}.",
            "Give every element after its length, 4 bytes little-endian.",
        )
    elements, start = [], 0
    for index in range(count):
        begin = start + _LENGTH_BYTES
        end = begin + int.from_bytes(raw[start:begin], "little")
        if begin > len(raw) or end > len(raw):
            raise InvalidInputError(
                f"Element {index} of the input {name!r} ends after its contents.",
                "Give every element after its length, 4 bytes little-endian.",
            )
        elements.append(raw[begin:end])
        start = end
    if start != len(raw):
        raise InvalidInputError(
            f"The input {name!r} has {len(raw) - start} bytes after its {count} elements.", "Check its shape."
        )
    return tuple(elements)


def _wrong_length(name: str, given: str, shape: tuple[int, ...], expected: str) -> InvalidInputError:
    return InvalidInputError(
        f"The input {name!r} has {given}.", f"Its shape {list(shape)} needs {expected}, little-endian, rows first."
    )


def add_output(response: pb.ModelInferResponse, name: str, array: AnyArray) -> None:
    """Appends an output, raw: float32 as FP32, int64 as INT64."""
    datatype = "INT64" if array.dtype == np.int64 else "FP32"
    response.outputs.add(name=name, datatype=datatype, shape=array.shape)
    response.raw_output_contents.append(np.ascontiguousarray(array, _DTYPES[datatype]).tobytes())
