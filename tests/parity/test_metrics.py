"""Complexity, coherency, ROAD without noise, and ARCC are pytorch-grad-cam's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pytest
import torch
from torch import nn

from camrt import Explanation
from camrt.kernels import get_backend
from camrt.metrics import Measurement, measure
from camrt.types import DoubleArray, FloatArray, IntArray
from tests import oracles
from tests.models import import_torchvision
from tests.parity.cases import FULL, SMALL, Case
from tests.parity.conftest import THREADS, Exported

import_torchvision()

import pytorch_grad_cam  # noqa: E402
from pytorch_grad_cam.metrics import road as oracle_road  # noqa: E402
from pytorch_grad_cam.metrics.arcc import ARCC  # noqa: E402
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402

TOLERANCE = 1e-3
FRACTIONS = (20, 40, 60, 80)
# What each is for a map that says nothing.
METRICS = {"complexity": 0.0, "coherency": 0.5, "road": 0.0, "arcc": 0.0}
COMBINATIONS = [
    ("refinecam", "probability"),
    ("gradcam++", "logit"),
    pytest.param("refinecam", "logit", marks=pytest.mark.slow),
    pytest.param("gradcam++", "probability", marks=pytest.mark.slow),
]
CASES = [
    pytest.param(Case("resnet18", "torchscript", SMALL), id="resnet18-96"),
    pytest.param(Case("mobilenet_v3_small", "torchscript", SMALL), id="mobilenet_v3_small-96"),
    pytest.param(
        Case("resnet18", "torchscript", FULL), id="resnet18-224", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]
    ),
]

Target: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class NoiselessImputer(oracle_road.NoisyLinearImputer):
    """What ROAD's classes would make if they could be told so."""

    def __init__(self) -> None:
        super().__init__(noise=0)


@dataclass
class Probability:
    """The probability of a class, as a target."""

    class_index: int

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.softmax(logits, dim=-1)[..., self.class_index]


TARGETS: dict[str, Callable[[int], Target]] = {"probability": Probability, "logit": ClassifierOutputTarget}


class LogitExplainer:
    """A method of pytorch-grad-cam that explains the logit whatever the metric follows."""

    def __init__(self, model: nn.Module, layers: Sequence[str], method: str, classes: Sequence[int]) -> None:
        modules = [dict(model.named_modules())[layer] for layer in layers]
        self._targets = [ClassifierOutputTarget(index) for index in classes]
        if method == "refinecam":
            self._cam = pytorch_grad_cam.RefineCAM(model, modules)
            self._parts = self._cam.base_cam_per_layer
        else:
            self._cam = pytorch_grad_cam.GradCAMPlusPlus(model, modules[:1])
            self._parts = [self._cam]

    def __call__(self, input_tensor: torch.Tensor, targets: Sequence[Target]) -> FloatArray:
        return self._cam(input_tensor, self._targets)

    def release(self) -> None:
        for part in self._parts:
            part.activations_and_grads.release()


@pytest.fixture(autouse=True)
def no_noise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(oracle_road, "NoisyLinearImputer", NoiselessImputer)
    return


class Kept:
    """A metric that remembers its last scores, since ARCC tells only its own."""

    def __init__(self, metric: Callable[..., oracles.Array]) -> None:
        self._metric = metric

    def __call__(self, *arguments: object) -> oracles.Array:
        self.scores = self._metric(*arguments)
        return self.scores


def oracle(
    exported: Exported, explanations: Sequence[Explanation], method: str, target: str
) -> dict[str, oracles.Array]:
    """pytorch-grad-cam's metrics of the maps of ``explanations``."""
    model = exported.model.module
    classes = [explanation.class_index for explanation in explanations]
    maps = np.stack([explanation.saliency_map for explanation in explanations])
    images, targets = torch.from_numpy(np.array(exported.inputs)), [TARGETS[target](index) for index in classes]
    explain = LogitExplainer(model, exported.model.target_layers, method, classes)
    arcc = ARCC(explain, list(FRACTIONS))
    parts = arcc.complexity, arcc.coherency, arcc.road = Kept(arcc.complexity), Kept(arcc.coherency), Kept(arcc.road)
    with warnings.catch_warnings():
        # Its imputer hands a torch tensor to np.argwhere. Of a singular system scipy still warns.
        warnings.filterwarnings("ignore", "__array_wrap__", DeprecationWarning)
        scores = arcc(images, maps, targets, model)
    explain.release()
    model.zero_grad(set_to_none=True)
    return dict(zip(METRICS, (*(part.scores for part in parts), scores), strict=True))


def ours(exported: Exported, explanations: Sequence[Explanation], method: str, target: str) -> dict[str, DoubleArray]:
    """The same without noise, which Explainer.evaluate does not leave out."""
    explainer = exported.explainer

    def predict(images: FloatArray) -> DoubleArray:
        logits = explainer.predict(images).astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return logits if target == "logit" else powers / powers.sum(axis=1, keepdims=True)

    def explain(images: FloatArray, classes: IntArray) -> FloatArray:
        return np.stack([item.saliency_map for item in explainer.explain(images, classes, method=method)])

    measurement = Measurement(
        exported.inputs,
        np.stack([explanation.saliency_map for explanation in explanations]),
        np.array([explanation.class_index for explanation in explanations]),
        predict,
        explain,
        get_backend("native", THREADS),
        noise_scale=0.0,
    )
    return measure(list(METRICS), measurement)


@pytest.mark.parametrize("exported", CASES, indirect=True)
@pytest.mark.parametrize(("method", "target"), COMBINATIONS)
def test_metrics(exported: Exported, class_set: str, method: str, target: str) -> None:
    explanations = exported.explainer.explain(exported.inputs, exported.classes(class_set), method=method)
    expected = oracle(exported, explanations, method, target)
    actual = ours(exported, explanations, method, target)
    for name, trivial in METRICS.items():
        largest = float(np.abs(expected[name]).max())
        # Random networks have flat probabilities: of those, agreement is asked for in proportion.
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=TOLERANCE * min(1, largest), err_msg=name)
        if target == "logit":
            assert np.abs(expected[name] - trivial).max() > 20 * TOLERANCE
