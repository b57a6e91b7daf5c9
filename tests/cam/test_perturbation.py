from __future__ import annotations

import numpy as np
import pytest
import torch

from camrt.cam import CAM_METHODS, MapRequest, Perturbation
from camrt.cam.perturbation import collect_ablations, collect_scores
from camrt.errors import InvalidInputError
from camrt.kernels import get_backend
from camrt.types import FloatArray
from tests.cam.linear_session import LinearSession, images


def torch_scores(session: LinearSession, image: FloatArray, layer: str, classes: list[int]) -> np.ndarray:
    """Weights (M, C) by torch's own resize and softmax, float64."""
    activations = torch.from_numpy(session.activations(image[None], layer)).double()
    enlarged = torch.nn.functional.interpolate(activations, (8, 8), mode="bilinear", align_corners=True)[0]
    low, high = enlarged.amin((1, 2), keepdim=True), enlarged.amax((1, 2), keepdim=True)
    masks = ((enlarged - low) / (high - low + 1e-8)).numpy()
    logits = session.predict((image[None] * masks[:, None]).astype(np.float32))[:, classes]
    return torch.softmax(torch.from_numpy(logits).double(), dim=0).numpy().T


@pytest.mark.parametrize("memory", [1, 2000, 1 << 20])
def test_score_weights(memory: int) -> None:
    session, inputs = LinearSession(), images(2)
    request = MapRequest(inputs, np.array([3, -1]), ("a", "b"), Perturbation(memory_bytes=memory))
    outputs = collect_scores(session, request)
    np.testing.assert_array_equal(outputs.class_indices, [3, session.predict(inputs)[1].argmax()])
    for layer in outputs.layers:
        assert layer.channel_weights is not None
        for n, k in enumerate(outputs.class_indices):
            exact = torch_scores(session, inputs[n], layer.name, [int(k)])[0]
            np.testing.assert_allclose(layer.channel_weights[n], exact, rtol=0, atol=1e-6)


def test_ablation_weights() -> None:
    session, inputs = LinearSession(), images(1)
    classes = [0, 4, -1]
    outputs = collect_ablations(session, MapRequest(inputs, np.array(classes), ("a",)))
    (layer,) = outputs.layers
    y = session.predict(inputs)[0].astype(np.float64)[outputs.class_indices]
    # Linear: without channel c the logit lacks W[k, c] mean(A_c).
    drops = session.weights[outputs.class_indices] * layer.activations[0].mean(axis=(1, 2))
    assert layer.channel_weights is not None
    np.testing.assert_allclose(layer.channel_weights, drops / y[:, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("collect", [collect_scores, collect_ablations])
def test_only_the_channels_that_vary_most(collect) -> None:  # type: ignore[no-untyped-def]
    session, inputs = LinearSession(), images(1)
    deviation = session.activations(inputs, "b")[0].std(axis=(1, 2))
    outputs = collect(session, MapRequest(inputs, np.array([2]), ("b",), Perturbation(channels=2)))
    weights = outputs.layers[0].channel_weights[0]
    assert set(np.flatnonzero(weights)) == set(np.argsort(-deviation)[:2])


@pytest.mark.parametrize(("collect", "item"), [(collect_scores, 3 * 64 * 4), (collect_ablations, 4 * 16 * 4)])
def test_runs_hold_what_the_memory_allows(collect, item: int) -> None:  # type: ignore[no-untyped-def]
    session, seen = LinearSession(), []
    limits = Perturbation(memory_bytes=3 * item, progress=lambda done, total: seen.append((done, total)))
    collect(session, MapRequest(images(1), np.array([0]), ("b",), limits))
    assert seen == [(3, 4), (4, 4)]
    assert [count for _, count in session.calls][-2:] == [3, 1]


def test_several_classes_of_one_image_share_the_runs() -> None:
    one, three = LinearSession(), LinearSession()
    collect_scores(one, MapRequest(images(1), np.array([0]), ("a",)))
    collect_scores(three, MapRequest(images(1), np.array([0, 1, 2]), ("a",)))
    assert [call for call in one.calls if call[0] == "predict"] == [
        call for call in three.calls if call[0] == "predict"
    ]


def test_a_logit_of_zero_is_no_division_by_zero_but_a_map_that_says_nothing() -> None:
    session = LinearSession()
    session.weights[0], session.bias[0] = 0, 0
    outputs = collect_ablations(session, MapRequest(images(1), np.array([0]), ("a",)))
    (maps,) = CAM_METHODS["ablationcam"].maps(get_backend("reference"), outputs)
    assert np.isnan(maps).all()


def test_the_same_every_time() -> None:
    first, second = (
        collect_scores(LinearSession(), MapRequest(images(2), np.array([0, 1]), ("a", "b"))).layers for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.channel_weights, other.channel_weights)


@pytest.mark.parametrize("limits", [{"channels": 0}, {"memory_bytes": 0}])
def test_limits_that_allow_nothing(limits: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError):
        Perturbation(**limits)
