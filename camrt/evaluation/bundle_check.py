"""Is a bundle right: original outputs unchanged, gradients true, explanations dependent on the image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from camrt.bundle import Bundle, Manifest, TargetLayer
from camrt.cam import REFINECAM, make_plan
from camrt.errors import InvalidInputError
from camrt.evaluation.batch_check import check_batches
from camrt.evaluation.check_row import CheckRow, all_finite, difference
from camrt.evaluation.finite_differences import DIFFERENCED_SAMPLES, GRADIENT_TOLERANCE, check_gradients
from camrt.evaluation.output_check import check_outputs, feeds
from camrt.evaluation.second_order_check import check_second_order, has_second_order
from camrt.explainer import Explainer
from camrt.json_values import strict_json
from camrt.kernels import get_backend
from camrt.preprocess import random_inputs
from camrt.runtime import open_model, open_session
from camrt.types import AnyArray, FloatArray, IntArray, LayerOutputs

MAP_TOLERANCE = 1e-4

_SAME = 1e-6
_EXPLAINED_AT_ONCE = 8


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
        """The report, of types that JSON has; a value that is not finite becomes None."""
        rows = [asdict(row) for row in self.rows]
        return {"bundle": str(self.bundle), "passed": self.passed, "rows": strict_json(rows)}


@dataclass(slots=True)
class _LayerRuns:
    """What the runs of all images, with one class, say about one layer; of most of them no arrays are kept.

    Attributes:
        name: the layer.
        first: outputs of the first images.
        largest: difference of any image's gradients from those of the first; infinite where a number is not finite.
        finite: whether all activations and gradients are.
        products: <G, A> of each image.
        largest_sum: the largest sum of |G A| over images.
    """

    name: str
    first: list[LayerOutputs] = field(default_factory=list)
    largest: float = 0.0
    finite: bool = True
    products: list[float] = field(default_factory=list)
    largest_sum: float = 0.0

    def add(self, outputs: LayerOutputs) -> None:
        """One more image."""
        if len(self.first) < DIFFERENCED_SAMPLES:
            self.first.append(outputs)
        self.largest = max(self.largest, difference(outputs.gradients, self.first[0].gradients))
        self.finite &= all_finite(outputs.activations, outputs.gradients)
        if self.finite:
            products = outputs.gradients[0].astype(np.float64) * outputs.activations[0]
            self.products.append(float(products.sum()))
            self.largest_sum = max(self.largest_sum, float(np.abs(products).sum()))


def check_bundle(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    provider: str = "cpu",
    samples: int = 8,
    seed: int = 0,
) -> CheckReport:
    """Checks a bundle on random images, each with a random class.

    - outputs: every original output against the source model's, max abs difference / max abs value, 1e-6; see
      camrt.evaluation.output_check.
    - logits, activations and gradients: finite.
    - gradients of each layer: <G, d> against (f(A + e d) - f(A - e d)) / 2 e, with f the graph from the layer's
      activations A to the explained logit and d random directions; 2e-2. Float32 and kinks (ReLU, max-pooling) bound
      the precision: the median over directions counts, and one of several steps e has to agree.
    - batches: several classes of one image, and several images, in one run; see camrt.evaluation.batch_check.
    - dependence of each layer: with one class, gradients differ between images, unless the graph is linear from the
      layer on. Finite differences confirm that; where they cannot be made, logits that follow the activations do. A
      linear head of the manifest has to be confirmed. Saliency maps are finite, no more than half of them constant, and
      the others differ between images and classes.
    - second derivatives, where the bundle has them: see camrt.evaluation.second_order_check.
    - the map in the graph, where the bundle has one: what the native kernels make of the activations and gradients of
      the same run on the CPU provider, max abs difference, 1e-4; and the same layers degenerate.

    Args:
        path: the bundle.
        against: the source model; without it the outputs are not checked.
        provider: execution provider of the bundle.
        samples: random images, at least 2.
        seed: of images, classes and directions, 0 or more.

    Raises:
        InvalidInputError: the seed is negative.
        ModelError, BundleError: a file cannot be used at all.
        BackendUnavailableError: the provider does not work here.
    """
    if seed < 0:
        raise InvalidInputError(f"seed is {seed}.", "Give 0 or more.")
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    rng = np.random.default_rng(seed)
    inputs = random_inputs(manifest.input_shape, manifest.preprocessing, max(samples, 2), rng)
    classes = rng.permutation(np.resize(np.arange(manifest.num_classes), max(len(inputs), manifest.num_classes)))
    classes = classes[: len(inputs)].astype(np.int64)
    session = open_session(bundle.path, provider=provider)
    logits, layers = [], [_LayerRuns(name) for name in manifest.layer_names]
    for image in inputs:
        run = session.run(image[None], classes[:1], manifest.layer_names)
        logits.append(run.logits[0])
        for layer, outputs in zip(layers, run.layers, strict=True):
            layer.add(outputs)
    rows = [
        CheckRow("manifest", True, f"{len(manifest.target_layers)} layers, {manifest.num_classes} classes"),
        check_outputs(bundle, against, inputs),
        _check_logits(logits),
        _check_layers_finite(layers, len(inputs)),
    ]
    exact, class_index = manifest.precision == "fp32", int(classes[0])
    explained = np.array([one[class_index] for one in logits], np.float64)
    rows += check_batches(session, inputs, classes, exact and provider == "cpu")
    for layer in layers:
        row_name = f"gradients of {layer.name}"
        gradients_row = (
            check_gradients(session, row_name, layer.first, lambda logits: logits[:, class_index], rng)
            if exact
            else CheckRow(row_name, None, f"finite differences drown in the rounding of {manifest.precision}")
        )
        rows += [gradients_row, _check_dependence(manifest.layer(layer.name), layer, explained, gradients_row, exact)]
    if has_second_order(manifest):
        rows += check_second_order(session, inputs, class_index, rng) if exact else [_unchecked_second_order(manifest)]
    if manifest.saliency is not None:
        rows.append(_check_map_in_graph(bundle, inputs, classes))
    rows += _check_explanations(Explainer(bundle.path, provider=provider), inputs, classes)
    return CheckReport(bundle.path, tuple(rows))


def _unchecked_second_order(manifest: Manifest) -> CheckRow:
    return CheckRow("second derivatives", None, f"finite differences drown in the rounding of {manifest.precision}")


def _check_explanations(explainer: Explainer, inputs: FloatArray, classes: IntArray) -> list[CheckRow]:
    names = explainer.manifest.layer_names
    maps: dict[str, list[FloatArray]] = {name: [] for name in (*(f"map of {name}" for name in names), "saliency map")}
    for start in range(0, len(inputs), _EXPLAINED_AT_ONCE):
        part = slice(start, start + _EXPLAINED_AT_ONCE)
        try:
            explanations = explainer.explain(inputs[part], classes[part])
        except InvalidInputError as error:  # logits that mean nothing
            return [CheckRow("saliency map differs", False, str(error))]
        for explanation in explanations:
            for name in names:
                maps[f"map of {name}"].append(explanation.layer_maps[name])
            maps["saliency map"].append(explanation.saliency_map)
    return [_check_maps(name, found) for name, found in maps.items()]


def _check_map_in_graph(bundle: Bundle, inputs: FloatArray, classes: IntArray) -> CheckRow:
    manifest, saliency = bundle.manifest, bundle.manifest.saliency
    assert saliency is not None
    plan = make_plan(manifest, REFINECAM, saliency.base_method, saliency.fusion, None, saliency.order)
    model, kernels = open_model(bundle.path), get_backend("native")
    worst, same_flags = 0.0, True
    for image, class_index in zip(inputs, classes, strict=True):
        found = model.run({**feeds(manifest, image), manifest.class_index_input: np.array([class_index])})
        arrays = [[found[name].astype(np.float32) for name in layer.arrays(1)] for layer in manifest.target_layers]
        outputs = [LayerOutputs(name, *pair) for name, pair in zip(manifest.layer_names, arrays, strict=True)]
        maps = plan.base.layer_maps(kernels, outputs)
        expected, degenerate = kernels.fuse_layers(maps, manifest.input_shape[1:], plan.fusion, plan.order)
        worst = max(worst, _largest(found[saliency.output] - expected))
        same_flags &= np.array_equal(found[saliency.degenerate], degenerate)
    made = f"{len(inputs)} images, {saliency.base_method}, {saliency.fusion}, {saliency.order}"
    detail = made if same_flags else f"{made}; other layers are degenerate"
    return CheckRow("map in the graph", same_flags and worst <= MAP_TOLERANCE, detail, worst, MAP_TOLERANCE)


def _largest(differences: AnyArray) -> float:
    """Largest magnitude; infinite where a number is not finite."""
    return float(np.abs(differences).max()) if all_finite(differences) else float("inf")


def _check_logits(logits: Sequence[AnyArray]) -> CheckRow:
    return CheckRow("logits finite", all_finite(*logits), f"{len(logits)} images")


def _check_layers_finite(layers: Sequence[_LayerRuns], images: int) -> CheckRow:
    wrong = [layer.name for layer in layers if not layer.finite]
    detail = f"{images} images" + (f", not at {', '.join(wrong)}" if wrong else f", {len(layers)} layers")
    return CheckRow("activations and gradients finite", not wrong, detail)


def _check_dependence(
    layer: TargetLayer, runs: _LayerRuns, logits: AnyArray, gradients_row: CheckRow, exact: bool
) -> CheckRow:
    """Whether the gradients of one class depend on the image, or rightly do not.

    Args:
        layer: of the manifest.
        runs: of every image.
        logits: (N,) of the class, float64.
        gradients_row: what finite differences said.
        exact: whether the bundle is float32.
    """
    row_name, largest = f"gradients of {layer.name} differ", runs.largest
    if not (runs.finite and np.isfinite(largest)):
        return CheckRow(row_name, False, "activations or gradients are not finite", largest)
    if largest > _SAME:
        return CheckRow(row_name, True, f"one class, {len(logits)} images", largest)
    same = "the same for every image"
    linear = f"{same}: linear from here on, as"
    if gradients_row.passed:
        return CheckRow(row_name, True, f"{linear} finite differences confirm", largest)
    if gradients_row.passed is False:
        return CheckRow(row_name, False, f"{same}, and finite differences do not confirm it", largest)
    if not exact:
        return CheckRow(row_name, None, f"{same}: the check of the fp32 bundle tells whether that is right", largest)
    if _follow(logits, runs):
        return CheckRow(row_name, True, f"{linear} logits that follow the activations confirm", largest)
    if layer.linear_head:
        detail = f"{same}, as behind a linear head, but the logits do not follow the activations"
        return CheckRow(row_name, False, detail, largest)
    return CheckRow(row_name, None, f"{same}; finite differences, which could confirm it, cannot be made", largest)


def _follow(logits: AnyArray, runs: _LayerRuns) -> bool:
    """Whether logit - <G, A> is one number for all images: what it is where the logit is linear in A."""
    if not all_finite(logits):
        return False
    rounding = 10 * np.finfo(np.float32).eps * runs.largest_sum
    return bool(np.ptp(logits - runs.products) <= GRADIENT_TOLERANCE * np.ptp(logits) + rounding)


def _check_maps(name: str, maps: Sequence[FloatArray]) -> CheckRow:
    """Whether maps are finite, at most half of them constant, and the others not all the same."""
    row_name, detail = f"{name} differs", f"{len(maps)} images and classes"
    broken = sum(not all_finite(one) for one in maps)
    if broken:
        return CheckRow(row_name, False, f"{detail}, {broken} maps not finite")
    varied = [one for one in maps if np.ptp(one) > 0]
    constant = len(maps) - len(varied)
    detail += f", {constant} maps constant" if constant else ""
    if 2 * constant > len(maps):
        return CheckRow(row_name, False, detail)
    if len(varied) < 2:
        return CheckRow(row_name, None, f"{detail}: with more samples there would be two to compare")
    largest = max(_largest(other - varied[0]) for other in varied[1:])
    return CheckRow(row_name, largest > _SAME, detail, largest)
