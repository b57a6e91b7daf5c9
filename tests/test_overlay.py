from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from PIL import Image

from camrt.errors import InvalidInputError
from camrt.overlay import COLORMAPS, colorize, colormap_table, levels_of, overlay, resize_map


def ramp(height: int = 4, width: int = 256) -> np.ndarray:
    return np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (height, width))


@pytest.mark.parametrize("name", ["turbo", "viridis", "inferno"])
def test_fitted_tables_are_close_to_the_tables_they_are_named_after(name: str) -> None:
    oracle = 255 * matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3]
    assert np.abs(colormap_table(name) - oracle).max() <= 7


@pytest.mark.parametrize("name", ["viridis", "inferno", "gray"])
def test_perceptual_tables_never_get_darker(name: str) -> None:
    luminance = colormap_table(name) @ np.array([0.2126, 0.7152, 0.0722])
    assert np.diff(luminance).min() > -1
    assert luminance[-1] - luminance[0] > 150


def test_jet_goes_from_blue_over_green_to_red() -> None:
    table = colormap_table("jet")
    assert [tuple(table[i]) for i in (0, 255)] == [(0, 0, 128), (128, 0, 0)]
    assert table[128].argmax() == 1


@pytest.mark.parametrize("name", COLORMAPS)
def test_tables_are_read_only_rgb(name: str) -> None:
    table = colormap_table(name)
    assert (table.shape, table.dtype) == ((256, 3), np.uint8)
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0


def test_colorize_takes_the_nearest_of_256_values() -> None:
    saliency_map = np.array([[0.0, 0.499 / 255, 0.501 / 255], [1.0, 1.5, -0.5]], np.float32)
    expected = colormap_table("jet")[[[0, 0, 1], [255, 255, 0]]]
    assert np.array_equal(colorize(saliency_map, "jet"), expected)


def test_overlay_leaves_the_image_where_the_map_is_zero_and_colours_the_peak() -> None:
    image = Image.new("RGB", (256, 4), (10, 200, 30))
    result = np.asarray(overlay(image, ramp(), "jet", opacity=1.0))
    assert tuple(result[0, 0]) == (10, 200, 30)
    assert np.array_equal(result[0, 128:], colormap_table("jet")[128:])
    half = np.asarray(overlay(image, ramp(), "jet", opacity=0.5)).astype(int)
    assert np.abs(half[0, 255] - np.array([138, 200, 30]) / 2).max() <= 1
    assert np.array_equal(np.asarray(overlay(image, ramp(), opacity=0.0)), np.asarray(image))


def test_opacity_grows_with_the_map() -> None:
    black = Image.new("RGB", (256, 4))
    shown = np.asarray(overlay(black, ramp(), "jet", opacity=1.0)).astype(float).max(-1)[0]
    share = shown[:128] / colormap_table("jet").max(-1)[:128]
    assert np.diff(share).min() > -0.01


def test_overlay_has_the_size_of_the_image_whatever_the_map() -> None:
    image = Image.new("RGB", (33, 17))
    assert overlay(image, np.ones((5, 7), np.float32)).size == (33, 17)
    assert overlay(image.convert("L"), np.ones((50, 70), np.float32)).mode == "RGB"


@pytest.mark.parametrize("size", [(3000, 701), (1 << 20, 2), (2, 1 << 20)], ids=["bands", "wide", "tall"])
def test_large_images_are_worked_on_in_bands(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((size[1], size[0]), np.float32)
    image = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    levels = np.rint(255 * values).astype(np.uint8)
    assert np.array_equal(levels_of(values), levels)
    t = np.clip(np.arange(256) / 127.5, 0, 1)
    alpha = (np.rint(255 * 0.6 * t * t * (3 - 2 * t)) / 255)[levels][..., None]
    expected = image * (1 - alpha) + colormap_table("turbo")[levels] * alpha
    assert np.abs(np.asarray(overlay(Image.fromarray(image), values)) - expected).max() <= 1


def test_resize_is_centred() -> None:
    impulse = np.zeros((3, 5), np.float32)
    impulse[1, 2] = 1
    resized = resize_map(impulse, (45, 27))
    assert np.unravel_index(resized.argmax(), resized.shape) == (13, 22)
    np.testing.assert_allclose(resized, resized[::-1, ::-1], atol=1e-6)
    assert resize_map(impulse, (5, 3)) is impulse


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
def test_opacity_outside_its_range(opacity: float) -> None:
    with pytest.raises(InvalidInputError, match="opacity"):
        overlay(Image.new("RGB", (4, 4)), np.ones((4, 4), np.float32), opacity=opacity)


def test_unknown_colour_map_lists_them() -> None:
    with pytest.raises(InvalidInputError, match="turbo, jet, viridis"):
        colorize(ramp(), "rainbow")


@pytest.mark.parametrize(
    ("saliency_map", "message"),
    [
        (np.ones((2, 3, 4), np.float32), "shape"),
        (np.ones((0, 4), np.float32), "shape"),
        (np.full((2, 2), np.nan, np.float32), "not finite"),
    ],
)
def test_maps_that_cannot_be_shown(saliency_map: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        colorize(saliency_map)
    with pytest.raises(InvalidInputError, match=message):
        overlay(Image.new("RGB", (4, 4)), saliency_map)
