"""Second derivatives of a bundle, those of ``shapleycam``, against finite differences and against linear pieces."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from camrt.bundle import Head, Manifest
from camrt.errors import UnsupportedModelError
from camrt.evaluation.check_row import CheckRow, all_finite
from camrt.evaluation.finite_differences import DIFFERENCED_SAMPLES, GRADIENT_TOLERANCE, check_gradients
from camrt.runtime import Session
from camrt.types import AnyArray, FloatArray, LayerOutputs

_STEPS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
_CONSISTENT = 30.0  # wrong: so many times further from the differences than those of two steps from each other
_FINE = 1e-3
_CLASSES = 48
_CLASSES_A_RUN = 8
_LEFT_OUT = 1e-3


def check_second_order(
    session: Session, inputs: FloatArray, class_index: int, rng: np.random.Generator
) -> list[CheckRow]:
    """Two rows a layer: the gradient G of the target value, and the Hessian times the activations, H A.

    The target value of class k is t = y_k + log p_k, see camrt.exporter.second_order.

    - target gradients: as the gradients of a logit, with t in its place.
    - Hessian products: H A against (G((1 + e) A) - G((1 - e) A)) / 2 e for steps e. Every entry of the layer is
      compared: median of |difference| / median of the larger side, 2e-2. One step has to agree. ReLUs and poolings that
      switch between both points add jumps, and a fine layer of a large network has some at every step. There the
      product is right too where it is what it is in a network that is linear in pieces from the layer on, -J' S J A: J
      the gradients of the logits, S the Hessian of -log p; the most probable classes are taken. Neither agrees: wrong
      where two fine steps agree on another result, else not checked.

    Args:
        session: a bundle with second derivatives, in float32.
        inputs: (N, C, H, W); the first two are looked at.
        class_index: k.
        rng: of the directions.
    """
    manifest, chosen = session.manifest, np.array([class_index], np.int64)
    images = inputs[:DIFFERENCED_SAMPLES]
    value = partial(_target, head=manifest.head, class_index=class_index)
    rows = []
    for name in manifest.layer_names:
        outputs = [session.run(image[None], chosen, [name], derivatives=2).layers[0] for image in images]
        rows.append(check_gradients(session, f"target gradients of {name}", outputs, value, rng))
        rows.append(_check_products(session, images, outputs, class_index))
    return rows


def has_second_order(manifest: Manifest) -> bool:
    """Whether a bundle was exported with second derivatives."""
    return all(layer.hessian_vectors is not None for layer in manifest.target_layers)


def _target(logits: AnyArray, head: Head, class_index: int) -> AnyArray:
    """t (D,) of logits (D, K)."""
    chosen: AnyArray = logits[:, class_index]
    if head == "sigmoid":
        return chosen - np.logaddexp(0, -chosen)
    largest = logits.max(axis=1, keepdims=True)
    total: AnyArray = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
    return 2 * chosen - total


def _check_products(
    session: Session, images: FloatArray, outputs: Sequence[LayerOutputs], class_index: int
) -> CheckRow:
    row_name = f"Hessian products of {outputs[0].name}"
    if not all(layer.hessian_vectors is not None and all_finite(layer.hessian_vectors) for layer in outputs):
        return CheckRow(row_name, False, "products are not finite")
    try:
        rows = [
            _of_one_image(session, row_name, image, layer, class_index)
            for image, layer in zip(images, outputs, strict=True)
        ]
    except UnsupportedModelError as reason:
        return CheckRow(row_name, None, str(reason))
    failed = [row for row in rows if row.passed is False]
    passed = [row for row in rows if row.passed]
    return (failed or passed or rows)[0]


def _of_one_image(
    session: Session, row_name: str, image: FloatArray, layer: LayerOutputs, class_index: int
) -> CheckRow:
    assert layer.hessian_vectors is not None
    products = layer.hessian_vectors[0].astype(np.float64)
    measured: list[AnyArray] = []
    errors: list[float] = []
    for step in _STEPS:
        measured.append(_differences(session, layer, step, class_index))
        errors.append(_error(measured[-1], products))
        if errors[-1] <= GRADIENT_TOLERANCE:
            return CheckRow(row_name, True, f"along the activations, step {step:g}", errors[-1], GRADIENT_TOLERANCE)
    error = _error(_of_linear_pieces(session, image, layer.name, class_index), products)
    if error <= GRADIENT_TOLERANCE:
        return CheckRow(row_name, True, "linear in pieces from here on", error, GRADIENT_TOLERANCE)
    for step, larger, smaller, worst in zip(_STEPS[1:], measured[:-1], measured[1:], errors[1:], strict=True):
        if step <= _FINE and _CONSISTENT * _error(larger, smaller) < worst:
            return CheckRow(row_name, False, f"along the activations, step {step:g}", worst, GRADIENT_TOLERANCE)
    return CheckRow(row_name, None, "ReLUs and poolings switch, or rounding drowns it, at every step")


def _differences(session: Session, layer: LayerOutputs, step: float, class_index: int) -> AnyArray:
    """(C, h, w): the derivative of the target value's gradient along the activations."""
    factors = np.array([1 + step, 1 - step], np.float32)
    points = factors[:, None, None, None] * layer.activations
    upper, lower = session.target_gradients_from_layer(layer.name, points, np.full(2, class_index, np.int64))
    difference: AnyArray = upper.astype(np.float64) - lower
    return difference / (float(factors[0]) - float(factors[1]))


def _of_linear_pieces(session: Session, image: FloatArray, layer: str, class_index: int) -> AnyArray:
    """-J' S J A (C, h, w), the most probable classes taken; NaN where those left out count."""
    manifest = session.manifest
    logits = session.predict(image[None])[0].astype(np.float64)
    if manifest.head == "sigmoid":
        probability = 1 / (1 + np.exp(-logits[class_index]))
        classes, curvature = np.array([class_index]), np.array([[probability * (1 - probability)]])
    else:
        powers = np.exp(logits - logits.max())
        probabilities = powers / powers.sum()
        classes = np.argsort(-probabilities)[:_CLASSES]
        kept = probabilities[classes]
        if 1 - kept.sum() > _LEFT_OUT:
            return np.full(manifest.layer(layer).shape, np.nan)
        curvature = np.diag(kept) - np.outer(kept, kept)
    gradients = []
    for start in range(0, len(classes), _CLASSES_A_RUN):
        chunk = classes[start : start + _CLASSES_A_RUN].astype(np.int64)
        run = session.run(image[None], chunk, [layer]).layers[0]
        gradients.append(run.gradients)
    jacobian = np.concatenate(gradients).astype(np.float64)
    moved = np.einsum("kchw,chw->k", jacobian, run.activations[0])
    products: AnyArray = -np.einsum("k,kchw->chw", curvature @ moved, jacobian)
    return products


def _error(one: AnyArray, other: AnyArray) -> float:
    """Median of |one - other| over that of the larger; infinite where a number is not finite or both are zero."""
    size = max(_typical(one, other), _typical(other, one))
    if size == 0 or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("inf")
    return float(np.median(np.abs(one - other)[(one != 0) | (other != 0)])) / size


def _typical(array: AnyArray, other: AnyArray) -> float:
    """Median of |array| where it or the other is not zero."""
    some = np.abs(array)[(array != 0) | (other != 0)]
    return float(np.median(some)) if some.size else 0.0
