"""Explanations put together from the arrays of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from camrt.bundle import Manifest
from camrt.cam import Plan
from camrt.errors import InvalidInputError
from camrt.explainer.clock import Clock
from camrt.explainer.scoring import probabilities
from camrt.explanation import Explanation
from camrt.types import BoolArray, FloatArray, SessionOutputs


@dataclass(frozen=True, slots=True, eq=False)
class MadeMaps:
    """What a run and the kernels made.

    Attributes:
        outputs: logits (N, K) and the M explained classes.
        layer_maps: L maps (M, h, w), coarse to fine.
        saliency: (M, H, W).
        degenerate: (M, L), whether a layer's map says nothing.
        in_input_pixels: whether (H, W) is the size of the model's input.
    """

    outputs: SessionOutputs
    layer_maps: Sequence[FloatArray]
    saliency: FloatArray
    degenerate: BoolArray
    in_input_pixels: bool


def check_logits(logits: FloatArray) -> None:
    """Refuses logits (N, K) that mean nothing: finite inputs that overflow inside the model make such ones.

    -inf is left alone where another class of the image is finite: a model rules classes out with it.

    Raises:
        InvalidInputError: NaN, inf, or an image without a finite logit.
    """
    if np.isfinite(logits).all():
        return
    bad = np.isnan(logits).any(axis=1) | ~np.isfinite(logits.max(axis=1))
    if bad.any():
        raise InvalidInputError(
            f"The model's logits of image {int(np.argmax(bad))} are not finite.",
            "Its values overflow inside the model: check the preprocessing, or the precision of the bundle.",
        )


def assembled(manifest: Manifest, plan: Plan, made: MadeMaps, clock: Clock) -> list[Explanation]:
    """One explanation an explained class; the times of ``clock`` are shared out evenly.

    Raises:
        InvalidInputError: as check_logits.
    """
    chosen = made.outputs.class_indices
    check_logits(made.outputs.logits)
    logits = np.broadcast_to(made.outputs.logits, (len(chosen), manifest.num_classes))
    chances = probabilities(logits, manifest)
    timings = clock.shared(len(chosen))
    return [
        Explanation(
            saliency_map=made.saliency[m],
            layer_maps={name: maps[m] for name, maps in zip(plan.layers, made.layer_maps, strict=True)},
            class_index=int(chosen[m]),
            class_name=manifest.class_name(int(chosen[m])),
            probability=float(chances[m, chosen[m]]),
            logit=float(logits[m, chosen[m]]),
            method=plan.method,
            base_method=plan.base.name if plan.refines else None,
            fusion=plan.fusion if plan.refines else None,
            order=plan.order,
            in_input_pixels=made.in_input_pixels,
            degenerate=tuple(name for name, bad in zip(plan.layers, made.degenerate[m], strict=True) if bad),
            timings=timings,
        )
        for m in range(len(chosen))
    ]
