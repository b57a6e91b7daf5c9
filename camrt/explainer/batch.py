"""One run of a batch: the explanations, the logits of every image, and how long it took."""

from __future__ import annotations

from dataclasses import dataclass

from camrt.explanation import Explanation
from camrt.types import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class BatchResult:
    """What Explainer.explain_batch returns.

    Attributes:
        explanations: M, one a class index, maps at the size of the inputs.
        logits: (N, K) float32.
        inference_seconds: of the model.
        kernels_seconds: of the maps.
    """

    explanations: list[Explanation]
    logits: FloatArray
    inference_seconds: float
    kernels_seconds: float
