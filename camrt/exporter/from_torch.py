"""A PyTorch module as an ONNX file: what ``camrt.export(module, ...)`` does first. The only module that needs PyTorch.

The file is written by PyTorch's own exporter in its current form, ``torch.onnx.export(dynamo=True)``; there is no
fallback to its older form, which traces, and may write a file that is wrong for another batch. It leaves the module
paths in the graph, so ``layer4.1.conv2`` names a target layer.

- The module is exported in eval mode; each of its parts has the mode that it had, afterwards.
- The example input is random, of two images: a batch of one would be taken for a constant. Its device and element type
  are those of the module's first parameter, its channels those of the first convolution, else 3; its size is
  ``image_size``, else 224x224.
- The batch is dynamic, height and width are fixed.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnxscript  # noqa: F401 - torch.onnx needs it; without it the error is to name it before any work
import torch
from torch import nn

from camrt.errors import InvalidInputError, UnsupportedModelError
from camrt.exporter.passes import DEFAULT_IMAGE_SIZE

_FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, NotImplementedError)


@contextmanager
def exported_module(module: object, image_size: tuple[int, int] | None) -> Iterator[Path]:
    """Writes ``module`` to a temporary ONNX file, called after its class, with input ``image``.

    Args:
        module: a classifier, images (N, C, H, W) to logits (N, K).
        image_size: (H, W); None is 224x224.

    Yields:
        The path of the file, which is removed after the block.

    Raises:
        InvalidInputError: not a module, or one that does not take the example image.
        UnsupportedModelError: PyTorch cannot export it.
    """
    if not isinstance(module, nn.Module):
        raise InvalidInputError(
            f"A {type(module).__name__} is neither a path nor a torch.nn.Module.",
            "Give the path of an ONNX file, or the module itself.",
        )
    example = _example(module, image_size or DEFAULT_IMAGE_SIZE)
    with tempfile.TemporaryDirectory(prefix="camrt-") as folder, _eval_mode(module):
        _try(module, example)
        path = Path(folder) / f"{type(module).__name__}.onnx"
        _write(module, example, path)
        yield path


def _example(module: nn.Module, size: tuple[int, int]) -> torch.Tensor:
    convolutions = (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    first = next(convolutions, None)
    channels = 3 if first is None else first.in_channels
    parameter = next((item for item in module.parameters() if item.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, *size, generator=generator).to(parameter.device, parameter.dtype)


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _try(module: nn.Module, example: torch.Tensor) -> None:
    """One forward pass, so that what the module itself refuses is told apart from what the exporter does."""
    try:
        with torch.no_grad():
            module(example)
    except _FORWARD_ERRORS as error:
        raise InvalidInputError(
            f"{type(module).__name__} does not take an image of shape {tuple(example.shape)} "
            f"({type(error).__name__}: {_first_line(error)}).",
            "Give the size of its images with image_size=(H, W).",
        ) from error


def _write(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, of no use to the caller
            torch.onnx.export(
                module,
                (example,),
                str(path),
                dynamo=True,
                input_names=["image"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, *_FORWARD_ERRORS) as error:
        raise UnsupportedModelError(
            f"PyTorch cannot export {type(module).__name__} to ONNX ({type(error).__name__}: {_first_line(error)}).",
            "Call torch.onnx.export yourself with what the module needs, and give camrt the file.",
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
