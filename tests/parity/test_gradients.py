"""Activations and gradients of the rewritten graph are torch.autograd's."""

from __future__ import annotations

import numpy as np
import pytest

from camrt.types import AnyArray
from tests.parity.conftest import Exported

GRADIENT_TOLERANCE = 1e-5


def relative_error(actual: AnyArray, expected: AnyArray) -> float:
    """Largest absolute error over the largest absolute value."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def test_layers_are_the_requested_modules_coarse_to_fine(exported: Exported) -> None:
    oracle = exported.backward("given", double=False)
    shapes = [layer.shape for layer in exported.bundle.manifest.target_layers]
    assert exported.bundle.manifest.layer_names == exported.model.target_layers
    assert shapes == [oracle.activations[name].shape[1:] for name in exported.model.target_layers]


def test_gradients_equal_autograd(exported: Exported, class_set: str) -> None:
    oracle = exported.backward(class_set, double=False)
    classes = np.asarray(exported.classes(class_set), np.int64)
    outputs = exported.session.run(exported.inputs, classes, exported.bundle.manifest.layer_names)
    assert tuple(outputs.class_indices) == oracle.class_indices
    errors = {layer.name: relative_error(layer.gradients, oracle.gradients[layer.name]) for layer in outputs.layers}
    assert max(errors.values()) <= GRADIENT_TOLERANCE, errors


def test_activations_equal_torch(exported: Exported) -> None:
    oracle = exported.backward("given", double=False)
    classes = np.asarray(exported.classes("given"), np.int64)
    outputs = exported.session.run(exported.inputs, classes, exported.bundle.manifest.layer_names)
    errors = {layer.name: relative_error(layer.activations, oracle.activations[layer.name]) for layer in outputs.layers}
    assert max(errors.values()) <= GRADIENT_TOLERANCE, errors


def test_one_layer_alone_gives_the_same(exported: Exported) -> None:
    classes = np.asarray(exported.classes("given"), np.int64)
    names = exported.bundle.manifest.layer_names
    together = exported.session.run(exported.inputs, classes, names).layers[0]
    alone = exported.session.run(exported.inputs, classes, names[:1]).layers
    assert [layer.name for layer in alone] == [names[0]]
    assert relative_error(alone[0].gradients, together.gradients) <= GRADIENT_TOLERANCE
    assert relative_error(alone[0].activations, together.activations) <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("image", [0, 1])
def test_three_classes_of_one_image_in_one_run(exported: Exported, image: int) -> None:
    names = exported.bundle.manifest.layer_names
    inputs = exported.inputs[image : image + 1]
    classes = np.asarray([exported.classes("given")[image], -1, -2], np.int64)
    together = exported.session.run(inputs, classes, names)
    apart = [exported.session.run(inputs, classes[m : m + 1], names) for m in range(3)]
    assert together.logits.shape[0] == 1
    assert [int(k) for k in together.class_indices] == [int(run.class_indices[0]) for run in apart]
    for index, layer in enumerate(together.layers):
        assert layer.activations.shape[0] == 1
        assert layer.gradients.shape[0] == 3
        for m, run in enumerate(apart):
            assert relative_error(layer.gradients[m : m + 1], run.layers[index].gradients) <= GRADIENT_TOLERANCE
