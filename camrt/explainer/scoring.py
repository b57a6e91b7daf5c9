"""What metrics need: the model as a function, and of explanations the maps at input size and how they were made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np

from camrt.bundle import Manifest
from camrt.cam import Perturbation, Plan, make_plan
from camrt.errors import ClassIndexError, InvalidInputError
from camrt.explanation import Explanation
from camrt.kernels import KernelBackend
from camrt.metrics import MapFunction, ScoreFunction
from camrt.runtime.session import Session
from camrt.types import DoubleArray, FloatArray, IntArray

Target: TypeAlias = Literal["probability", "logit"]


def probabilities(logits: FloatArray, manifest: Manifest) -> DoubleArray:
    """(M, K): sigmoid of each logit for a multi-label model, softmax over the classes otherwise."""
    values = logits.astype(np.float64)
    if manifest.head == "sigmoid":
        chances: DoubleArray = 0.5 * (1 + np.tanh(0.5 * values))
        return chances
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    shares: DoubleArray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def score_function(session: Session, target: str) -> ScoreFunction:
    """The model's answer, as probabilities or logits.

    Raises:
        InvalidInputError: an unknown target.
    """
    if target not in get_args(Target):
        raise InvalidInputError(f"target is {target!r}.", f"Choose one of {', '.join(get_args(Target))}.")

    def predict(inputs: FloatArray) -> DoubleArray:
        logits = session.predict(np.ascontiguousarray(inputs))
        return logits.astype(np.float64) if target == "logit" else probabilities(logits, session.manifest)

    return predict


def map_function(session: Session, backend: KernelBackend, plan: Plan) -> MapFunction:
    """Explains as ``plan`` says, at input size."""

    def explain(inputs: FloatArray, class_indices: IntArray) -> FloatArray:
        outputs = plan.base.collect(session, plan.request(np.ascontiguousarray(inputs), class_indices))
        layer_maps = plan.base.maps(backend, outputs)
        size = int(inputs.shape[2]), int(inputs.shape[3])
        return backend.fuse_layers(layer_maps, size, plan.fusion, plan.order)[0]

    return explain


def rows_by_plan(
    manifest: Manifest, explanations: Sequence[Explanation], perturbation: Perturbation | None = None
) -> dict[Plan, IntArray]:
    """How the explanations were made, and which of them in which way.

    Raises:
        InvalidInputError: something that is no explanation, or not of this bundle.
        LayerNotFoundError, ClassIndexError: an explanation of another bundle.
    """
    rows: dict[Plan, list[int]] = {}
    for row, explanation in enumerate(explanations):
        if not isinstance(explanation, Explanation):
            raise InvalidInputError(f"{type(explanation).__name__} is no Explanation.", "Give what explain() returned.")
        if not 0 <= explanation.class_index < manifest.num_classes:
            raise ClassIndexError(
                f"Class {explanation.class_index} is explained; the bundle has {manifest.num_classes} classes.",
                "Give explanations that this bundle's Explainer made.",
            )
        rows.setdefault(_plan(manifest, explanation, perturbation), []).append(row)
    return {plan: np.asarray(numbers) for plan, numbers in rows.items()}


def maps_at_input_size(
    backend: KernelBackend, explanations: Sequence[Explanation], plan: Plan, size: tuple[int, int]
) -> FloatArray:
    """The maps (N, H, W) in the pixels of the model's input; all explanations are of one plan.

    A map in the pixels of the original image, or of another size, is not resized: part of what the model saw may not be
    in it, and what was interpolated twice is another map. It is fused again from its layer maps.
    """
    maps = np.empty((len(explanations), *size), np.float32)
    other = []
    for row, explanation in enumerate(explanations):
        if explanation.in_input_pixels and explanation.saliency_map.shape == size:
            maps[row] = explanation.saliency_map
        else:
            other.append(row)
    if other:
        layer_maps = [np.stack([explanations[row].layer_maps[name] for row in other]) for name in plan.layers]
        maps[other] = backend.fuse_layers(layer_maps, size, plan.fusion, plan.order)[0]
    return maps


def _plan(manifest: Manifest, explanation: Explanation, perturbation: Perturbation | None) -> Plan:
    for name, layer_map in explanation.layer_maps.items():
        shape = manifest.layer(name).shape[1:]
        if layer_map.shape != shape:
            raise InvalidInputError(
                f"The map of layer {name!r} is {layer_map.shape}; in this bundle it is {shape}.",
                "Give explanations that this bundle's Explainer made.",
            )
    return make_plan(
        manifest,
        explanation.method,
        explanation.base_method or explanation.method,
        explanation.fusion or "product",
        list(explanation.layer_maps),
        explanation.order,
        perturbation,
    )
