from __future__ import annotations

import hashlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

from camrt.datasets import SyntheticItem, SyntheticShapes
from camrt.datasets._colours import MIN_CONTRAST, contrast
from camrt.datasets.synthetic_shapes import CLASS_NAMES, OUTLINE_FRACTION, SIZE_RANGES, SPLITS
from camrt.errors import InvalidInputError

COMBINATIONS = len(CLASS_NAMES) * len(SIZE_RANGES)


def digest(item: SyntheticItem) -> str:
    return hashlib.sha256(item.image.tobytes() + item.object_mask.tobytes()).hexdigest()


def digest_of(split: str, index: int, size: int) -> str:
    return digest(SyntheticShapes(split, index + 1, size).item(index))


@pytest.fixture(scope="module")
def items() -> list[SyntheticItem]:
    return list(SyntheticShapes("test", 10 * COMBINATIONS))


@pytest.mark.parametrize(
    ("split", "index", "size", "expected"),
    [
        ("train", 0, 224, "f62f149d5447a859072deadc6ee67006bfc7dde9167b2fc7ec1e45bba3d5da6e"),
        ("train", 12345, 224, "e6c49622a0a12077d0a3289ed9bc9fbb22bfa40377e15c447627e2dcf02b2469"),
        ("validation", 7, 224, "5281302a27ec06fa28826fe9df7c6d7214ded073e23172591479c245435a2946"),
        ("test", 0, 224, "45e6a9b72e8ba992bd885c21ce7eddeea088a75b7be3bc559e901bd1cf1e00e2"),
        ("test", 1, 96, "285e505c35dd9ea9e485d5e7663f942d706adb26014e335e2845d93635ea5845"),
        ("test", 999, 301, "6330b24db513fa5b64d1f08b43d0b6ab5ff745ecc830be8bba65efb48dfa40fd"),
    ],
)
def test_items_have_pinned_bits(split: str, index: int, size: int, expected: str) -> None:
    assert digest_of(split, index, size) == expected


def test_an_item_does_not_depend_on_order_length_or_process() -> None:
    data = SyntheticShapes("train", 40, 96)
    forward = [digest(item) for item in data]
    assert [digest(data[i]) for i in reversed(range(40))] == forward[::-1]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        chosen = [3, 17, 39]
        elsewhere = list(pool.map(digest_of, ["train"] * 3, chosen, [96] * 3))
    assert elsewhere == [forward[i] for i in chosen]


def test_items_and_splits_all_differ() -> None:
    digests = {digest(item) for split in SPLITS for item in SyntheticShapes(split, 36, 64)}
    assert len(digests) == 36 * len(SPLITS)


def test_another_size_is_the_same_scene() -> None:
    for index in range(COMBINATIONS):
        small, large = (SyntheticShapes("test", COMBINATIONS, size).item(index) for size in (112, 224))
        assert (small.class_index, small.size_range) == (large.class_index, large.size_range)
        assert small.object_size_px * 2 == pytest.approx(large.object_size_px, rel=1e-12)
        halved = large.object_mask.reshape(112, 2, 112, 2).mean(axis=(1, 3))
        assert np.abs(halved - small.object_mask).sum() <= 0.35 * small.object_mask.sum() + 8


def test_types_and_shapes(items: list[SyntheticItem]) -> None:
    for item in items[:COMBINATIONS]:
        assert item.image.shape == (224, 224, 3)
        assert item.image.dtype == np.dtype(np.uint8)
        assert item.object_mask.shape == (224, 224)
        assert item.object_mask.dtype == np.dtype(np.bool_)
        assert item.class_name == SyntheticShapes.class_names[item.class_index]
        assert 0 <= item.rotation < 360


def test_the_mask_is_exactly_what_was_drawn(items: list[SyntheticItem]) -> None:
    data = SyntheticShapes("test", len(items))
    for index, item in enumerate(items):
        empty = data.background(index)
        np.testing.assert_array_equal(item.image[~item.object_mask], empty[~item.object_mask])
        drawn = item.image[item.object_mask].astype(int)
        assert np.abs(drawn - np.array(item.color)).max() <= 12
        changed = (item.image != empty).any(axis=2)
        assert (changed & item.object_mask).sum() >= 0.9 * item.object_mask.sum()


def test_shapes_are_visible(items: list[SyntheticItem]) -> None:
    data = SyntheticShapes("test", len(items))
    for index, item in enumerate(items):
        rows, columns = np.nonzero(item.object_mask)
        near = data.background(index)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (contrast(item.color, near) >= MIN_CONTRAST - 12).mean() >= 0.8


def test_every_block_holds_each_class_in_each_size_range_once(items: list[SyntheticItem]) -> None:
    for first in range(0, len(items), COMBINATIONS):
        block = Counter((item.class_name, item.size_range) for item in items[first : first + COMBINATIONS])
        assert set(block.values()) == {1}
        assert len(block) == COMBINATIONS
    orders = {
        tuple(item.class_index for item in items[k : k + COMBINATIONS]) for k in range(0, len(items), COMBINATIONS)
    }
    assert len(orders) == len(items) // COMBINATIONS


@pytest.mark.parametrize("size", [64, 224, 301])
def test_sizes_lie_in_their_range_and_shapes_inside_the_picture(size: int) -> None:
    for item in SyntheticShapes("validation", 3 * COMBINATIONS, size):
        low, high = (bound * size / 224 for bound in SIZE_RANGES[item.size_range])
        assert low <= item.object_size_px <= high
        inner = item.object_mask[1:-1, 1:-1]
        assert inner.sum() == item.object_mask.sum() > 0


def test_drawn_areas_are_those_of_the_shapes(items: list[SyntheticItem]) -> None:
    area_of_unit = {"disc": np.pi / 4, "square": 1.0, "triangle": 1 / np.sqrt(3)}
    inradius_of_unit = {"disc": 1 / 2, "square": 1 / 2, "triangle": 1 / 3}
    for item in items:
        kind = item.class_name.split()[0]
        area = area_of_unit[kind] * item.object_size_px**2
        if item.class_name.endswith("outline"):
            area *= 1 - (1 - OUTLINE_FRACTION / inradius_of_unit[kind]) ** 2
        assert item.object_mask.sum() == pytest.approx(area, abs=2 * item.object_size_px)


def test_outlines_are_a_fifth_of_the_size_thick(items: list[SyntheticItem]) -> None:
    inradius_of_unit = {"disc": 1 / 2, "square": 1 / 2, "triangle": 1 / 3}
    corners = {"disc": 360, "square": 4, "triangle": 3}
    for item in items:
        if not item.class_name.endswith("outline"):
            continue
        kind = item.class_name.split()[0]
        normal = np.deg2rad(item.rotation + 90 + 360 / corners[kind] * np.arange(corners[kind]))
        distance = np.arange(0, item.object_size_px, 0.02)[:, None]
        columns = np.floor(item.center[0] + distance * np.cos(normal)).astype(int).clip(0, 223)
        rows = np.floor(item.center[1] + distance * np.sin(normal)).astype(int).clip(0, 223)
        hit = item.object_mask[rows, columns]
        assert hit.sum(axis=0).mean() * 0.02 == pytest.approx(item.object_size_px * OUTLINE_FRACTION, abs=1.0)
        inner = inradius_of_unit[kind] * item.object_size_px - item.object_size_px * OUTLINE_FRACTION
        assert (hit.argmax(axis=0) * 0.02).mean() == pytest.approx(inner, abs=0.8)
        assert not item.object_mask[int(item.center[1]), int(item.center[0])]


def test_centers_and_rotations_cover_the_picture(items: list[SyntheticItem]) -> None:
    small = np.array([item.center for item in items if item.size_range == "small"])
    assert (small.min(axis=0) < 40).all()
    assert (small.max(axis=0) > 184).all()
    quarters = Counter(int(item.rotation // 90) for item in items)
    assert min(quarters.values()) > len(items) / 8


@pytest.mark.parametrize("split", ["", "tset", "Train"])
def test_unknown_splits_are_refused(split: str) -> None:
    with pytest.raises(InvalidInputError, match="Use one of: train, validation, test"):
        SyntheticShapes(split, 1)


@pytest.mark.parametrize("length", [0, -1, 1.5, True, "3"])
def test_bad_lengths_are_refused(length: Any) -> None:
    with pytest.raises(InvalidInputError, match="length is"):
        SyntheticShapes("test", length)


@pytest.mark.parametrize("size", [0, 63, 2049, 224.0])
def test_bad_sizes_are_refused(size: Any) -> None:
    with pytest.raises(InvalidInputError, match="size is"):
        SyntheticShapes("test", 1, size)


@pytest.mark.parametrize("index", [-1, 5, 10**9, 1.0, True, "0"])
def test_items_outside_the_data_set_are_refused(index: Any) -> None:
    data = SyntheticShapes("test", 5, 64)
    with pytest.raises(InvalidInputError, match="Use an integer from 0 to 4"):
        data.item(index)
    with pytest.raises(IndexError):
        data[index]
    with pytest.raises(InvalidInputError):
        data.background(index)


def test_length_and_iteration() -> None:
    length: Any = np.int64(7)
    data = SyntheticShapes("test", length, 64)
    assert len(data) == 7
    assert sum(1 for _ in data) == 7
