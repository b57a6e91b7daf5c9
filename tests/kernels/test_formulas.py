"""The reference against values worked out by hand and against direct float64 formulas."""

from __future__ import annotations

import numpy as np
import pytest

from camrt.kernels import KernelBackend

A = np.float32([[[[1, 2], [3, 4]]]])  # S = 10
G = np.float32([[[[1, -1], [0, 2]]]])


@pytest.mark.parametrize(
    ("rule", "weight"),
    [
        ("gradcam", 0.5),
        # G = 1: 1 / (2 + 10); G = 2: 2 * 4 / (8 + 80); the other gradients are not positive.
        ("gradcam++", 1 / 12 + 8 / 88),
        # 1 - 2 + 0 + 8 = 7
        ("xgradcam", 0.7),
    ],
)
def test_channel_weights(any_backend: KernelBackend, rule, weight):
    np.testing.assert_allclose(any_backend.channel_weights(A, G, rule), [[weight]], rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "weights"),
    [
        ("hirescam", [[1, -1], [0, 2]]),
        ("layercam", [[1, 0], [0, 2]]),
        # A is negative in the first column here, so the sign of G A is not that of G.
        ("gradcam_elementwise", [[0, 0], [0, 2]]),
    ],
)
def test_pixel_weights(any_backend: KernelBackend, rule, weights):
    activations = A * np.float32([-1, 1])
    np.testing.assert_array_equal(any_backend.pixel_weights(activations, G, rule), [[weights]])


def test_gradcam_elementwise_weight_keeps_products_of_two_negatives(any_backend: KernelBackend):
    assert any_backend.pixel_weights(-A, -np.abs(G), "gradcam_elementwise")[0, 0, 0, 0] == -1


def test_weighted_sum_and_layer_map(any_backend: KernelBackend):
    activations = np.float32([[[[1, 2, 3]], [[4, 4, 0]]]])
    weights = np.float32([[1, -0.5], [2, 0]])
    np.testing.assert_allclose(any_backend.weighted_sum(activations, weights), [[[-1, 0, 3]], [[2, 4, 6]]])
    # hirescam of G = A: 1 + 16, 4 + 16, 9 + 0, then min-max.
    expected = np.array([[[8 / 11, 1, 0]]])
    np.testing.assert_allclose(any_backend.layer_map(activations, activations, "hirescam"), expected, rtol=1e-6)


def test_layer_map_applies_relu_before_min_max(any_backend: KernelBackend):
    activations = np.float32([[[[1, 2, 3, 4]]]])
    gradients = np.float32([[[[-1, -1, 1, 1]]]])
    expected = [[[0, 0, 0.75, 1]]]
    np.testing.assert_allclose(any_backend.layer_map(activations, gradients, "hirescam"), expected, rtol=1e-6)


def _normalized(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min() + 1e-7)


FORMULAS = {
    "product": lambda m: np.prod(m, axis=0),
    "geometric": lambda m: np.prod(m, axis=0) ** (1 / len(m)),
    "log_exp": lambda m: (np.log(len(m)) + 1) / np.log(np.exp(1 / m).sum(axis=0)),
    "exp_mean": lambda m: 1 / np.log(np.exp(1 / m).mean(axis=0)),
    "mean": lambda m: m.mean(axis=0),
    "max": lambda m: m.max(axis=0),
}


@pytest.mark.parametrize("fusion", FORMULAS)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fusions(any_backend: KernelBackend, fusion, count):
    rng = np.random.default_rng(1)
    layers = rng.uniform(0.02, 1, (count, 1, 8, 9)).astype(np.float32)
    layers[:, 0, 0, 0], layers[:, 0, 7, 8] = 0, 1  # already normalized, whatever the layer
    values = layers[:, 0].astype(np.float64) / (1 + 1e-7) ** 2
    with np.errstate(all="ignore"):
        fused = np.where(values.min(axis=0) > 0, FORMULAS[fusion](values), 0)
    if fusion in ("mean", "max"):
        fused = FORMULAS[fusion](values)
    result, degenerate = any_backend.fuse_layers(list(layers), (8, 9), fusion)
    np.testing.assert_allclose(result[0], _normalized(fused), atol=1e-5)
    assert not degenerate.any()


@pytest.mark.parametrize("fusion", ["log_exp", "exp_mean"])
def test_kolmogorov_means_of_tiny_values_do_not_overflow(any_backend: KernelBackend, fusion):
    layers = [np.float32([[[0, 1e-30, 1e-6, 0.5, 1]]]), np.float32([[[0, 1e-40, 1, 1e-3, 1]]])]
    result, _ = any_backend.fuse_layers(layers, (1, 5), fusion)
    # Where one value is tiny, the mean is near (1 + ln L) times it, or it alone.
    share = np.log(2) + 1 if fusion == "log_exp" else 1
    np.testing.assert_allclose(result, [[[0, 0, 1e-6 * share, 1e-3 * share, 1]]], rtol=2e-3, atol=1e-6)


def test_values_lie_in_the_unit_interval(any_backend: KernelBackend):
    rng = np.random.default_rng(2)
    for scale in (1e-30, 1e-3, 1, 1e30):
        layers = [(rng.random((2, size, size)) * scale).astype(np.float32) for size in (13, 6)]
        for fusion in FORMULAS:
            result, _ = any_backend.fuse_layers(layers, (50, 51), fusion)
            assert result.min() >= 0
            assert result.max() <= 1


def test_warp_affine_edges(any_backend: KernelBackend):
    maps = np.float32([[[1, 3]]])
    # Centres at x = -0.25, 0.25, 0.75, 1.25, 1.75, 2.25: the first and the last lie outside [0, 2].
    matrix = np.float32([[0.5, 0, -0.5], [0, 1, 0]])
    np.testing.assert_allclose(any_backend.warp_affine(maps, matrix, (1, 6)), [[[0, 1, 1.5, 2.5, 3, 0]]])


def test_warp_affine_undoes_a_crop(any_backend: KernelBackend):
    maps = np.random.default_rng(3).random((1, 6, 8), dtype=np.float32)
    shifted = any_backend.warp_affine(maps, np.float32([[1, 0, -2], [0, 1, -3]]), (12, 14))
    np.testing.assert_array_equal(shifted[:, 3:9, 2:10], maps)
    assert np.count_nonzero(shifted) == np.count_nonzero(maps)
