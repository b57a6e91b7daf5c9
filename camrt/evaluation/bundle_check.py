"""Is a bundle right: original outputs unchanged, gradients true, explanations dependent on the image."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from camrt.bundle import Bundle
from camrt.errors import UnsupportedModelError
from camrt.explainer import Explainer
from camrt.preprocess import random_inputs
from camrt.runtime import Session, open_model, open_session
from camrt.types import AnyArray, FloatArray, LayerOutputs, SessionOutputs

OUTPUT_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 2e-2

_DIRECTIONS = 6
_DIFFERENCED_SAMPLES = 2
_STEPS = (1e-3, 3e-4, 1e-4, 1e-2)
_FINE_STEPS = (1e-4, 3e-5, 3e-4, 1e-5)
_COARSE_TOLERANCE = 0.3
_TINY = 1e-30
_SAME = 1e-6
_MAX_ELEMENTS_A_RUN = 1 << 23


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One thing that was checked.

    Attributes:
        name: what was checked.
        passed: None where it could not be checked; ``detail`` says why.
        detail: what was seen.
        value: what was measured, or None where the check is no measurement.
        tolerance: the largest value that passes.
    """

    name: str
    passed: bool | None
    detail: str
    value: float | None = None
    tolerance: float | None = None


@dataclass(frozen=True, slots=True)
class _Agreement:
    """How well gradients and finite differences agree, and how well finite differences of two steps do."""

    error: float
    uncertainty: float
    detail: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Every row of one bundle's check."""

    bundle: Path
    rows: tuple[CheckRow, ...]

    @property
    def passed(self) -> bool:
        """No row failed; rows that could not be checked do not count."""
        return all(row.passed is not False for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The report, of types that JSON has."""
        return {"bundle": str(self.bundle), "passed": self.passed, "rows": [asdict(row) for row in self.rows]}


def check_bundle(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    provider: str = "cpu",
    samples: int = 8,
    seed: int = 0,
) -> CheckReport:
    """Checks a bundle on random images, each with a random class.

    - outputs: every original output against the source model's, max abs difference / max abs value, 1e-6.
    - logits: finite.
    - gradients of each layer: <G, d> against (f(A + e d) - f(A - e d)) / 2 e, with f the graph from the layer's
      activations A to the explained logit and d random directions; 2e-2. Float32 and kinks (ReLU, max-pooling) bound
      the precision: the median over directions counts, and one of several steps e has to agree.
    - dependence of each layer: with one class, gradients differ between images (unless finite differences confirm that
      the graph is linear from the layer on), and saliency maps differ between images and classes.

    Args:
        path: the bundle.
        against: the source model; without it the outputs are not checked.
        provider: execution provider of the bundle.
        samples: random images, at least 2.
        seed: of images, classes and directions.

    Raises:
        ModelError, BundleError: a file cannot be used at all.
        BackendUnavailableError: the provider does not work here.
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    rng = np.random.default_rng(seed)
    inputs = random_inputs(manifest.input_shape, manifest.preprocessing, max(samples, 2), rng)
    classes = rng.permutation(np.resize(np.arange(manifest.num_classes), max(len(inputs), manifest.num_classes)))
    classes = classes[: len(inputs)].astype(np.int64)
    session = open_session(bundle.path, provider=provider)
    runs = [session.run(image[None], classes[:1], manifest.layer_names) for image in inputs]
    rows = [
        CheckRow("manifest", True, f"{len(manifest.target_layers)} layers, {manifest.num_classes} classes"),
        _check_outputs(bundle, against, inputs),
        _check_logits(runs),
    ]
    for index, name in enumerate(manifest.layer_names):
        gradients_row = (
            _check_gradients(session, name, [run.layers[index] for run in runs], int(classes[0]), rng)
            if manifest.precision == "fp32"
            else CheckRow(
                f"gradients of {name}", None, f"finite differences drown in the rounding of {manifest.precision}"
            )
        )
        gradients = [run.layers[index].gradients for run in runs]
        rows += [gradients_row, _check_dependence(name, gradients, gradients_row, manifest.precision != "fp32")]
    explainer = Explainer(bundle.path, provider=provider)
    explanations = explainer.explain(inputs, classes)
    for name in manifest.layer_names:
        rows.append(_check_maps(f"map of {name}", [explanation.layer_maps[name] for explanation in explanations]))
    rows.append(_check_maps("saliency map", [explanation.saliency_map for explanation in explanations]))
    return CheckReport(bundle.path, tuple(rows))


def _check_outputs(bundle: Bundle, against: str | os.PathLike[str] | None, inputs: FloatArray) -> CheckRow:
    name = "original outputs"
    if bundle.manifest.precision != "fp32":
        return CheckRow(name, None, f"{bundle.manifest.precision}: give the fp32 bundle with --against")
    if against is None:
        return CheckRow(name, None, "no source model given: add --against MODEL")
    manifest = bundle.manifest
    source, rewritten = open_model(against), open_model(bundle.path)
    missing = [output for output in manifest.outputs if output not in source.output_names]
    if missing:
        return CheckRow(name, False, f"{against} has no output {', '.join(missing)}: it is another model")
    worst = 0.0
    for image in inputs:
        tensor = image[None] if manifest.input_layout == "NCHW" else image[None].transpose(0, 2, 3, 1)
        feeds: dict[str, AnyArray] = {manifest.input_name: np.ascontiguousarray(tensor)}
        expected = source.run(feeds)
        actual = rewritten.run({**feeds, manifest.class_index_input: np.array([-1], np.int64)})
        worst = max(worst, *(_difference(actual[output], expected[output]) for output in manifest.outputs))
    same_file = hashlib.sha256(Path(against).read_bytes()).hexdigest() == manifest.source_sha256
    detail = f"{len(inputs)} images" + ("" if same_file else "; the source file is not the one that was exported")
    return CheckRow(name, worst <= OUTPUT_TOLERANCE, detail, worst, OUTPUT_TOLERANCE)


def _check_logits(runs: list[SessionOutputs]) -> CheckRow:
    finite = all(np.isfinite(run.logits).all() for run in runs)
    return CheckRow("logits finite", finite, f"{len(runs)} images")


def _check_gradients(
    session: Session, name: str, outputs: list[LayerOutputs], class_index: int, rng: np.random.Generator
) -> CheckRow:
    row_name = f"gradients of {name}"
    try:
        agreements = [_compare_gradients(session, layer, class_index, rng) for layer in outputs[:_DIFFERENCED_SAMPLES]]
    except UnsupportedModelError as reason:
        return CheckRow(row_name, None, str(reason))
    decided = [agreement for agreement in agreements if np.isfinite(agreement.error)]
    if not decided:
        return CheckRow(row_name, None, "the logit hardly depends on this layer: its changes drown in rounding")
    worst = max(decided, key=lambda agreement: agreement.error)
    return CheckRow(row_name, worst.error <= GRADIENT_TOLERANCE, worst.detail, worst.error, GRADIENT_TOLERANCE)


def _compare_gradients(session: Session, layer: LayerOutputs, class_index: int, rng: np.random.Generator) -> _Agreement:
    """Gradients against finite differences along three kinds of direction, until one kind agrees.

    Random directions come first, as they see any wrong gradient. The second kind leaves zeros alone: an activation of
    exactly 0 often sits on a kink (max-pooling over a ReLU's zeros), where finite differences have no meaning. Where
    rounding and kinks make the differences too uncertain for the tolerance, random directions count as coarse evidence
    only, and the third kind decides: it goes up the gradient, where the logit changes so much that small steps do.
    """
    activations, gradients = layer.activations, layer.gradients
    shape = (_DIRECTIONS, *activations.shape[1:])
    noise = rng.standard_normal(shape).astype(np.float32)
    everywhere = _agreement(session, layer, class_index, noise * _rms(activations), "random directions", _STEPS[:2])
    if everywhere.error <= GRADIENT_TOLERANCE:
        return everywhere
    nonzero = _agreement(session, layer, class_index, noise * activations, "random directions that keep zeros")
    if nonzero.error <= GRADIENT_TOLERANCE or nonzero.error > max(_COARSE_TOLERANCE, 3 * nonzero.uncertainty):
        return nonzero
    upward = rng.random(shape, dtype=np.float32) * gradients * (activations != 0)
    upward *= _rms(activations) / max(_rms(upward), _TINY)
    detail = f"directions up the gradient (random ones: {nonzero.error:.1g}, uncertain by {nonzero.uncertainty:.1g})"
    return _agreement(session, layer, class_index, upward, detail, _FINE_STEPS)


def _agreement(
    session: Session,
    layer: LayerOutputs,
    class_index: int,
    directions: FloatArray,
    kind: str,
    steps: Sequence[float] = _STEPS,
) -> _Agreement:
    """The first step that agrees, or else the best; the error is infinite where every step drowns in rounding."""
    expected = np.einsum("dchw,chw->d", directions, layer.gradients[0], dtype=np.float64)
    measured: list[AnyArray] = []
    best, best_index = float("inf"), 0
    for index, step in enumerate(steps):
        slopes, rounding = _central_differences(session, layer, directions, step, class_index)
        measured.append(slopes)
        size = max(_rms(slopes), _rms(expected))
        error = float(np.median(np.abs(slopes - expected))) / size if size > rounding else float("inf")
        if error < best:
            best, best_index = error, index
        if best <= GRADIENT_TOLERANCE:
            break
    size = max(_rms(measured[best_index]), _rms(expected)) or 1.0
    others = measured[:best_index] + measured[best_index + 1 :]
    uncertainty = min((float(np.median(np.abs(one - measured[best_index]))) / size for one in others), default=0.0)
    return _Agreement(best, uncertainty, f"{_DIRECTIONS} {kind}, step {steps[best_index]:g}")


def _central_differences(
    session: Session, layer: LayerOutputs, directions: FloatArray, step: float, class_index: int
) -> tuple[AnyArray, float]:
    """Slopes (D,) of the logit along ``directions`` (D, C, h, w), and the slope that rounding alone can make."""
    points = np.concatenate([layer.activations + np.float32(sign * step) * directions for sign in (1, -1)])
    chunk = max(1, _MAX_ELEMENTS_A_RUN // directions[0].size)
    logits = np.concatenate(
        [session.run_from_layer(layer.name, points[i : i + chunk]) for i in range(0, len(points), chunk)]
    ).astype(np.float64)
    upper, lower = np.split(logits[:, class_index], 2)
    rounding = 10 * np.finfo(np.float32).eps * np.abs(logits).max() / (2 * step)
    return (upper - lower) / (2 * step), float(rounding)


def _check_dependence(
    name: str, gradients: list[FloatArray], gradients_row: CheckRow, rounded: bool = False
) -> CheckRow:
    row_name = f"gradients of {name} differ"
    difference = max(_difference(other, gradients[0]) for other in gradients[1:])
    if difference > _SAME:
        return CheckRow(row_name, True, f"one class, {len(gradients)} images", difference)
    linear = "the same for every image"
    if gradients_row.passed:
        return CheckRow(row_name, True, f"{linear}: linear from here on, as finite differences confirm", difference)
    if rounded:
        return CheckRow(
            row_name, None, f"{linear}: the check of the fp32 bundle tells whether that is right", difference
        )
    return CheckRow(row_name, False, f"{linear}, and finite differences do not confirm it", difference)


def _check_maps(name: str, maps: list[FloatArray]) -> CheckRow:
    constant = sum(float(np.ptp(one)) == 0.0 for one in maps)
    difference = max(float(np.abs(other - maps[0]).max()) for other in maps[1:])
    detail = f"{len(maps)} images and classes" + (f", {constant} maps constant" if constant else "")
    return CheckRow(f"{name} differs", difference > _SAME, detail, difference)


def _rms(array: AnyArray) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def _difference(actual: AnyArray, expected: AnyArray) -> float:
    """max |actual - expected| / max |expected|; infinite where shapes differ or a value is not finite."""
    if actual.shape != expected.shape:
        return float("inf")
    scale = float(np.abs(expected).max(initial=0)) or 1.0
    difference = float(np.abs(actual - expected).max(initial=0)) / scale
    return difference if np.isfinite(difference) else float("inf")
