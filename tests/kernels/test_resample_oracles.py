"""Resampling against OpenCV and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from camrt.kernels import KernelBackend
from tests.kernels.arrays import maps

cv2 = pytest.importorskip("cv2")
torch = pytest.importorskip("torch")

SIZES = [
    ((7, 7), (224, 224)),
    ((14, 9), (31, 33)),
    ((1, 1), (5, 4)),
    ((30, 41), (7, 10)),
    ((8, 8), (8, 8)),
    ((3, 50), (50, 3)),
]


@pytest.mark.parametrize(("size", "output_size"), SIZES, ids=str)
def test_resize(any_backend: KernelBackend, size, output_size):
    values = maps(1, 3, *size)
    result = any_backend.resize(values, output_size)
    by_cv2 = np.stack([cv2.resize(m, output_size[::-1], interpolation=cv2.INTER_LINEAR) for m in values])
    by_torch = torch.nn.functional.interpolate(torch.from_numpy(values)[None], output_size, mode="bilinear")[0]
    np.testing.assert_allclose(result, by_cv2, atol=1e-5)
    np.testing.assert_allclose(result, by_torch.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "matrix", [[[0.4, 0, -0.7], [0, 0.3, 1]], [[0.3, 0.2, -0.5], [-0.2, 0.4, 3]], [[-0.5, 0, 9], [0, 0.9, -1]]], ids=str
)
def test_warp_affine(any_backend: KernelBackend, matrix):
    values = maps(2, 2, 11, 9)
    height, width = 20, 27
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    source = np.float32(matrix).astype(np.float64) @ np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
    u, v = source.reshape(2, height, width)
    # grid_sample without align_corners: -1 and 1 are the outer edges of the image.
    grid = torch.from_numpy(np.stack([2 * u / 9 - 1, 2 * v / 11 - 1], axis=-1)).expand(2, -1, -1, -1)
    sampled = torch.nn.functional.grid_sample(
        torch.from_numpy(values).double()[:, None], grid, padding_mode="border", align_corners=False
    )[:, 0].numpy()
    inside = (u >= 0) & (u <= 9) & (v >= 0) & (v <= 11)
    assert 0 < inside.sum() < inside.size
    result = any_backend.warp_affine(values, np.float32(matrix), (height, width))
    np.testing.assert_allclose(result, np.where(inside, sampled, 0), atol=1e-5)
