from __future__ import annotations

import numpy as np
import pytest

from camrt.cam import CAM_METHODS, MapRequest
from camrt.cam.finer import GAMMA, NEAREST, collect_finer
from camrt.errors import ClassIndexError, MethodUnavailableError
from tests.cam.linear_session import CLASSES, LinearSession, images


def expected_gradient(session: LinearSession, image: np.ndarray, k: int, side: int) -> np.ndarray:
    """(C,) of the value, the same at each of side x side positions."""
    logits = session.predict(image[None])[0].astype(np.float64)
    near = sorted((j for j in range(len(logits)) if j != k), key=lambda j: abs(logits[j] - logits[k]))[:NEAREST]
    return (session.weights[k] - GAMMA * session.weights[near].mean(axis=0)) / side**2


def check(session: LinearSession, inputs: np.ndarray, classes: list[int]) -> None:
    outputs = collect_finer(session, MapRequest(inputs, np.array(classes), ("a", "b")))
    logits = session.predict(inputs)
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-6)
    for layer, side in zip(outputs.layers, (2, 4), strict=True):
        assert layer.activations.shape == (len(inputs), 4, side, side)
        assert layer.gradients.shape == (len(classes), 4, side, side)
        for m, k in enumerate(outputs.class_indices):
            n = m if len(inputs) > 1 else 0
            assert k == (classes[m] if classes[m] >= 0 else np.argsort(-logits[n])[-classes[m] - 1])
            exact = expected_gradient(session, inputs[n], int(k), side)
            np.testing.assert_allclose(layer.gradients[m], exact[:, None, None] * np.ones((4, side, side)), atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [[-1], [2], [0, -2, 4, -1], list(range(CLASSES)), [1, 1]])
def test_classes_of_one_image(classes: list[int], seed: int) -> None:
    check(LinearSession(seed), images(1), classes)


def test_one_class_an_image() -> None:
    check(LinearSession(), images(3), [1, -1, 4])


def test_more_classes_than_one_run_takes() -> None:
    session = LinearSession(classes=40)
    check(session, images(1), list(range(40)))
    assert max(count for kind, count in session.calls if kind == "run") == 16


def test_the_predicted_class_takes_one_run_and_no_prediction() -> None:
    session = LinearSession()
    collect_finer(session, MapRequest(images(1), np.array([-1]), ("a",)))
    assert session.calls == [("run", 1 + NEAREST)]


def test_a_model_of_two_classes_and_one_of_one() -> None:
    check(LinearSession(classes=2), images(2), [0, -1])
    with pytest.raises(MethodUnavailableError, match="only one"):
        CAM_METHODS["finercam"].require(LinearSession(classes=1).manifest, ("a",))


@pytest.mark.parametrize(("count", "classes"), [(1, [5]), (1, [-6]), (2, [0, 1, 2]), (1, [])])
def test_refusals(count: int, classes: list[int]) -> None:
    with pytest.raises(ClassIndexError):
        collect_finer(LinearSession(), MapRequest(images(count), np.array(classes), ("a",)))
