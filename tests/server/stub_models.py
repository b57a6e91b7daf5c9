"""Models of which a test says what they do and when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache

import numpy as np

from camrt.cam import Plan
from camrt.explainer import BatchResult, Explainer
from camrt.server.model_check import default_plan
from camrt.server.models import LoadedModel
from camrt.types import FloatArray, IntArray


@cache
def explainer() -> Explainer:
    return Explainer(threads=1)


def loaded() -> LoadedModel:
    return LoadedModel("shapes", "1", explainer(), "digest", "cpu")


def plan() -> Plan:
    return default_plan(explainer())


def image(seed: int = 0) -> FloatArray:
    shape = explainer().manifest.input_shape
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class GatedExplainer:
    """The embedded model, which starts a run only when ``gate`` is open, and notes the size of every run.

    Attributes:
        runs: images of every run.
        classes: class indices of every explaining run.
        prepared: name of the thread of every call of prepare.
    """

    def __init__(self, before: Callable[[FloatArray], None] = lambda _: None) -> None:
        self.manifest = explainer().manifest
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.runs: list[int] = []
        self.classes: list[list[int]] = []
        self.prepared: list[str] = []
        self.before = before

    def prepare(self, plan: Plan) -> None:
        self.prepared.append(threading.current_thread().name)
        explainer().prepare(plan)

    def explain_batch(self, inputs: FloatArray, class_indices: IntArray, plan: Plan) -> BatchResult:
        self.classes.append(class_indices.tolist())
        self._enter(inputs)
        return explainer().explain_batch(inputs, class_indices, plan)

    def predict(self, inputs: FloatArray) -> FloatArray:
        self._enter(inputs)
        return explainer().predict(inputs)

    def _enter(self, inputs: FloatArray) -> None:
        self.runs.append(len(inputs))
        self.entered.set()
        assert self.gate.wait(20)
        self.before(inputs)


def gated(before: Callable[[FloatArray], None] = lambda _: None) -> tuple[LoadedModel, GatedExplainer]:
    stub = GatedExplainer(before)
    return LoadedModel("gated", "1", stub, "digest", "cpu"), stub  # type: ignore[arg-type]
