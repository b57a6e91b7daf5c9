"""Whether an engine computes what the CPU provider computes: looked at when it is loaded, on fixed inputs.

Marking activations and gradients as outputs changes what an engine fuses, so the engine itself is compared, not one
like it. The maps are sum_c relu(G_c) A_c of each layer, without its ReLU and min-max.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from camrt.errors import BackendUnavailableError
from camrt.preprocess import random_inputs
from camrt.runtime.session import Session
from camrt.types import AnyArray, FloatArray, SessionOutputs

LEAST_CORRELATION = {"fp32": 0.999, "fp16": 0.99, "int8": 0.98}
"""What the maps of every layer have to reach, by the bundle's precision."""

_IMAGES = 2


@dataclass(frozen=True, slots=True)
class Parity:
    """How an engine compares with the CPU provider on the same bundle.

    Attributes:
        provider: what was compared.
        correlations: layer name -> lowest Pearson correlation of maps over the images.
        logit_error: max |difference| / max |logit of the CPU provider|.
        top1_agreement: share of images with the same likeliest class.
        threshold: of the correlations.
    """

    provider: str
    correlations: dict[str, float]
    logit_error: float
    top1_agreement: float
    threshold: float

    @property
    def passed(self) -> bool:
        """Every layer's maps reach the threshold; a NaN does not."""
        return all(value >= self.threshold for value in self.correlations.values())


def check_parity(session: Session, reference: Session, provider: str) -> Parity:
    """Compares a session with the CPU provider's session of the same bundle.

    Raises:
        BackendUnavailableError: a layer's maps do not reach the threshold.
    """
    manifest = session.manifest
    inputs = random_inputs(manifest.input_shape, manifest.preprocessing, _IMAGES, np.random.default_rng(0))
    expected = reference.run(inputs, np.full(_IMAGES, -1, np.int64), manifest.layer_names)
    found = session.run(inputs, expected.class_indices, manifest.layer_names)
    parity = compare(found, expected, provider, LEAST_CORRELATION[manifest.precision])
    if not parity.passed:
        worst = min(parity.correlations, key=lambda name: parity.correlations[name])
        raise BackendUnavailableError(
            f"Provider {provider!r} explains this {manifest.precision} bundle otherwise than the CPU does: maps of "
            f"layer {worst!r} correlate by {parity.correlations[worst]:.4f}, and {parity.threshold} is asked for.",
            "Use a bundle of higher precision, or provider 'cpu'.",
        )
    return parity


def compare(found: SessionOutputs, expected: SessionOutputs, provider: str, threshold: float) -> Parity:
    """The figures of two runs on the same images and classes."""
    correlations = {
        one.name: min(map(correlation, _maps(one.activations, one.gradients), _maps(two.activations, two.gradients)))
        for one, two in zip(found.layers, expected.layers, strict=True)
    }
    scale = float(np.abs(expected.logits).max()) or 1.0
    return Parity(
        provider,
        correlations,
        float(np.abs(found.logits - expected.logits).max()) / scale,
        float(np.mean(found.logits.argmax(1) == expected.logits.argmax(1))),
        threshold,
    )


def _maps(activations: FloatArray, gradients: FloatArray) -> AnyArray:
    maps: AnyArray = np.einsum("nchw,nchw->nhw", np.maximum(gradients, 0), activations, dtype=np.float64)
    return maps


def correlation(one: AnyArray, other: AnyArray) -> float:
    """Pearson's correlation of two maps; 1 where both are constant, 0 where one is or a number is not finite."""
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return 0.0
    first, second = (np.asarray(array, np.float64).ravel() for array in (one, other))
    first, second = first - first.mean(), second - second.mean()
    sizes = float(np.linalg.norm(first)), float(np.linalg.norm(second))
    if 0.0 in sizes:
        return 1.0 if sizes == (0.0, 0.0) else 0.0
    return float(first @ second) / (sizes[0] * sizes[1])
