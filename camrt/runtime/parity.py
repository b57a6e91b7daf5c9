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

LARGEST_LOGIT_ERROR = {"fp32": 0.01, "fp16": 0.01, "int8": 0.1}
"""What the logits may be off by, by the bundle's precision. Engines that round to 8 bits differ by some hundredths."""

_IMAGES = 2


class ParityError(BackendUnavailableError):
    """An engine that runs, and computes something else than the CPU provider."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How an engine compares with the CPU provider on the same bundle.

    Attributes:
        provider: what was compared.
        correlations: layer name -> lowest Pearson correlation of maps over the images.
        logit_error: max |difference| / max |logit of the CPU provider|.
        top1_agreement: share of images with the same likeliest class.
        threshold: what the correlations have to reach.
        logit_limit: what the logit error may be.
    """

    provider: str
    correlations: dict[str, float]
    logit_error: float
    top1_agreement: float
    threshold: float
    logit_limit: float = LARGEST_LOGIT_ERROR["fp32"]

    @property
    def passed(self) -> bool:
        """Every layer's maps reach the threshold, and the logits are within their limit; a NaN is not."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why it did not pass; empty where it did."""
        layer, worst = min(self.correlations.items(), key=lambda item: item[1])
        if not worst >= self.threshold:
            return f"maps of layer {layer!r} correlate by {worst:.4f}, and {self.threshold} is asked for"
        if not self.logit_error <= self.logit_limit:
            return f"logits are off by {self.logit_error:.2g} of the largest, and {self.logit_limit} is allowed"
        return ""


def check_parity(session: Session, reference: Session, provider: str, threshold: float) -> Parity:
    """Compares a session with the CPU provider's session of the same bundle.

    Args:
        session: what is looked at.
        reference: the CPU provider's.
        provider: the name of the session's.
        threshold: what the maps of every layer have to reach.

    Raises:
        ParityError: they do not, or the logits are too far off.
    """
    manifest = session.manifest
    inputs = random_inputs(manifest.input_shape, manifest.preprocessing, _IMAGES, np.random.default_rng(0))
    expected = reference.run(inputs, np.full(_IMAGES, -1, np.int64), manifest.layer_names)
    found = session.run(inputs, expected.class_indices, manifest.layer_names)
    parity = compare(found, expected, provider, threshold, LARGEST_LOGIT_ERROR[manifest.precision])
    if not parity.passed:
        raise ParityError(
            f"Provider {provider!r} explains this {manifest.precision} bundle otherwise than the CPU does: "
            f"{parity.reason}.",
            "Use a bundle of higher precision, or provider 'cpu'.",
        )
    return parity


def compare(
    found: SessionOutputs, expected: SessionOutputs, provider: str, threshold: float, logit_limit: float
) -> Parity:
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
        logit_limit,
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
