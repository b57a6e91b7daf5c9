"""What is checked for one architecture and exporter, and the result as one row."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import camrt
from camrt.bundle import Bundle, TargetLayer
from camrt.errors import CamrtError
from camrt.evaluation.output_check import OutputDifference, output_difference
from camrt.runtime import open_model, open_session
from camrt.runtime.session import Session
from tests.conditioning import kink_margins
from tests.coverage.networks import NUM_CLASSES, check_images
from tests.exporter.tensorrt_operators import forbidden_operators
from tests.models import Exporter, TestModel, export_onnx

SAME_TENSOR = 1e-3

Array = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table. Errors are relative: the largest difference over the largest value.

    Attributes:
        layers: what auto picked, coarse to fine.
        outputs: of the bundle's logits against the source model's, at ``level``.
        level: of ONNX Runtime's graph optimization: its default, "all", or the first with fewer fusions at which the
            logits are the same, see camrt.evaluation.output_check.
        fused: of the logits at the default level.
        activations, gradients: of every layer against torch in float64.
        classes: of three classes of one image in one run against three runs.
        images: of three images in one run against three runs.
        forbidden: operators that the export added and TensorRT does not take.
        refusal: why the export refused; the rest is empty then.
    """

    layers: tuple[TargetLayer, ...] = ()
    outputs: float = 0.0
    level: str = "all"
    fused: float = 0.0
    activations: float = 0.0
    gradients: float = 0.0
    classes: float = 0.0
    images: float = 0.0
    forbidden: tuple[str, ...] = ()
    refusal: str | None = None


def check(model: TestModel, exporter: Exporter, folder: Path) -> Result:
    """Exports ``model`` twice, to ONNX and to a bundle with target_layers="auto", and compares."""
    source = export_onnx(model, folder / f"{model.name}-{exporter}.onnx", exporter)
    try:
        bundle = camrt.export(source, source.with_suffix(".bundle.onnx"), image_size=(model.size, model.size))
    except CamrtError as error:
        source.unlink()
        return Result(refusal=str(error))
    session = open_session(bundle.path, threads=1)
    names = bundle.manifest.layer_names
    double = copy.deepcopy(model.module).double()
    images = check_images(model.size)[_soundest(double, check_images(model.size))]
    classes = np.arange(1, 1 + len(images), dtype=np.int64)
    outputs = session.run(images, classes, names)
    logits = compare_logits(source, bundle, session, check_images(model.size))
    oracle = autograd(double, images, classes, [layer.activations for layer in outputs.layers])
    pairs = list(zip(outputs.layers, oracle.activations, oracle.gradients, strict=True))
    result = Result(
        layers=bundle.manifest.target_layers,
        outputs=logits.value,
        level=logits.level,
        fused=logits.by_default,
        activations=max(relative_error(layer.activations, a) for layer, a, _ in pairs),
        gradients=max(relative_error(layer.gradients, g) for layer, _, g in pairs),
        classes=_several_classes(session, images[:1], names),
        images=_several_images(session, check_images(model.size)[:3], names),
        forbidden=tuple(forbidden_operators(bundle.path)),
    )
    source.unlink()
    bundle.path.unlink()
    return result


def compare_logits(source: Path, bundle: Bundle, session: Session, images: Array) -> OutputDifference:
    """Logits of a bundle, predicted alone, against the source model's.

    Where ONNX Runtime fuses the two otherwise, they are compared with fewer fusions too.
    """
    manifest = bundle.manifest
    expected = open_model(source, 1).run({manifest.input_name: images})[manifest.logits]
    return output_difference(source, bundle, images, 1, relative_error(session.predict(images), expected))


def _soundest(double: nn.Module, images: Array) -> npt.NDArray[np.int_]:
    """The two images whose pre-activations stay farthest from the kinks of their activation functions.

    Closer than float32 resolves, two right implementations may take different one-sided derivatives there.
    """
    return np.sort(np.argsort(-kink_margins(double, images), kind="stable")[:2])


def _several_classes(session: Session, image: Array, names: Sequence[str]) -> float:
    classes = np.asarray([3, -1, NUM_CLASSES - 1], np.int64)
    together = session.run(image, classes, names)
    apart = [session.run(image, classes[m : m + 1], names) for m in range(3)]
    return max(
        relative_error(layer.gradients[m : m + 1], apart[m].layers[index].gradients)
        for index, layer in enumerate(together.layers)
        for m in range(3)
    )


def _several_images(session: Session, images: Array, names: Sequence[str]) -> float:
    classes = np.asarray([4, 2, 0], np.int64)
    together = session.run(images, classes, names)
    apart = [session.run(images[n : n + 1], classes[n : n + 1], names) for n in range(3)]
    errors = [relative_error(together.logits[n : n + 1], apart[n].logits) for n in range(3)]
    for index, layer in enumerate(together.layers):
        for n in range(3):
            other = apart[n].layers[index]
            errors.append(relative_error(layer.activations[n : n + 1], other.activations))
    return max(errors)


def relative_error(actual: Array, expected: Array) -> float:
    """Largest absolute error over the largest absolute value; infinite where a number is none or shapes differ."""
    if actual.shape != expected.shape or not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))


class Recorder(TorchFunctionMode):
    """Keeps every differentiable tensor that a forward pass makes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, torch.Tensor) and item.requires_grad:
                self.tensors.append(item)
        return result


@dataclass(frozen=True, slots=True)
class Autograd:
    """Layers in torch, upright: (N, C, h, w) each."""

    activations: list[Array]
    gradients: list[Array]


def autograd(module: nn.Module, images: Array, classes: Sequence[int], wanted: Sequence[Array]) -> Autograd:
    """The first tensors of torch's forward pass that hold ``wanted`` (N, C, h, w), and the gradients there.

    The layers are found by what they contain: names, and what a module's output is, differ between exporters.

    Raises:
        LookupError: torch computes nothing that equals one of them.
    """
    recorder = Recorder()
    with recorder:
        logits = module(torch.from_numpy(images).to(next(module.parameters()).dtype))
    found = [_matching(recorder.tensors, array) for array in wanted]
    chosen = logits[torch.arange(len(images)), torch.as_tensor(np.asarray(classes))].sum()
    gradients = torch.autograd.grad(chosen, [tensor for tensor, _ in found])
    shapes = [array.shape[1:] for array in wanted]
    return Autograd(
        [readings(t.detach().numpy(), s)[way] for (t, way), s in zip(found, shapes, strict=True)],
        [readings(g.numpy(), s)[way] for g, (_, way), s in zip(gradients, found, shapes, strict=True)],
    )


def _matching(tensors: Sequence[torch.Tensor], array: Array) -> tuple[torch.Tensor, str]:
    for tensor in tensors:
        if tensor.ndim in (3, 4) and len(tensor) == len(array) and tensor.numel() >= array.size:
            for way, reading in readings(tensor.detach().numpy(), array.shape[1:]).items():
                if relative_error(array, reading) < SAME_TENSOR:
                    return tensor, way
    raise LookupError(f"torch computes no tensor that equals the activations of shape {array.shape}")


def readings(array: Array, shape: Sequence[int]) -> dict[str, Array]:
    """Every way to read ``array`` (N, ...) as (N, C, h, w): channels first, channels last, tokens behind a prefix."""
    channels, height, width = shape
    found = {}
    if array.shape[1:] == (channels, height, width):
        found["NCHW"] = array
    if array.shape[1:] == (height, width, channels):
        found["NHWC"] = array.transpose(0, 3, 1, 2)
    if array.ndim == 3 and array.shape[2] == channels and array.shape[1] >= height * width:
        tokens = array[:, array.shape[1] - height * width :]
        found["NLC"] = tokens.reshape(len(array), height, width, channels).transpose(0, 3, 1, 2)
    return found
