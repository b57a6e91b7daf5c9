"""Saliency maps are pytorch-grad-cam's, and torch-cam's in its own order of operations."""

from __future__ import annotations

import numpy as np
import pytest

from camrt import Explanation
from camrt.kernels import get_backend
from camrt.types import FloatArray
from tests import oracles
from tests.parity.conftest import THREADS, Exported

SMALLEST_DEVIATION = 0.01


def explain(exported: Exported, class_set: str, **options: object) -> list[Explanation]:
    classes = -1 if class_set == "predicted" else exported.classes(class_set)
    explanations = exported.explainer.explain(exported.inputs, classes, **options)
    assert all(not explanation.degenerate for explanation in explanations)
    return explanations


def saliency(explanations: list[Explanation]) -> FloatArray:
    return np.stack([explanation.saliency_map for explanation in explanations])


def assert_equal(actual: FloatArray, exact: oracles.Array, rounded: oracles.Array) -> None:
    """Within the tolerance of each pair of oracle maps, image by image; maps that say nothing prove nothing."""
    assert actual.shape == exact.shape
    for ours, theirs, single in zip(actual, exact, rounded, strict=True):
        assert theirs.std() > SMALLEST_DEVIATION
        assert np.abs(ours - theirs).max() <= oracles.tolerance(single, theirs)


@pytest.mark.parametrize("method", oracles.METHODS)
def test_refined_map(exported: Exported, method: str, class_set: str) -> None:
    explanations = explain(exported, class_set, method="refinecam", base_method=method)
    exact, rounded = (exported.maps(method, class_set, double=double).refined for double in (True, False))
    assert tuple(e.class_index for e in explanations) == exported.backward(class_set, double=True).class_indices
    assert_equal(saliency(explanations), exact, rounded)


@pytest.mark.parametrize("method", oracles.METHODS)
def test_map_of_every_layer(exported: Exported, method: str, class_set: str) -> None:
    explanations = explain(exported, class_set, method="refinecam", base_method=method)
    exact, rounded = (exported.maps(method, class_set, double=double).layers for double in (True, False))
    for layer in exported.model.target_layers:
        at_layer_size = np.stack([explanation.layer_maps[layer] for explanation in explanations])
        enlarged, _ = get_backend("native", THREADS).fuse_layers([at_layer_size], exported.size)
        assert_equal(enlarged, exact[layer], rounded[layer])


@pytest.mark.parametrize("method", oracles.METHODS)
def test_method_without_refinement_explains_the_coarsest_layer(exported: Exported, method: str) -> None:
    coarsest = exported.model.target_layers[0]
    exact, rounded = (exported.maps(method, "given", double=double).layers[coarsest] for double in (True, False))
    explanations = explain(exported, "given", method=method)
    assert all(tuple(explanation.layer_maps) == (coarsest,) for explanation in explanations)
    assert_equal(saliency(explanations), exact, rounded)


@pytest.mark.parametrize("method", oracles.TORCHCAM_METHODS)
def test_resize_once_is_torchcams_refined_map(exported: Exported, method: str) -> None:
    layers, classes = exported.model.target_layers, exported.classes("given")
    exact, rounded = (
        oracles.torchcam_map(module, layers, exported.inputs, classes, method)
        for module in (exported.double, exported.model.module)
    )
    finest = exact.shape[1:]
    explanations = explain(exported, "given", base_method=method, order="resize_once", output_size=finest)
    assert_equal(saliency(explanations), exact, rounded)


def test_three_classes_of_one_image_in_one_run(exported: Exported) -> None:
    inputs = exported.inputs[:1]
    classes = [exported.classes("given")[0], -1, -2]
    together = exported.explainer.explain(inputs, classes)
    apart = [exported.explainer.explain(inputs, k)[0] for k in classes]
    for one, other in zip(together, apart, strict=True):
        assert one.class_index == other.class_index
        assert np.abs(one.saliency_map - other.saliency_map).max() <= oracles.TOLERANCE_FLOOR
