"""The imputation solver in Numba: one block a mask builds the operators, one block a mask and channel solves.

A block runs as many steps of conjugate gradients as its system needs, so nothing waits for the host.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda

from camrt.kernels.cuda.numba_blocks import SCRATCH, block_largest, block_sum, bounded_kernel, lanes_of
from camrt.kernels.cuda.numba_multigrid import build, cycle, missing, product

_MOST_ITERATIONS = 200
_TOLERANCE = np.float32(3e-4)
"""The largest correction at which a solution is done, in standard deviations of the channel."""
_TWO = np.float32(2)


def _statistics(image: Any, keep: Any, scratch: Any, thread: Any, threads: Any) -> Any:
    """(known pixels, their mean, standard deviation of all pixels) of one channel (H W); keep (H, W)."""
    count = image.shape[0]
    known, known_total, total = 0.0, 0.0, 0.0
    lanes = lanes_of(threads)
    for row in range(thread // lanes, keep.shape[0], threads // lanes):
        for column in range(thread % lanes, keep.shape[1], lanes):
            value = np.float64(image[row * keep.shape[1] + column])
            total += value
            if keep[row, column] != 0:
                known += 1.0
                known_total += value
    known = block_sum(known, scratch, thread, threads)
    known_total = block_sum(known_total, scratch, thread, threads)
    mean = block_sum(total, scratch, thread, threads) / count
    squares = 0.0
    for row in range(thread // lanes, keep.shape[0], threads // lanes):
        for column in range(thread % lanes, keep.shape[1], lanes):
            difference = np.float64(image[row * keep.shape[1] + column]) - mean
            squares += difference * difference
    variance = block_sum(squares, scratch, thread, threads) / count
    return known, known_total / (known if known > 0.0 else 1.0), math.sqrt(variance)


def _known_value(image: Any, keep: Any, row: Any, column: Any, shift: Any, scale: Any) -> Any:
    """(value - shift) * scale of a known pixel inside, else 0. image (H W), keep (H, W)."""
    if 0 <= row < keep.shape[0] and 0 <= column < keep.shape[1] and keep[row, column] != 0:
        return np.float32((np.float64(image[row * keep.shape[1] + column]) - shift) * scale)
    return np.float32(0)


known_value = cuda.jit(device=True)(_known_value)


def _set_right(
    image: Any, keep: Any, shift: Any, scale: Any, right: Any, solution: Any, levels: Any, thread: Any, threads: Any
) -> None:
    """right = what known pixels send to their missing neighbours; solution = 0."""
    width, stride, base = levels[0, 1], levels[0, 2], levels[0, 3]
    lanes = lanes_of(threads)
    for row in range(thread // lanes, keep.shape[0], threads // lanes):
        for column in range(thread % lanes, width, lanes):
            total = np.float32(0)
            for below in range(-1, 2):
                for beside in range(-1, 2):
                    value = known_value(image, keep, row + below, column + beside, shift, scale)
                    total += value if below != 0 and beside != 0 else _TWO * value
            at = base + row * stride + column
            right[at] = missing(keep, row, column) * total
            solution[at] = np.float32(0)


def _energy(a: Any, b: Any, levels: Any, scratch: Any, thread: Any, threads: Any) -> Any:
    """Scalar product on the finest grid, float64."""
    width, stride, base = levels[0, 1], levels[0, 2], levels[0, 3]
    total = 0.0
    lanes = lanes_of(threads)
    for row in range(thread // lanes, levels[0, 0], threads // lanes):
        for column in range(thread % lanes, width, lanes):
            at = base + row * stride + column
            total += np.float64(a[at]) * np.float64(b[at])
    return block_sum(total, scratch, thread, threads)


def _largest(a: Any, levels: Any, scratch: Any, thread: Any, threads: Any) -> Any:
    """Largest absolute value on the finest grid; NaN if one is NaN."""
    width, stride, base = levels[0, 1], levels[0, 2], levels[0, 3]
    result = np.float32(0)
    lanes = lanes_of(threads)
    for row in range(thread // lanes, levels[0, 0], threads // lanes):
        for column in range(thread % lanes, width, lanes):
            value = abs(a[base + row * stride + column])
            if not value <= result and result == result:
                result = value
    return block_largest(np.float64(result), scratch, thread, threads)


def _combine(a: Any, factor: Any, b: Any, levels: Any, thread: Any, threads: Any) -> None:
    """a = b + factor * a on the finest grid."""
    width, stride, base = levels[0, 1], levels[0, 2], levels[0, 3]
    lanes = lanes_of(threads)
    for row in range(thread // lanes, levels[0, 0], threads // lanes):
        for column in range(thread % lanes, width, lanes):
            at = base + row * stride + column
            a[at] = b[at] + factor * a[at]


def _add(a: Any, factor: Any, b: Any, levels: Any, thread: Any, threads: Any) -> None:
    """a += factor * b on the finest grid."""
    width, stride, base = levels[0, 1], levels[0, 2], levels[0, 3]
    lanes = lanes_of(threads)
    for row in range(thread // lanes, levels[0, 0], threads // lanes):
        for column in range(thread % lanes, width, lanes):
            at = base + row * stride + column
            a[at] += factor * b[at]


def _apply(p: Any, x: Any, y: Any, levels: Any, thread: Any, threads: Any) -> None:
    """y = A x on the finest grid."""
    width, stride, base = levels[0, 1], levels[0, 2], levels[0, 3]
    lanes = lanes_of(threads)
    for row in range(thread // lanes, levels[0, 0], threads // lanes):
        for column in range(thread % lanes, width, lanes):
            at = base + row * stride + column
            y[at] = product(p, x, at, stride)


statistics = cuda.jit(device=True)(_statistics)
set_right = cuda.jit(device=True)(_set_right)
energy_of = cuda.jit(device=True)(_energy)
largest_of = cuda.jit(device=True)(_largest)
combine = cuda.jit(device=True)(_combine)
add = cuda.jit(device=True)(_add)
apply = cuda.jit(device=True)(_apply)


def _solve(p: Any, vectors: Any, levels: Any, scratch: Any, thread: Any, threads: Any) -> Any:
    """Conjugate gradients, preconditioned by the cycle; whether they converged.

    vectors: right-hand side (then the residual), start, correction (all levels), solution, direction, product (finest
    only).
    """
    right, start, correction, solution, direction, image_of = (
        vectors[0],
        vectors[1],
        vectors[2],
        vectors[3],
        vectors[4],
        vectors[5],
    )
    previous = 1.0
    for iteration in range(_MOST_ITERATIONS):
        cycle(p, right, start, correction, levels, thread, threads)
        largest = largest_of(correction, levels, scratch, thread, threads)
        if largest <= _TOLERANCE:
            add(solution, np.float32(1), correction, levels, thread, threads)
            cuda.syncthreads()
            return True
        energy = energy_of(right, correction, levels, scratch, thread, threads)
        if not (energy > 0.0 and energy < np.inf):
            return False
        if iteration == 0:
            combine(direction, np.float32(0), correction, levels, thread, threads)
        else:
            combine(direction, np.float32(energy / previous), correction, levels, thread, threads)
        previous = energy
        cuda.syncthreads()
        apply(p, direction, image_of, levels, thread, threads)
        cuda.syncthreads()
        step = energy / energy_of(direction, image_of, levels, scratch, thread, threads)
        add(solution, np.float32(step), direction, levels, thread, threads)
        add(right, np.float32(-step), image_of, levels, thread, threads)
        cuda.syncthreads()
    return False


solve = cuda.jit(device=True)(_solve)


def _fill(
    image: Any,
    keep: Any,
    p: Any,
    vectors: Any,
    levels: Any,
    noise: Any,
    output: Any,
    scratch: Any,
    thread: Any,
    threads: Any,
) -> None:
    """output (H W): image where kept, elsewhere what solves the system, plus noise (H W, or anything shorter for none).

    Without a known pixel the solution is 0; without convergence it is NaN.
    """
    known, shift, deviation = statistics(image, keep, scratch, thread, threads)
    count = image.shape[0]
    converged = True
    if known == 0.0:
        deviation, shift = 0.0, 0.0
    if 0.0 < known < count:
        scale = 1.0 / deviation if deviation > 0.0 else 0.0
        set_right(image, keep, shift, scale, vectors[0], vectors[3], levels, thread, threads)
        cuda.syncthreads()
        converged = solve(p, vectors, levels, scratch, thread, threads)
    stride, base = levels[0, 2], levels[0, 3]
    lanes = lanes_of(threads)
    for row in range(thread // lanes, keep.shape[0], threads // lanes):
        for column in range(thread % lanes, keep.shape[1], lanes):
            if keep[row, column] != 0:
                output[row * keep.shape[1] + column] = image[row * keep.shape[1] + column]
                continue
            value = shift
            if known > 0.0:
                value = np.float64(vectors[3, base + row * stride + column]) * deviation + shift
            filled = np.float32(value) if converged else np.float32(np.nan)
            output[row * keep.shape[1] + column] = (
                filled + noise[row * keep.shape[1] + column] if noise.shape[0] == count else filled
            )


fill = cuda.jit(device=True)(_fill)


def _build_operators(keep: Any, planes: Any, levels: Any) -> None:
    """keep (masks, H, W), planes (masks, 6, elements of all levels). Blocks: (masks)."""
    mask = cuda.blockIdx.x
    build(keep[mask], planes[mask], levels, cuda.threadIdx.x, cuda.blockDim.x)


def _impute(
    images: Any, keep: Any, planes: Any, vectors: Any, levels: Any, noise: Any, output: Any, first: Any, per_image: Any
) -> None:
    """images (N, C, H W), noise (C, H W or less), output (masks of all images, C, H W).

    keep, planes and vectors (masks, C, 6, elements) are those of the masks from number ``first`` on; ``per_image``
    masks belong to an image. Blocks: (C, masks).
    """
    scratch = cuda.shared.array(SCRATCH, np.float64)
    channel, mask = cuda.blockIdx.x, cuda.blockIdx.y
    fill(
        images[(first + mask) // per_image, channel],
        keep[mask],
        planes[mask],
        vectors[mask, channel],
        levels,
        noise[channel],
        output[first + mask, channel],
        scratch,
        cuda.threadIdx.x,
        cuda.blockDim.x,
    )


build_operators = bounded_kernel(_build_operators)
impute = bounded_kernel(_impute)
