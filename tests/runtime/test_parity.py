"""The figures that decide whether an engine may run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from camrt.runtime.parity import LARGEST_LOGIT_ERROR, LEAST_CORRELATION, compare, correlation
from camrt.types import LayerOutputs, SessionOutputs


def outputs(seed: int = 0) -> SessionOutputs:
    rng = np.random.default_rng(seed)
    layers = tuple(
        LayerOutputs(
            name, np.abs(rng.standard_normal((2, 4, 6, 5), np.float32)), rng.standard_normal((2, 4, 6, 5), np.float32)
        )
        for name in ("a", "b")
    )
    return SessionOutputs(np.array([[1, 3, 2], [4, 0, 1]], np.float32), np.array([1, 0]), layers)


def test_the_same_is_the_same() -> None:
    parity = compare(outputs(), outputs(), "tensorrt", 0.99, 0.01)
    assert parity.passed
    assert parity.correlations == pytest.approx({"a": 1.0, "b": 1.0})
    assert (parity.logit_error, parity.top1_agreement) == (0.0, 1.0)


def test_one_image_of_one_layer_is_enough_to_fail() -> None:
    expected = outputs()
    gradients = expected.layers[1].gradients.copy()
    gradients[1] = gradients[1, ::-1]
    found = replace(expected, layers=(expected.layers[0], replace(expected.layers[1], gradients=gradients)))
    parity = compare(found, expected, "tensorrt", 0.98, 0.01)
    assert parity.correlations["a"] == pytest.approx(1.0)
    assert parity.correlations["b"] < 0.98
    assert "'b' correlate by" in parity.reason
    assert not parity.passed


def test_logits_are_compared() -> None:
    expected = outputs()
    found = replace(expected, logits=np.array([[1, 2, 2.5], [4, 0, 1]], np.float32))
    parity = compare(found, expected, "tensorrt", 0.99, 0.01)
    assert parity.logit_error == pytest.approx(0.25)
    assert parity.top1_agreement == 0.5
    assert parity.reason == "logits are off by 0.25 of the largest, and 0.01 is allowed"
    assert not parity.passed
    assert compare(found, expected, "tensorrt", 0.99, 0.25).passed
    assert not compare(replace(expected, logits=expected.logits * np.nan), expected, "tensorrt", 0.99, 0.25).passed


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_none_fails(number: float) -> None:
    expected = outputs()
    gradients = expected.layers[0].gradients.copy()
    gradients[0, 0, 0, 0] = number
    found = replace(expected, layers=(replace(expected.layers[0], gradients=gradients), expected.layers[1]))
    assert not compare(found, expected, "tensorrt", 0.98, 0.01).passed


def test_correlation() -> None:
    line = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert correlation(line, 2 * line + 5) == pytest.approx(1.0)
    assert correlation(line, -line) == pytest.approx(-1.0)
    assert correlation(np.ones(4), np.zeros(4)) == 1.0
    assert correlation(line, np.ones_like(line)) == 0.0


def test_thresholds() -> None:
    assert LEAST_CORRELATION["fp16"] == 0.99
    assert LEAST_CORRELATION["int8"] == 0.98
    assert LARGEST_LOGIT_ERROR["fp32"] == LARGEST_LOGIT_ERROR["fp16"] == 0.01
