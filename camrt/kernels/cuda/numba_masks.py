"""Keep masks, masked images and map statistics in Numba. Formulas: PerturbationKernels.

Maps come as their bits, uint32, where they are sorted: ordered as unsigned numbers after `_ordered`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda

from camrt.kernels.cuda.numba_blocks import SCRATCH, block_sum
from camrt.kernels.perturbation import PEARSON_EPSILON

BINS = 256
_SIGN = 0x80000000
_ALL = 0xFFFFFFFF
_ONE = np.float32(1)
_EPSILON = PEARSON_EPSILON


def _ordered(bits: Any) -> Any:
    """Bits of a float32 to a number that grows with it."""
    number = np.int64(bits)
    return number ^ _ALL if number >= _SIGN else number | _SIGN


def _bits(number: Any) -> Any:
    """The inverse of _ordered."""
    return number ^ _SIGN if number >= _SIGN else number ^ _ALL


def _select(bits: Any, rank: Any, counts: Any, state: Any, thread: Any, threads: Any) -> Any:
    """Bits of the element of ``bits`` (H W) with ``rank`` in ascending order: eight bits a round, highest first.

    counts (BINS) and state (2) are shared memory, int32.
    """
    prefix = np.int64(0)
    remaining = np.int64(rank)
    for round_number in range(4):
        shift = 24 - 8 * round_number
        for i in range(thread, BINS, threads):
            counts[i] = 0
        cuda.syncthreads()
        for i in range(thread, bits.shape[0], threads):
            number = ordered(bits[i])
            if number >> (shift + 8) == prefix:
                cuda.atomic.add(counts, (number >> shift) & 255, 1)
        cuda.syncthreads()
        if thread == 0:
            chosen = 0
            left = remaining
            while chosen < BINS - 1 and left >= counts[chosen]:
                left -= counts[chosen]
                chosen += 1
            state[0] = chosen
            state[1] = left
        cuda.syncthreads()
        prefix = (prefix << 8) | np.int64(state[0])
        remaining = np.int64(state[1])
        cuda.syncthreads()
    return to_bits(prefix)


def _quantile(first: Any, second: Any, fraction: Any) -> Any:
    """Between two neighbouring values, float64, as NumPy's linear quantiles."""
    difference = second - first
    return second - difference * (1.0 - fraction) if fraction >= 0.5 else first + difference * fraction


ordered = cuda.jit(device=True)(_ordered)
to_bits = cuda.jit(device=True)(_bits)
select = cuda.jit(device=True)(_select)
quantile = cuda.jit(device=True)(_quantile)


def _select_ranks(maps: Any, ranks: Any, output: Any) -> None:
    """output[n, r] = bits of the element of maps[n] (N, H W) with rank ranks[r] (R). Blocks: (R, N)."""
    counts = cuda.shared.array(BINS, np.int32)
    state = cuda.shared.array(2, np.int32)
    n, r = cuda.blockIdx.y, cuda.blockIdx.x
    found = select(maps[n], ranks[r], counts, state, cuda.threadIdx.x, cuda.blockDim.x)
    if cuda.threadIdx.x == 0:
        output[n, r] = found


def _thresholds_of(values: Any, fractions: Any, output: Any, thread: Any, threads: Any) -> None:
    """output (2 F) from values (4 F) of one map: those at the ranks below and above each share, and their mirrors."""
    count = fractions.shape[0]
    for f in range(thread, count, threads):
        lower, upper = np.float64(values[4 * f]), np.float64(values[4 * f + 1])
        output[f] = quantile(lower, upper, fractions[f])
        lower, upper = np.float64(_ONE - values[4 * f + 2]), np.float64(_ONE - values[4 * f + 3])
        output[count + f] = quantile(lower, upper, fractions[f])


def _keep(value: Any, limits: Any, masks: Any, pixel: Any) -> None:
    """masks[b, pixel] (2 F, H W) of one pixel of relevance ``value``."""
    half = limits.shape[0] // 2
    mirrored = np.float64(_ONE - value)
    for b in range(half):
        masks[b, pixel] = 1 if np.float64(value) < limits[b] else 0
        masks[half + b, pixel] = 1 if mirrored < limits[half + b] else 0


thresholds_of = cuda.jit(device=True)(_thresholds_of)
keep = cuda.jit(device=True)(_keep)


def _thresholds(values: Any, fractions: Any, output: Any) -> None:
    """Blocks: (N)."""
    n = cuda.blockIdx.x
    thresholds_of(values[n], fractions, output[n], cuda.threadIdx.x, cuda.blockDim.x)


def _write_masks(maps: Any, limits: Any, masks: Any) -> None:
    """maps (N, H W), limits (N, 2 F), masks (N, 2 F, H W) of uint8. Blocks: (parts of a map, N)."""
    n = cuda.blockIdx.y
    step = cuda.gridDim.x * cuda.blockDim.x
    for pixel in range(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, maps.shape[1], step):
        keep(maps[n, pixel], limits[n], masks[n], pixel)


def _multiply(image: Any, relevance: Any, output: Any, first: Any, step: Any) -> None:
    """output (C, H W) = image * relevance (H W), pixels first, first + step, ..."""
    for pixel in range(first, relevance.shape[0], step):
        for channel in range(image.shape[0]):
            output[channel, pixel] = image[channel, pixel] * relevance[pixel]


def _correlation(a: Any, b: Any, scratch: Any, thread: Any, threads: Any) -> Any:
    """PerturbationKernels.pearson of two maps (H W)."""
    count = a.shape[0]
    total_a, total_b = 0.0, 0.0
    for i in range(thread, count, threads):
        total_a += np.float64(a[i])
        total_b += np.float64(b[i])
    mean_a = block_sum(total_a, scratch, thread, threads) / count
    mean_b = block_sum(total_b, scratch, thread, threads) / count
    squares_a, squares_b, products = 0.0, 0.0, 0.0
    for i in range(thread, count, threads):
        x, y = np.float64(a[i]) - mean_a, np.float64(b[i]) - mean_b
        squares_a += x * x
        squares_b += y * y
        products += x * y
    degrees = count - 1 if count > 1 else 1
    variance_a = block_sum(squares_a, scratch, thread, threads) / degrees
    variance_b = block_sum(squares_b, scratch, thread, threads) / degrees
    covariance = block_sum(products, scratch, thread, threads) / degrees
    return covariance / (math.sqrt(variance_a) * math.sqrt(variance_b) + _EPSILON)


def _mean_of_absolutes(values: Any, scratch: Any, thread: Any, threads: Any) -> Any:
    """Mean of |m| of one map (H W)."""
    total = 0.0
    for i in range(thread, values.shape[0], threads):
        total += abs(np.float64(values[i]))
    return block_sum(total, scratch, thread, threads) / values.shape[0]


multiply = cuda.jit(device=True)(_multiply)
correlation = cuda.jit(device=True)(_correlation)
mean_of_absolutes = cuda.jit(device=True)(_mean_of_absolutes)


def _masked_images(images: Any, maps: Any, output: Any) -> None:
    """images and output (N, C, H W), maps (N, H W). Blocks: (parts of a map, N)."""
    n = cuda.blockIdx.y
    first = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    multiply(images[n], maps[n], output[n], first, cuda.gridDim.x * cuda.blockDim.x)


def _pearson(first: Any, second: Any, output: Any) -> None:
    """Maps (N, H W), output (N) float64. Blocks: (N)."""
    scratch = cuda.shared.array(SCRATCH, np.float64)
    n = cuda.blockIdx.x
    found = correlation(first[n], second[n], scratch, cuda.threadIdx.x, cuda.blockDim.x)
    if cuda.threadIdx.x == 0:
        output[n] = found


def _mean_absolute(maps: Any, output: Any) -> None:
    """Maps (N, H W), output (N) float64. Blocks: (N)."""
    scratch = cuda.shared.array(SCRATCH, np.float64)
    n = cuda.blockIdx.x
    found = mean_of_absolutes(maps[n], scratch, cuda.threadIdx.x, cuda.blockDim.x)
    if cuda.threadIdx.x == 0:
        output[n] = found


select_ranks = cuda.jit(_select_ranks)
thresholds = cuda.jit(_thresholds)
write_masks = cuda.jit(_write_masks)
masked_images = cuda.jit(_masked_images)
pearson = cuda.jit(_pearson)
mean_absolute = cuda.jit(_mean_absolute)
