"""The oracles themselves: what the other parity tests rely on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import oracles
from tests.models import make_inputs, make_model

SIZE = 64


@pytest.mark.parametrize("architecture", ["resnet18", pytest.param("convnext_tiny", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", oracles.METHODS)
def test_replayed_maps_are_those_of_the_real_model(architecture: str, method: str) -> None:
    model = make_model(architecture, 0, SIZE, 20)
    inputs = make_inputs(2, SIZE, 3)
    backward = oracles.autograd(model.module, model.target_layers, inputs, [3, -1])
    replayed = oracles.replayed_maps(backward, method, (SIZE, SIZE))
    direct = oracles.direct_maps(model.module, model.target_layers, inputs, backward.class_indices, method)
    np.testing.assert_allclose(replayed.refined, direct.refined, rtol=0, atol=1e-6)
    for layer in model.target_layers:
        np.testing.assert_allclose(replayed.layers[layer], direct.layers[layer], rtol=0, atol=1e-6)


def test_autograd_agrees_with_central_differences() -> None:
    model = make_model("convnext_tiny", 0, SIZE, 20)
    double = oracles.in_double(model.module)
    inputs = make_inputs(1, SIZE, 3)
    layer = "features.5"
    backward = oracles.autograd(double, [layer], inputs, [3])
    direction = torch.from_numpy(np.random.default_rng(0).standard_normal(backward.gradients[layer].shape))
    step = 1e-5
    scores = []
    for sign in (1.0, -1.0):
        hook = double.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, sign=sign: output + sign * step * direction
        )
        scores.append(double(torch.from_numpy(inputs).double())[0, 3].item())
        hook.remove()
    expected = (scores[0] - scores[1]) / (2 * step)
    actual = float((backward.gradients[layer] * direction.numpy()).sum())
    assert actual == pytest.approx(expected, rel=1e-6)


def test_ranks_resolve_to_the_highest_logits() -> None:
    logits = np.array([[1.0, 3.0, 2.0], [5.0, 4.0, 6.0]])
    assert oracles.resolve_classes(logits, [-1, -2]) == (1, 0)
    assert oracles.resolve_classes(logits, [2, -3]) == (2, 1)


def test_tolerance_follows_the_oracles_rounding_between_its_limits() -> None:
    exact = np.zeros((2, 2))
    assert oracles.tolerance(exact, exact) == oracles.TOLERANCE_FLOOR
    assert oracles.tolerance(exact + 1e-4, exact) == pytest.approx(4e-4)
    assert oracles.tolerance(exact + 1.0, exact) == oracles.TOLERANCE_CEILING
