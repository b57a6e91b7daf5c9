"""The multigrid operators of imputation in Numba: docs/adr/0009-imputation.md says what they are.

All grids of a mask lie in one row of floats. Level l is a plane of (h + 2) x (w + 4): element (r, c) is at
``base + r * stride + c``, and row -1, row h, columns -2, -1, w and w + 1 stay 0. ``levels`` (levels, 4) of int64 holds
h, w, stride and base of each. Coefficients are planes numbered as below. The finest operator is stored like the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from camrt.kernels.cuda.numba_blocks import lanes_of

DIAGONAL, INVERSE, EAST, SOUTH, SOUTH_EAST, SOUTH_WEST = range(6)
_DAMPING = np.float32(0.9)
_ONE, _TWO, _HALF, _QUARTER, _ZERO = (np.float32(value) for value in (1, 2, 0.5, 0.25, 0))


def _missing(keep: Any, row: Any, column: Any) -> Any:
    """1 for a pixel inside that is not kept (H, W), else 0."""
    inside = 0 <= row < keep.shape[0] and 0 <= column < keep.shape[1]
    return np.float32(1) if inside and keep[row, column] == 0 else np.float32(0)


missing = cuda.jit(device=True)(_missing)


def _build_finest(keep: Any, planes: Any, levels: Any, thread: Any, threads: Any) -> None:
    """The system of imputation, times 12: weights 2 beside and 1 diagonally, rows and columns of known pixels 0."""
    height, width, stride, base = levels[0, 0], levels[0, 1], levels[0, 2], levels[0, 3]
    lanes = lanes_of(threads)
    for row in range(thread // lanes, height, threads // lanes):
        for column in range(thread % lanes, width, lanes):
            at = base + row * stride + column
            own = missing(keep, row, column)
            vertical = (1 if row > 0 else 0) + (1 if row + 1 < height else 0)
            horizontal = (1 if column > 0 else 0) + (1 if column + 1 < width else 0)
            planes[DIAGONAL, at] = own * np.float32(2 * (horizontal + vertical) + horizontal * vertical)
            planes[EAST, at] = _TWO * own * missing(keep, row, column + 1)
            planes[SOUTH, at] = _TWO * own * missing(keep, row + 1, column)
            planes[SOUTH_EAST, at] = own * missing(keep, row + 1, column + 1)
            planes[SOUTH_WEST, at] = own * missing(keep, row + 1, column - 1)


def _merged(p: Any, at: Any, stride: Any, share: Any) -> Any:
    """(diagonal, east, south, south-east, south-west) of rows 2 R - 1, 2 R (where ``at`` is) and 2 R + 1 merged.

    ``share`` is what row 2 R + 1 has to do with R.
    """
    above, below = at - stride, at + stride
    square = share * share
    diagonal = (
        p[DIAGONAL, at]
        + (_QUARTER * p[DIAGONAL, above] + square * p[DIAGONAL, below])
        - (p[SOUTH, above] + _TWO * share * p[SOUTH, at])
    )
    east = (
        p[EAST, at]
        + (_QUARTER * p[EAST, above] + square * p[EAST, below])
        + _HALF * (p[SOUTH_EAST, above] + p[SOUTH_WEST, above + 1])
        + share * (p[SOUTH_EAST, at] + p[SOUTH_WEST, at + 1])
    )
    south = _HALF * (p[SOUTH, at] + p[SOUTH, below]) - _QUARTER * p[DIAGONAL, below]
    south_east = _HALF * (p[SOUTH_EAST, at] + p[SOUTH_EAST, below]) + _QUARTER * p[EAST, below]
    south_west = _HALF * (p[SOUTH_WEST, at] + p[SOUTH_WEST, below]) + _QUARTER * p[EAST, below - 1]
    return diagonal, east, south, south_east, south_west


merged = cuda.jit(device=True)(_merged)


def _build_coarse(planes: Any, levels: Any, level: Any, thread: Any, threads: Any) -> None:
    """The Galerkin operator of ``level`` from the level above it, with linear interpolation."""
    height, width, stride, base = levels[level, 0], levels[level, 1], levels[level, 2], levels[level, 3]
    fine_stride, fine_base = levels[level - 1, 2], levels[level - 1, 3]
    lanes = lanes_of(threads)
    for row in range(thread // lanes, height, threads // lanes):
        for column in range(thread % lanes, width, lanes):
            down = _HALF if row + 1 < height else _ONE
            across = _HALF if column + 1 < width else _ONE
            source = fine_base + 2 * row * fine_stride + 2 * column
            left = merged(planes, source - 1, fine_stride, down)
            even = merged(planes, source, fine_stride, down)
            odd = merged(planes, source + 1, fine_stride, down)
            square = across * across
            at = base + row * stride + column
            planes[DIAGONAL, at] = (
                even[0] + (_QUARTER * left[0] + square * odd[0]) - (left[1] + _TWO * across * even[1])
            )
            inner_row, inner_column = row + 1 < height, column + 1 < width
            planes[EAST, at] = _HALF * (even[1] + odd[1]) - _QUARTER * odd[0] if inner_column else _ZERO
            south = even[2] + (_QUARTER * left[2] + square * odd[2])
            south += _HALF * (left[3] + even[4]) + across * (even[3] + odd[4])
            planes[SOUTH, at] = south if inner_row else _ZERO
            south_east = _HALF * (even[3] + odd[3]) + _QUARTER * odd[2]
            planes[SOUTH_EAST, at] = south_east if inner_row and inner_column else _ZERO
            south_west = _HALF * (left[4] + even[4]) + _QUARTER * left[2]
            planes[SOUTH_WEST, at] = south_west if inner_row else _ZERO


def _set_steps(planes: Any, levels: Any, level: Any, thread: Any, threads: Any) -> None:
    """Smoothing steps: at most 0.9 / diagonal and 1.8 / absolute row sum; a grid of one element is solved exactly."""
    height, width, stride, base = levels[level, 0], levels[level, 1], levels[level, 2], levels[level, 3]
    damping = _ONE if level + 1 == levels.shape[0] and level > 0 else _DAMPING
    lanes = lanes_of(threads)
    for row in range(thread // lanes, height, threads // lanes):
        for column in range(thread % lanes, width, lanes):
            at = base + row * stride + column
            diagonal = planes[DIAGONAL, at]
            total = abs(planes[EAST, at]) + abs(planes[EAST, at - 1])
            total += abs(planes[SOUTH, at]) + abs(planes[SOUTH, at - stride])
            total += abs(planes[SOUTH_EAST, at]) + abs(planes[SOUTH_EAST, at - stride - 1])
            total += abs(planes[SOUTH_WEST, at]) + abs(planes[SOUTH_WEST, at - stride + 1])
            half = _HALF * (diagonal + total)
            planes[INVERSE, at] = damping / (half if half > diagonal else diagonal) if diagonal > 0 else _ZERO


def _product(p: Any, x: Any, at: Any, stride: Any) -> Any:
    """(A x) at one element."""
    total = p[EAST, at] * x[at + 1] + p[EAST, at - 1] * x[at - 1]
    total += p[SOUTH, at] * x[at + stride] + p[SOUTH, at - stride] * x[at - stride]
    total += p[SOUTH_EAST, at] * x[at + stride + 1] + p[SOUTH_EAST, at - stride - 1] * x[at - stride - 1]
    total += p[SOUTH_WEST, at] * x[at + stride - 1] + p[SOUTH_WEST, at - stride + 1] * x[at - stride + 1]
    return p[DIAGONAL, at] * x[at] - total


product = cuda.jit(device=True)(_product)


def _start(p: Any, right: Any, x: Any, levels: Any, level: Any, thread: Any, threads: Any) -> None:
    """x = inverse * right: the first smoothing step from 0."""
    height, width, stride, base = levels[level, 0], levels[level, 1], levels[level, 2], levels[level, 3]
    lanes = lanes_of(threads)
    for row in range(thread // lanes, height, threads // lanes):
        for column in range(thread % lanes, width, lanes):
            at = base + row * stride + column
            x[at] = p[INVERSE, at] * right[at]


def _residual(p: Any, right: Any, x: Any, y: Any, levels: Any, level: Any, thread: Any, threads: Any) -> None:
    """y = right - A x."""
    height, width, stride, base = levels[level, 0], levels[level, 1], levels[level, 2], levels[level, 3]
    lanes = lanes_of(threads)
    for row in range(thread // lanes, height, threads // lanes):
        for column in range(thread % lanes, width, lanes):
            at = base + row * stride + column
            y[at] = right[at] - product(p, x, at, stride)


def _restrict(residual: Any, right: Any, levels: Any, level: Any, thread: Any, threads: Any) -> None:
    """right of ``level`` + 1 = the residual of ``level``, restricted.

    Fine element 2 c belongs to coarse element c; 2 c + 1 half to c and half to c + 1, or wholly to c if c is the last.
    Elements beyond the last row or column are 0.
    """
    stride, base = levels[level, 2], levels[level, 3]
    height, width = levels[level + 1, 0], levels[level + 1, 1]
    lanes = lanes_of(threads)
    for row in range(thread // lanes, height, threads // lanes):
        for column in range(thread % lanes, width, lanes):
            down = _HALF if row + 1 < height else _ONE
            across = _HALF if column + 1 < width else _ONE
            at = base + 2 * row * stride + 2 * column
            above, below = at - stride, at + stride
            total = residual[at] + (_HALF * residual[at - 1] + across * residual[at + 1])
            total += _HALF * (residual[above] + (_HALF * residual[above - 1] + across * residual[above + 1]))
            total += down * (residual[below] + (_HALF * residual[below - 1] + across * residual[below + 1]))
            right[levels[level + 1, 3] + row * levels[level + 1, 2] + column] = total


def _correct(p: Any, x: Any, correction: Any, levels: Any, level: Any, thread: Any, threads: Any) -> None:
    """x of ``level`` += the correction of ``level`` + 1, interpolated, where there is something to solve."""
    height, width, stride, base = levels[level, 0], levels[level, 1], levels[level, 2], levels[level, 3]
    rows, columns = levels[level + 1, 0], levels[level + 1, 1]
    coarse_stride, coarse_base = levels[level + 1, 2], levels[level + 1, 3]
    lanes = lanes_of(threads)
    for row in range(thread // lanes, height, threads // lanes):
        for column in range(thread % lanes, width, lanes):
            at = base + row * stride + column
            if p[DIAGONAL, at] > 0:
                upper = coarse_base + row // 2 * coarse_stride
                lower = upper + coarse_stride if row % 2 == 1 and row // 2 + 1 < rows else upper
                left = column // 2
                right = left + 1 if column % 2 == 1 and left + 1 < columns else left
                above = _HALF * (correction[upper + left] + correction[upper + right])
                below = _HALF * (correction[lower + left] + correction[lower + right])
                x[at] += _HALF * (above + below)


def _smooth(p: Any, right: Any, x: Any, y: Any, levels: Any, level: Any, thread: Any, threads: Any) -> None:
    """y = x + inverse * (right - A x)."""
    height, width, stride, base = levels[level, 0], levels[level, 1], levels[level, 2], levels[level, 3]
    lanes = lanes_of(threads)
    for row in range(thread // lanes, height, threads // lanes):
        for column in range(thread % lanes, width, lanes):
            at = base + row * stride + column
            y[at] = x[at] + p[INVERSE, at] * (right[at] - product(p, x, at, stride))


build_finest = cuda.jit(device=True)(_build_finest)
build_coarse = cuda.jit(device=True)(_build_coarse)
set_steps = cuda.jit(device=True)(_set_steps)
start = cuda.jit(device=True)(_start)
residual_of = cuda.jit(device=True)(_residual)
restrict = cuda.jit(device=True)(_restrict)
correct = cuda.jit(device=True)(_correct)
smooth = cuda.jit(device=True)(_smooth)


def _build(keep: Any, planes: Any, levels: Any, thread: Any, threads: Any) -> None:
    """All operators of one mask (H, W)."""
    build_finest(keep, planes, levels, thread, threads)
    cuda.syncthreads()
    for level in range(1, levels.shape[0]):
        build_coarse(planes, levels, level, thread, threads)
        cuda.syncthreads()
    for level in range(levels.shape[0]):
        set_steps(planes, levels, level, thread, threads)


def _cycle(p: Any, right: Any, x: Any, y: Any, levels: Any, thread: Any, threads: Any) -> None:
    """y = about A^-1 right on the finest grid: one V-cycle. right, x and y hold all levels; y also the residuals."""
    last = levels.shape[0] - 1
    for level in range(last + 1):
        start(p, right, x, levels, level, thread, threads)
        cuda.syncthreads()
        if level < last:
            residual_of(p, right, x, y, levels, level, thread, threads)
            cuda.syncthreads()
            restrict(y, right, levels, level, thread, threads)
            cuda.syncthreads()
    for reverse in range(last + 1):
        level = last - reverse
        if level < last:
            correct(p, x, y, levels, level, thread, threads)
            cuda.syncthreads()
        if level == last and level > 0:
            start(p, right, y, levels, level, thread, threads)
        else:
            smooth(p, right, x, y, levels, level, thread, threads)
        cuda.syncthreads()


build = cuda.jit(device=True)(_build)
cycle = cuda.jit(device=True)(_cycle)
