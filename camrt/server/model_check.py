"""What a model must show before it serves: every batch size runs and agrees; so do the provider and the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from camrt.cam import REFINECAM, Plan, make_plan
from camrt.errors import ModelError
from camrt.explainer import Explainer
from camrt.types import AnyArray, FloatArray, IntArray

_BATCH_TOLERANCE = 1e-3
_PROVIDER_TOLERANCE = 1e-2
_LEAST_CORRELATION = 0.99


class SelfCheckError(ModelError):
    """A model that opens, but does not compute what it should."""


def default_plan(explainer: Explainer) -> Plan:
    """RefineCAM over every layer, as Explainer.explain has it."""
    return make_plan(explainer.manifest, REFINECAM, "gradcam++", "product", None, "normalize_twice")


def batch_buckets(max_batch: int) -> list[int]:
    """The batch sizes that are warmed up: powers of two below max_batch, and max_batch."""
    return [*(1 << power for power in range(max_batch.bit_length()) if 1 << power < max_batch), max_batch]


def warm_up(explainer: Explainer, max_batch: int, path: Path, provider: str) -> None:
    """Runs every batch size, for explanations and predictions, on fixed random images, and checks the answers.

    Raises:
        SelfCheckError: logits that are not finite, that depend on the batch, or that differ from the CPU's.
    """
    plan = default_plan(explainer)
    shape = explainer.manifest.input_shape
    images = np.random.default_rng(0).standard_normal((max_batch, *shape)).astype(np.float32)
    classes: IntArray = np.full(max_batch, -1, np.int64)
    alone: FloatArray | None = None
    for size in batch_buckets(max_batch):
        logits = explainer.explain_batch(images[:size], classes[:size], plan).logits
        if not np.isfinite(logits).all():
            raise SelfCheckError("The model's logits are not finite.", "Check the model with camrt check.")
        alone = logits if alone is None else alone
        _same(logits[:1], alone, _BATCH_TOLERANCE, f"in a batch of {size}")
        _same(explainer.predict(images[:size]), logits, _BATCH_TOLERANCE, "without explanations")
    if provider != "cpu":
        _compare_with_cpu(explainer, path, images[:1], classes[:1], plan)


def _compare_with_cpu(explainer: Explainer, path: Path, images: FloatArray, classes: IntArray, plan: Plan) -> None:
    expected = Explainer(path, "cpu").explain_batch(images, classes, plan)
    found = explainer.explain_batch(images, np.array([expected.explanations[0].class_index]), plan)
    _same(found.logits, expected.logits, _PROVIDER_TOLERANCE, "than on the CPU")
    correlation = _pearson(found.explanations[0].saliency_map, expected.explanations[0].saliency_map)
    if not correlation >= _LEAST_CORRELATION:  # NaN: one of the maps is constant
        raise SelfCheckError(
            f"Maps correlate with those of the CPU by {correlation:.4f}, less than {_LEAST_CORRELATION}.",
            "Use another provider or precision.",
        )


def _same(found: FloatArray, expected: FloatArray, tolerance: float, where: str) -> None:
    distance = float(np.abs(found - expected).max())
    allowed = tolerance * max(1.0, float(np.abs(expected).max()))
    if not distance <= allowed:
        raise SelfCheckError(
            f"Logits are off by {distance:.2g} {where}; {allowed:.2g} is allowed.", "Check the model with camrt check."
        )


def _pearson(first: AnyArray, second: AnyArray) -> float:
    if np.array_equal(first, second):
        return 1.0
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])
