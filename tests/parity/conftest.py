"""Exported test models, one at a time: a session-wide fixture that every parity test runs over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch

import camrt
from camrt.runtime import open_session
from camrt.runtime.session import Session
from camrt.types import FloatArray
from tests import oracles
from tests.models import TestModel, export_onnx, fold_batch_norms, make_inputs, make_model
from tests.parity.cases import CASES, IMAGES, Case

# Small inputs gain little from a second thread, and on a busy machine lose a lot waiting for it.
THREADS = 1
CLASS_SETS = ("given", "predicted")


@dataclass
class Exported:
    """A test model as torch module, as ONNX file and as bundle, with two images and two classes for each.

    Attributes:
        case: what it is.
        model: the torch module, with the weights that are in the ONNX file.
        source: the ONNX file.
        bundle: the rewritten file; its target layers are the model's, coarse to fine.
        inputs: (2, 3, H, W).
    """

    case: Case
    model: TestModel
    source: Path
    bundle: camrt.Bundle
    inputs: FloatArray
    _passes: dict[tuple[str, bool], oracles.Backward] = field(default_factory=dict)
    _maps: dict[tuple[str, str, bool], oracles.Maps] = field(default_factory=dict)

    @cached_property
    def session(self) -> Session:
        return open_session(self.bundle.path, threads=THREADS)

    @cached_property
    def explainer(self) -> camrt.Explainer:
        return camrt.Explainer(self.bundle.path, threads=THREADS)

    @cached_property
    def double(self) -> torch.nn.Module:
        return oracles.in_double(self.model.module)

    @property
    def size(self) -> tuple[int, int]:
        return self.case.size, self.case.size

    def classes(self, class_set: str) -> list[int]:
        """Two classes, one an image: given indices, or the predictions."""
        return [-1, -1] if class_set == "predicted" else [image.class_index for image in IMAGES[self.case.key]]

    def backward(self, class_set: str, *, double: bool) -> oracles.Backward:
        """torch's own pass, in float32 or float64."""
        key = (class_set, double)
        if key not in self._passes:
            module = self.double if double else self.model.module
            layers, classes = self.model.target_layers, self.classes(class_set)
            self._passes[key] = oracles.autograd(module, layers, self.inputs, classes)
        return self._passes[key]

    def maps(self, method: str, class_set: str, *, double: bool) -> oracles.Maps:
        """pytorch-grad-cam's maps of that pass."""
        key = (method, class_set, double)
        if key not in self._maps:
            self._maps[key] = oracles.replayed_maps(self.backward(class_set, double=double), method, self.size)
        return self._maps[key]


@pytest.fixture(scope="session", autouse=True)
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=CASES)
def exported(
    request: pytest.FixtureRequest, torch_threads: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exported]:
    case: Case = request.param
    folder = tmp_path_factory.mktemp(case.id)
    inputs = np.concatenate([make_inputs(1, case.size, image.seed) for image in IMAGES[case.key]])
    model = make_model(case.architecture, 0, case.size, case.num_classes, inputs)
    source = export_onnx(model, folder / "source.onnx", case.exporter)
    bundle = camrt.export(source, folder / "bundle.onnx", list(model.target_layers), image_size=(case.size, case.size))
    if case.exporter == "torchscript":
        model = replace(model, module=fold_batch_norms(model.module, inputs))
    yield Exported(case, model, source, bundle, inputs)
    source.unlink()  # half a gigabyte for the largest models
    bundle.path.unlink()


@pytest.fixture(params=CLASS_SETS)
def class_set(request: pytest.FixtureRequest) -> str:
    return request.param
