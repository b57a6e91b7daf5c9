"""Several classes of one image, and several images, in one run: what each of them gets in a run of its own."""

from __future__ import annotations

import numpy as np

from camrt.evaluation.check_row import CheckRow, difference, rms
from camrt.evaluation.finite_differences import GRADIENT_TOLERANCE
from camrt.runtime import Session
from camrt.types import FloatArray, IntArray, SessionOutputs

TOGETHER_TOLERANCE = 1e-5

_TOGETHER = 3


def check_batches(session: Session, inputs: FloatArray, classes: IntArray, exact: bool) -> list[CheckRow]:
    """Two rows: M = 3 classes of N = 1 image, and N = M = 3 images with a class each, against one by one.

    Logits, activations and gradients of every layer, max |difference| / max |value|, 1e-5. An engine may round
    otherwise with another batch, and a pre-activation next to a kink may then fall to its other side: where logits and
    activations are within the limit and not the same bits, gradients that differ by no more than 2e-2 (root mean
    square) are not checked. Numbers that are not finite are wrong, whatever the precision.

    Args:
        session: the bundle.
        inputs: (N, C, H, W); the first three are looked at.
        classes: (N,) a class an image.
        exact: False where the bundle or the provider rounds to more than the limit: nothing is checked but measured.
    """
    several = np.array([classes[0], -1, classes[1]], np.int64)
    return [
        _row("several classes of one image", session, inputs[:1], several, exact),
        _row("several images in one run", session, inputs[:_TOGETHER], classes[:_TOGETHER], exact),
    ]


def _row(name: str, session: Session, images: FloatArray, classes: IntArray, exact: bool) -> CheckRow:
    layers = session.manifest.layer_names
    together = session.run(images, classes, layers)
    forward = gradients = spread = 0.0
    for m in range(len(classes)):
        n = m if len(images) > 1 else 0
        apart = session.run(images[n : n + 1], classes[m : m + 1], layers)
        if together.class_indices[m] != apart.class_indices[0]:
            return CheckRow(name, False, f"another class is explained than alone: {together.class_indices[m]}")
        forward = max(forward, _forward(together, apart, n))
        for one, other in zip(together.layers, apart.layers, strict=True):
            own = one.gradients[m : m + 1]
            apart_by = difference(own, other.gradients)
            gradients = max(gradients, apart_by)
            if np.isfinite(apart_by):
                spread = max(spread, rms(own - other.gradients) / (rms(other.gradients) or 1.0))
    worst, detail = max(forward, gradients), f"{len(classes)} in one run against one by one"
    if not np.isfinite(worst):
        return CheckRow(name, False, f"{detail}: values are not finite", worst)
    if not exact:
        return CheckRow(name, None, f"{detail}: its rounding depends on the batch", worst)
    if 0 < forward <= TOGETHER_TOLERANCE < gradients and spread <= GRADIENT_TOLERANCE:
        return CheckRow(name, None, f"{detail}: gradients differ by {gradients:.1e} at most, next to a kink", worst)
    return CheckRow(name, worst <= TOGETHER_TOLERANCE, detail, worst, TOGETHER_TOLERANCE)


def _forward(together: SessionOutputs, apart: SessionOutputs, n: int) -> float:
    """Logits and activations of image ``n`` against those of its own run."""
    pairs = [(together.logits, apart.logits)]
    pairs += [(one.activations, other.activations) for one, other in zip(together.layers, apart.layers, strict=True)]
    return max(difference(one[n : n + 1], other) for one, other in pairs)
