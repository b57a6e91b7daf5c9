"""How much of its explanations a bundle of lower precision keeps: its maps against those of the float32 bundle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from camrt.bundle import Bundle, Manifest
from camrt.cam import REFINECAM, available_methods, cam_method
from camrt.errors import InvalidInputError
from camrt.explainer import Explainer
from camrt.explanation import Explanation
from camrt.json_values import strict_json
from camrt.preprocess import folder_inputs, random_inputs
from camrt.runtime.parity import LEAST_CORRELATION, correlation
from camrt.types import AnyArray, FloatArray

FUSED = "fused"
DECISIVE_METHOD = "gradcam++"
"""RefineCAM's own base method. Others may suffer more: gradcam's channel weights are sums of terms of both signs."""
DEFAULT_METHODS = ("gradcam", "gradcam++", "hirescam", "layercam")
_CHUNK = 8


@dataclass(frozen=True, slots=True)
class FidelityRow:
    """Maps of one method at one layer, or fused.

    Attributes:
        method: a CAM method; with ``fused``, the base method of RefineCAM.
        layer: a target layer, or "fused".
        mean, lowest: Pearson's correlation of the two bundles' maps over the images; 1 where both are constant, 0 where
            one is.
    """

    method: str
    layer: str
    mean: float
    lowest: float


@dataclass(frozen=True, slots=True)
class FidelityReport:
    """A bundle against another of the same model.

    Attributes:
        bundle, reference: the files.
        precision: of the bundle.
        images: how many were compared, and ``source`` says which.
        top1_agreement: share of images whose likeliest class is the same.
        logit_error: mean over images of max |difference| / max |reference logit|.
        rows: by method: layers coarse to fine, then fused.
        threshold: what the mean correlation of the decisive method's fused maps has to reach.
    """

    bundle: Path
    reference: Path
    precision: str
    images: int
    source: str
    top1_agreement: float
    logit_error: float
    rows: tuple[FidelityRow, ...]
    threshold: float

    @property
    def passed(self) -> bool:
        """The fused maps of the decisive method, or of every method where it was left out, reach the threshold.

        False where no fused maps were compared.
        """
        fused = [row for row in self.rows if row.layer == FUSED]
        decisive = [row for row in fused if row.method == DECISIVE_METHOD] or fused
        return bool(decisive) and all(row.mean >= self.threshold for row in decisive)

    def to_dict(self) -> dict[str, Any]:
        """The report, of types that JSON has; a number that is not finite becomes None."""
        fields = asdict(self) | {"bundle": str(self.bundle), "reference": str(self.reference)}
        document: dict[str, Any] = strict_json(fields | {"passed": self.passed})
        return document


def map_fidelity(
    path: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    provider: str = "cpu",
    samples: int = 8,
    seed: int = 0,
) -> FidelityReport:
    """Compares the maps of a bundle with those of a reference bundle, which the CPU provider runs.

    Both explain the class that the reference predicts.

    Args:
        path: the bundle.
        reference: the float32 bundle of the same model, with the same target layers.
        images: a folder of pictures; None takes seeded random images, which show rounding but not accuracy.
        methods: base methods to compare; those that the bundle cannot do, and expensive ones, are left out.
        provider: runs the bundle.
        samples: pictures at most, or random images; 1 or more.
        seed: of the random images, 0 or more.

    Raises:
        InvalidInputError: the bundles do not belong together, there are no images, or no method that can be compared.
        MethodNotFoundError: a method that is unknown.
        BundleError, ModelError, BackendUnavailableError: a bundle cannot be used.
    """
    candidate, original = Bundle.open(path), Bundle.open(reference)
    manifest = original.manifest
    _check_pair(candidate, original)
    _check_numbers(samples, seed)
    usable = _usable_methods(manifest, methods)
    if images is None:
        inputs = random_inputs(manifest.input_shape, manifest.preprocessing, samples, np.random.default_rng(seed))
    else:
        inputs = folder_inputs(images, manifest.preprocessing, samples)
    ours, theirs = Explainer(candidate.path, provider), Explainer(original.path)
    logits = [np.concatenate([side.predict(part) for part in _parts(inputs)]) for side in (ours, theirs)]
    classes = logits[1].argmax(1).astype(np.int64)
    names = manifest.layer_names
    rows: list[FidelityRow] = []
    for method in usable:
        pairs = [
            pair
            for part, chosen in zip(_parts(inputs), _parts(classes), strict=True)
            for pair in zip(*(_maps(side, part, chosen, method) for side in (ours, theirs)), strict=True)
        ]
        rows += _rows(method, names, pairs)
    return FidelityReport(
        bundle=candidate.path,
        reference=original.path,
        precision=candidate.manifest.precision,
        images=len(inputs),
        source=f"random images, seed {seed}" if images is None else str(images),
        top1_agreement=float(np.mean(logits[0].argmax(1) == classes)),
        logit_error=_logit_error(logits[0], logits[1]),
        rows=tuple(rows),
        threshold=LEAST_CORRELATION[candidate.manifest.precision],
    )


def _check_pair(candidate: Bundle, original: Bundle) -> None:
    """InvalidInputError where the two bundles are not two of one model."""
    for name in ("input_shape", "num_classes", "layer_names"):
        ours, theirs = getattr(candidate.manifest, name), getattr(original.manifest, name)
        if ours != theirs:
            raise InvalidInputError(
                f"{candidate.path} and {original.path} do not belong together: {name} is {ours} and {theirs}.",
                "Export both from the same model, with the same target layers.",
            )
    if original.manifest.precision != "fp32":
        raise InvalidInputError(
            f"{original.path} is {original.manifest.precision}: no reference.", "Give the fp32 bundle."
        )


def _check_numbers(samples: int, seed: int) -> None:
    if samples < 1:
        raise InvalidInputError(f"samples is {samples}: no images to compare.", "Give 1 or more.")
    if seed < 0:
        raise InvalidInputError(f"seed is {seed}.", "Give 0 or more.")


def _usable_methods(manifest: Manifest, methods: Sequence[str]) -> list[str]:
    """Those of ``methods`` that can be compared, at least one."""
    if isinstance(methods, str):
        raise InvalidInputError(f"methods is the text {methods!r}.", f"Give a list of names: [{methods!r}].")
    usable = available_methods(manifest, manifest.layer_names, expensive=False)
    chosen = [method.name for method in map(cam_method, methods) if method.name in usable]
    if not chosen:
        raise InvalidInputError(
            f"None of the methods {list(methods)} can be compared with this bundle.",
            f"Choose from {', '.join(usable)}.",
        )
    return chosen


def _parts(array: Any) -> list[Any]:
    return [array[start : start + _CHUNK] for start in range(0, len(array), _CHUNK)]


def _maps(explainer: Explainer, inputs: FloatArray, classes: AnyArray, method: str) -> list[Explanation]:
    return explainer.explain(inputs, classes, REFINECAM, method)


def _rows(method: str, names: Sequence[str], pairs: Sequence[tuple[Explanation, Explanation]]) -> list[FidelityRow]:
    rows = []
    for name in names:
        found = [correlation(one.layer_maps[name], other.layer_maps[name]) for one, other in pairs]
        rows.append(FidelityRow(method, name, float(np.mean(found)), min(found)))
    found = [correlation(one.saliency_map, other.saliency_map) for one, other in pairs]
    return [*rows, FidelityRow(method, FUSED, float(np.mean(found)), min(found))]


def _logit_error(found: FloatArray, expected: FloatArray) -> float:
    scale = np.maximum(np.abs(expected).max(1), np.finfo(np.float32).tiny)
    return float(np.mean(np.abs(found - expected).max(1) / scale))
