"""Linear imputation: against a sparse direct solver, on masks that iterative solvers fail on."""

from __future__ import annotations

import numpy as np
import pytest

from camrt.errors import ImputationError, InvalidInputError
from camrt.kernels import KernelBackend, get_backend
from camrt.types import AnyArray, BoolArray, DoubleArray, FloatArray
from tests.kernels.imputation_cases import MASKS, keep_mask

sparse = pytest.importorskip("scipy.sparse")
linalg = pytest.importorskip("scipy.sparse.linalg")

SIZES = [(48, 56), (33, 21), (1, 40), (40, 1), (2, 3), (1, 1), (7, 64)]
# Of the image's standard deviation.
TOLERANCE = 1e-3


def picture(height: int, width: int, seed: int = 0) -> FloatArray:
    """(3, H, W): smooth structure, noise, and an offset that dwarfs both."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:height, :width].astype(np.float32)
    smooth = np.sin(row / 9 + seed) + np.cos(column / 7)
    noise = rng.standard_normal((height, width), dtype=np.float32)
    return np.stack([smooth + 0.1 * noise, noise, 100 + 0.5 * smooth]).astype(np.float32)


def laplacian(height: int, width: int) -> AnyArray:
    """The matrix of x_i sum_j w_ij - sum_j w_ij x_j, row by row from the definition."""
    number = np.arange(height * width).reshape(height, width)
    rows, columns, weights = [], [], []
    for step, weight in {(0, 1): 1 / 6, (1, 0): 1 / 6, (1, 1): 1 / 12, (1, -1): 1 / 12}.items():
        below, right = step
        first = number[: height - below, max(0, -right) : width - max(0, right)].ravel()
        second = number[below:, max(0, right) : width + min(0, right)].ravel()
        rows += [first, second]
        columns += [second, first]
        weights += [np.full(2 * first.size, weight)]
    entries = np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))
    adjacency = sparse.csr_matrix(entries, shape=(number.size, number.size))
    return (sparse.diags(np.asarray(adjacency.sum(axis=1)).ravel()) - adjacency).tocsr()


def solved(image: FloatArray, keep: BoolArray) -> DoubleArray:
    """(C, H, W): the missing pixels by sparse LU in float64."""
    flat = image.reshape(len(image), -1).astype(np.float64)
    missing = np.flatnonzero(~keep)
    if missing.size:
        matrix = laplacian(*keep.shape)
        known = np.where(keep.ravel(), flat, 0)
        right = -(matrix @ known.T)[missing]
        flat[:, missing] = linalg.splu(matrix[missing][:, missing].tocsc()).solve(right).T
    return flat.reshape(image.shape)


def assert_imputed(result: FloatArray, image: FloatArray, keep: BoolArray, expected: DoubleArray) -> None:
    np.testing.assert_array_equal(result[:, keep], image[:, keep])
    deviations = image.astype(np.float64).std(axis=(1, 2))
    errors = np.abs(result - expected).max(axis=(1, 2))
    assert (errors <= TOLERANCE * deviations).all(), errors / deviations


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_imputation_solves_the_system(any_backend: KernelBackend, mask, size):
    keep, image = keep_mask(mask, *size), picture(*size)
    result = any_backend.impute(image[None], keep[None, None])
    assert result.shape == (1, 1, *image.shape)
    assert_imputed(result[0, 0], image, keep, solved(image, keep))


@pytest.mark.parametrize("mask", MASKS)
def test_imputation_at_the_size_of_an_input(backend: KernelBackend, mask):
    keep, image = keep_mask(mask, 224, 224), picture(224, 224)
    assert_imputed(backend.impute(image[None], keep[None, None])[0, 0], image, keep, solved(image, keep))


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["two distant pixels", "islands of one kept pixel", "a hundredth at random"])
def test_imputation_of_a_large_image_solves_the_system(backend: KernelBackend, mask):
    keep, image = keep_mask(mask, 512, 512), picture(512, 512)
    assert_imputed(backend.impute(image[None], keep[None, None])[0, 0], image, keep, solved(image, keep))


@pytest.mark.parametrize("mask", MASKS)
def test_imputation_of_a_large_image_converges(backend: KernelBackend, mask):
    # A direct solver takes long here: checked is the equation itself, and that no value leaves the range of the known
    # ones. The tests below know the exact answer for the masks where a small residual says least.
    keep, image = keep_mask(mask, 1024, 1024), picture(1024, 1024)[:1]
    result = backend.impute(image[None], keep[None, None])[0, 0, 0].astype(np.float64)
    np.testing.assert_array_equal(result[keep], image[0][keep])
    assert result.min() >= image[0][keep].min() - 1e-3
    assert result.max() <= image[0][keep].max() + 1e-3
    residual = np.abs((laplacian(1024, 1024) @ result.ravel()).reshape(1024, 1024)[~keep])
    assert residual.size == 0 or residual.max() < TOLERANCE * image.std()


def test_one_known_pixel_of_a_large_image_fills_it(backend: KernelBackend):
    keep = keep_mask("one pixel in the middle", 1024, 1024)
    image = picture(1024, 1024)[None]
    result = backend.impute(image, keep[None, None])[0, 0]
    np.testing.assert_allclose(result, np.broadcast_to(image[0][:, keep][:, :, None], result.shape), rtol=1e-6)


def test_a_large_image_between_two_known_pixels(backend: KernelBackend):
    # The exact solution is symmetric: the centre of a square is half-way between two opposite corners.
    image = np.zeros((1, 1, 1023, 1023), np.float32)
    image[0, 0, -1, -1] = 1
    keep = keep_mask("two distant pixels", 1023, 1023)[None, None]
    result = backend.impute(image, keep)[0, 0, 0]
    # The deviation of this image is 1e-3, and the answer is better than that.
    assert result[511, 511] == pytest.approx(0.5, abs=1e-3)
    np.testing.assert_allclose(result, 1 - result[::-1, ::-1], atol=1e-3)


def test_pixels_beside_a_linear_ramp_follow_it(any_backend: KernelBackend):
    # A ramp solves the system wherever no border is near: known columns left and right, linear in between.
    image = np.broadcast_to(np.arange(20, dtype=np.float32), (1, 1, 16, 20)).copy()
    keep = np.zeros((1, 1, 16, 20), np.bool_)
    keep[..., [3, 12]] = True
    result = any_backend.impute(np.where(keep, image, -5).astype(np.float32), keep)[0, 0, 0]
    np.testing.assert_allclose(result[:, 3:13], image[0, 0, :, 3:13], atol=1e-2)
    np.testing.assert_allclose(result[:, :3], 3, atol=1e-2)
    np.testing.assert_allclose(result[:, 13:], 12, atol=1e-2)


def test_an_image_is_filled_alike_alone_and_in_a_batch(backend: KernelBackend):
    images = np.stack([picture(40, 33, seed) for seed in range(3)])
    masks = np.stack([[keep_mask(name, 40, 33) for name in ("checkerboard", "a fifth at random")]] * 3)
    together = backend.impute(images, masks)
    for n in range(3):
        for b in range(2):
            alone = get_backend(backend.name, 1).impute(images[n : n + 1], masks[n : n + 1, b : b + 1])
            np.testing.assert_array_equal(alone[0, 0], together[n, b])


def test_values_that_are_missing_do_not_matter(any_backend: KernelBackend):
    image, keep = picture(24, 24)[None], keep_mask("a fifth at random", 24, 24)[None, None]
    other = np.where(keep[0], image, image + np.float32(0.25))
    first, second = any_backend.impute(image, keep), any_backend.impute(other, keep)
    np.testing.assert_allclose(first, second, atol=2e-3 * image.std())


def test_a_constant_image_stays_constant(any_backend: KernelBackend):
    image = np.full((1, 2, 30, 31), 7.25, np.float32)
    keep = keep_mask("a hundredth at random", 30, 31)[None, None]
    np.testing.assert_array_equal(any_backend.impute(image, keep)[0, 0], image[0])


def test_nothing_known_is_an_error(any_backend: KernelBackend):
    keep = np.ones((2, 3, 8, 9), np.bool_)
    keep[1, 2] = False
    with pytest.raises(ImputationError, match="Mask 2 of image 1 keeps no pixel"):
        any_backend.impute(np.zeros((2, 3, 8, 9), np.float32), keep)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(any_backend: KernelBackend, value):
    image = np.zeros((1, 1, 4, 4), np.float32)
    image[0, 0, 2, 3] = value
    with pytest.raises(InvalidInputError, match=r"\[0, 0, 2, 3\]"):
        any_backend.impute(image, np.ones((1, 1, 4, 4), np.bool_))


def test_extreme_values_end_in_a_result_or_a_typed_error(any_backend: KernelBackend):
    image = np.zeros((1, 1, 16, 16), np.float32)
    image[0, 0, 0, 0], image[0, 0, 15, 15] = np.float32(3e38), np.float32(-3e38)
    keep = keep_mask("two distant pixels", 16, 16)[None, None]
    try:
        result = any_backend.impute(image, keep)
    except ImputationError:
        return
    assert np.isfinite(result).all()
