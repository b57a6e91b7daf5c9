"""Gradients of a bundle against finite differences of the graph from a layer to the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from camrt.errors import UnsupportedModelError
from camrt.evaluation.check_row import CheckRow, all_finite, rms
from camrt.runtime import Session
from camrt.types import AnyArray, FloatArray, LayerOutputs

GRADIENT_TOLERANCE = 2e-2
DIFFERENCED_SAMPLES = 2

_DIRECTIONS = 6
_STEPS = (1e-3, 3e-4, 1e-4, 1e-2)
_FINE_STEPS = (1e-4, 3e-5, 3e-4, 1e-5)
_COARSE_TOLERANCE = 0.3
_TINY = 1e-30
_MAX_ELEMENTS_A_RUN = 1 << 23

Value: TypeAlias = Callable[[AnyArray], AnyArray]
"""What is explained, (D,), of logits (D, K), both float64."""


@dataclass(frozen=True, slots=True)
class _Agreement:
    """How well gradients and finite differences agree, and how well finite differences of two steps do."""

    error: float
    uncertainty: float
    detail: str


def check_gradients(
    session: Session, row_name: str, outputs: Sequence[LayerOutputs], value: Value, rng: np.random.Generator
) -> CheckRow:
    """Gradients of one layer against central differences along random directions.

    Not checked where an error above the tolerance is within what the differences of two steps differ by. Activations or
    gradients that are not finite are wrong.

    Args:
        session: the bundle.
        row_name: of the row.
        outputs: of the layer, an image each; the first two are looked at.
        value: what was differentiated.
        rng: of the directions.
    """
    looked_at = outputs[:DIFFERENCED_SAMPLES]
    if not all(all_finite(layer.activations, layer.gradients) for layer in looked_at):
        return CheckRow(row_name, False, "activations or gradients are not finite")
    try:
        agreements = [_compare_gradients(session, layer, value, rng) for layer in looked_at]
    except UnsupportedModelError as reason:
        return CheckRow(row_name, None, str(reason))
    decided = [agreement for agreement in agreements if np.isfinite(agreement.error)]
    if not decided:
        return CheckRow(
            row_name, None, "the explained value hardly depends on this layer: its changes drown in rounding"
        )
    wrong = [agreement for agreement in decided if agreement.error > max(GRADIENT_TOLERANCE, agreement.uncertainty)]
    worst = max(wrong or decided, key=lambda agreement: agreement.error)
    if not wrong and worst.error > GRADIENT_TOLERANCE:
        detail = f"off by {worst.error:.2g}, while differences of two steps are off by {worst.uncertainty:.2g}"
        return CheckRow(row_name, None, detail)
    return CheckRow(row_name, worst.error <= GRADIENT_TOLERANCE, worst.detail, worst.error, GRADIENT_TOLERANCE)


def _compare_gradients(session: Session, layer: LayerOutputs, value: Value, rng: np.random.Generator) -> _Agreement:
    """Gradients against finite differences along three kinds of direction, until one kind agrees.

    Random directions come first, as they see any wrong gradient. The second kind leaves zeros alone: an activation of
    exactly 0 often sits on a kink (max-pooling over a ReLU's zeros), where finite differences have no meaning. Where
    rounding and kinks make the differences too uncertain for the tolerance, random directions count as coarse evidence
    only, and the third kind decides: it goes up the gradient, where the logit changes so much that small steps do.
    """
    activations, gradients = layer.activations, layer.gradients
    shape = (_DIRECTIONS, *activations.shape[1:])
    noise = rng.standard_normal(shape).astype(np.float32)
    everywhere = _agreement(session, layer, value, noise * rms(activations), "random directions", _STEPS[:2])
    if everywhere.error <= GRADIENT_TOLERANCE:
        return everywhere
    nonzero = _agreement(session, layer, value, noise * activations, "random directions that keep zeros")
    if nonzero.error <= GRADIENT_TOLERANCE or nonzero.error > max(_COARSE_TOLERANCE, 3 * nonzero.uncertainty):
        return nonzero
    upward = rng.random(shape, dtype=np.float32) * gradients * (activations != 0)
    upward *= rms(activations) / max(rms(upward), _TINY)
    detail = f"directions up the gradient (random ones: {nonzero.error:.1g}, uncertain by {nonzero.uncertainty:.1g})"
    return _agreement(session, layer, value, upward, detail, _FINE_STEPS)


def _agreement(
    session: Session,
    layer: LayerOutputs,
    value: Value,
    directions: FloatArray,
    kind: str,
    steps: Sequence[float] = _STEPS,
) -> _Agreement:
    """The first step that agrees, or else the best; the error is infinite where every step drowns in rounding."""
    expected = np.einsum("dchw,chw->d", directions, layer.gradients[0], dtype=np.float64)
    measured: list[AnyArray] = []
    best, best_index = float("inf"), 0
    for index, step in enumerate(steps):
        slopes, rounding = _central_differences(session, layer, directions, step, value)
        measured.append(slopes)
        size = max(rms(slopes), rms(expected))
        error = float(np.median(np.abs(slopes - expected))) / size if size > rounding else float("inf")
        if error < best:
            best, best_index = error, index
        if best <= GRADIENT_TOLERANCE:
            break
    size = max(rms(measured[best_index]), rms(expected)) or 1.0
    others = measured[:best_index] + measured[best_index + 1 :]
    uncertainty = min((float(np.median(np.abs(one - measured[best_index]))) / size for one in others), default=0.0)
    return _Agreement(best, uncertainty, f"{_DIRECTIONS} {kind}, step {steps[best_index]:g}")


def _central_differences(
    session: Session, layer: LayerOutputs, directions: FloatArray, step: float, value: Value
) -> tuple[AnyArray, float]:
    """Slopes (D,) of the value along ``directions`` (D, C, h, w), and the slope that rounding alone can make."""
    points = np.concatenate([layer.activations + np.float32(sign * step) * directions for sign in (1, -1)])
    chunk = max(1, _MAX_ELEMENTS_A_RUN // directions[0].size)
    logits = np.concatenate(
        [session.run_from_layer(layer.name, points[i : i + chunk]) for i in range(0, len(points), chunk)]
    ).astype(np.float64)
    upper, lower = np.split(value(logits), 2)
    rounding = 10 * np.finfo(np.float32).eps * np.abs(logits).max() / (2 * step)
    return (upper - lower) / (2 * step), float(rounding)
