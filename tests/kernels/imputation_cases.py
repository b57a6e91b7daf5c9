"""Masks for the imputation tests: easy ones, and those that solvers fail on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from camrt.types import BoolArray


def _keeping(*pixels: tuple[int, int]) -> Callable[[int, int], BoolArray]:
    """Everything is missing but some pixels, given from the top left (negative: from the bottom right) corner."""

    def mask(height: int, width: int) -> BoolArray:
        keep = np.zeros((height, width), np.bool_)
        for row, column in pixels:
            keep[row % height, column % width] = True
        return keep

    return mask


def _periodic(row: int, row_step: int, column: int, column_step: int, kept: bool) -> Callable[[int, int], BoolArray]:
    def mask(height: int, width: int) -> BoolArray:
        keep = np.full((height, width), not kept)
        keep[row % height :: row_step, column % width :: column_step] = kept
        return keep

    return mask


def _random(share: float) -> Callable[[int, int], BoolArray]:
    def mask(height: int, width: int) -> BoolArray:
        keep: BoolArray = np.random.default_rng(7).random((height, width)) < share
        keep[0, 0] = True
        return keep

    return mask


def _blob(share: float, inside: bool) -> Callable[[int, int], BoolArray]:
    """A disc of `share` of the pixels, kept or missing: what a smooth map of one layer leaves."""

    def mask(height: int, width: int) -> BoolArray:
        row, column = np.mgrid[:height, :width] / max(height, width)
        distance = (row - 0.4) ** 2 + (column - 0.45) ** 2
        keep: BoolArray = (
            distance <= np.quantile(distance, share) if inside else distance > np.quantile(distance, share)
        )
        return keep

    return mask


_MASKS: dict[str, Callable[[int, int], BoolArray]] = {
    "one pixel in the middle": _keeping((37, 101)),
    "one pixel in a corner": _keeping((0, 0)),
    "one pixel in the last corner": _keeping((-1, -1)),
    "two distant pixels": _keeping((0, 0), (-1, -1)),
    "two neighbours": _keeping((5, 5), (5, 6)),
    "checkerboard": lambda height, width: np.indices((height, width)).sum(axis=0) % 2 == 0,
    "islands of one missing pixel": _periodic(1, 3, 1, 3, kept=False),
    "islands of one kept pixel": _periodic(3, 8, 5, 8, kept=True),
    "kept where coarse grids have points": _periodic(0, 2, 0, 2, kept=True),
    "kept where coarse grids have none": _periodic(1, 2, 1, 2, kept=True),
    "missing where coarse grids have points": _periodic(0, 2, 0, 2, kept=False),
    "kept rows": _periodic(2, 5, 0, 1, kept=True),
    "kept columns": _periodic(0, 1, 1, 7, kept=True),
    "missing columns": _periodic(0, 1, 0, 2, kept=False),
    "one kept column": lambda height, width: np.broadcast_to(np.arange(width) == width // 3, (height, width)).copy(),
    "a fifth at random": _random(0.2),
    "a hundredth at random": _random(0.01),
    "nearly all at random": _random(0.97),
    "a small disc kept": _blob(0.1, inside=True),
    "a large disc missing": _blob(0.8, inside=False),
    "everything kept": lambda height, width: np.ones((height, width), np.bool_),
}


MASKS = tuple(_MASKS)


def keep_mask(name: str, height: int, width: int) -> BoolArray:
    """(H, W), True = kept; where an image is too small for the mask to keep anything, it keeps the last pixel."""
    keep = _MASKS[name](height, width)
    if not keep.any():
        keep[-1, -1] = True
    return keep
