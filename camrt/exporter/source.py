"""Where the graph comes from: an ONNX file, or a PyTorch module that becomes one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from camrt.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import nn

TorchModule: TypeAlias = "nn.Module"


@contextmanager
def source_file(model: str | os.PathLike[str] | TorchModule, image_size: tuple[int, int] | None) -> Iterator[Path]:
    """The ONNX file of ``model``; one that was made of a PyTorch module is gone after the block."""
    if isinstance(model, str | os.PathLike):
        yield Path(model)
        return
    try:
        from camrt.exporter.from_torch import exported_module
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            f"A {type(model).__name__} is no path of an ONNX file, and PyTorch's modules need {error.name}.",
            "Give a path, or install what is missing: pip install camrt[torch].",
        ) from error
    with exported_module(model, image_size) as path:
        yield path
