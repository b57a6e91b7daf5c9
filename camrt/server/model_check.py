"""What a model must show before it serves: every batch size runs and agrees, and so do the provider and the CPU.

The provider was compared with the CPU when the bundle was opened, see camrt.runtime.compared; here it only counts that
it was.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from camrt.cam import DEFAULT_BASE, DEFAULT_FUSION, DEFAULT_ORDER, REFINECAM, Plan, make_plan
from camrt.errors import ModelError
from camrt.explainer import Explainer
from camrt.runtime.parity import LARGEST_LOGIT_ERROR, Parity
from camrt.types import FloatArray, IntArray

_TOLERANCE = {**LARGEST_LOGIT_ERROR, "fp32": 1e-3}
"""By precision: a bundle that rounds does so at other places where its activations are outputs, or in another batch."""


class SelfCheckError(ModelError):
    """A model that opens, but does not compute what it should."""


def default_plan(explainer: Explainer) -> Plan:
    """RefineCAM over every layer, as Explainer.explain has it."""
    return make_plan(explainer.manifest, REFINECAM, DEFAULT_BASE, DEFAULT_FUSION, None, DEFAULT_ORDER)


def batch_buckets(max_batch: int) -> list[int]:
    """The batch sizes that are warmed up: powers of two below max_batch, and max_batch."""
    return [*(1 << power for power in range(max_batch.bit_length()) if 1 << power < max_batch), max_batch]


def warm_up(explainer: Explainer, max_batch: int, path: Path, provider: str) -> None:
    """Runs every batch size, for explanations and predictions, on fixed random images, and checks the answers.

    Raises:
        SelfCheckError: logits that are not finite or depend on the batch, or a provider that nobody compared with the
            CPU, or that is not like it.
    """
    _check_compared(explainer.parity, path, provider)
    plan = default_plan(explainer)
    shape = explainer.manifest.input_shape
    images = np.random.default_rng(0).standard_normal((max_batch, *shape)).astype(np.float32)
    classes: IntArray = np.full(max_batch, -1, np.int64)
    tolerance = _TOLERANCE[explainer.manifest.precision]
    alone: FloatArray | None = None
    for size in batch_buckets(max_batch):
        logits = explainer.explain_batch(images[:size], classes[:size], plan).logits
        if not np.isfinite(logits).all():
            raise SelfCheckError("The model's logits are not finite.", "Check the model with camrt check.")
        alone = logits if alone is None else alone
        _same(logits[:1], alone, tolerance, f"in a batch of {size}")
        _same(explainer.predict(images[:size]), logits, tolerance, "without explanations")


def _check_compared(parity: Parity | None, path: Path, provider: str) -> None:
    if provider == "cpu":
        return
    reason = "it was not compared" if parity is None else parity.reason
    if reason:
        raise SelfCheckError(
            f"Nothing shows that {path} on {provider!r} is what it is on the CPU: {reason}.",
            "Open it with camrt.runtime.open_session, or use provider 'cpu'.",
        )


def _same(found: FloatArray, expected: FloatArray, tolerance: float, where: str) -> None:
    distance = float(np.abs(found - expected).max())
    allowed = tolerance * max(1.0, float(np.abs(expected).max()))
    if not distance <= allowed:
        raise SelfCheckError(
            f"Logits are off by {distance:.2g} {where}; {allowed:.2g} is allowed.", "Check the model with camrt check."
        )
