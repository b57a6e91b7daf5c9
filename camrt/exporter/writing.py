"""Writes bundles to disk, whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import EncodeError

from camrt.errors import InvalidInputError, UnsupportedModelError

MAX_FILE_BYTES = 2**31 - 1
"""A protobuf message ends there, and a bundle is one file (docs/adr/0002)."""


def write_model(model: ir.Model, destination: Path) -> None:
    """Writes to a file beside ``destination`` and renames it: an interrupted export leaves no half bundle.

    A link is followed, a file that is replaced keeps its permissions, and a new one gets those of the process (umask).

    Raises:
        InvalidInputError: ``destination`` is a folder, or cannot be written.
        UnsupportedModelError: the bundle would be larger than an ONNX file can be.
    """
    if destination.is_dir():
        raise InvalidInputError(
            f"Cannot write {destination}: it is a folder.", "Give the path of the bundle's file: bundle.onnx, say."
        )
    weights = sum(tensor.nbytes for tensor in _weights(model))
    if weights > MAX_FILE_BYTES:
        raise _too_large(destination, weights)
    try:
        target = Path(os.path.realpath(destination))
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(model, target)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(f"Cannot write {destination}: {reason}.", "Check the path.") from error
    except EncodeError as error:
        raise _too_large(destination, weights) from error


def _replace(model: ir.Model, target: Path) -> None:
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(8)}.part")
    try:
        ir.save(model, temporary)
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)


def _too_large(destination: Path, weights: int) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{destination} would hold {weights / 1e9:.2f} GB of weights. A bundle is one file; an ONNX file ends at 2 GB.",
        "Convert the source model's weights to float16, or use a smaller model.",
    )
