"""What the Numba kernels share: sums and largest values over the threads of a block.

Kernels only read their place in the grid and hand it to device functions, which do the work; so tests can run those on
the CPU too. ``scratch`` is shared memory, float64, one element a thread; the number of threads is a power of two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import config, cuda

SCRATCH = 512
"""Elements of scratch, and the most threads of a block."""

LANES = 32
_REGISTERS = 65536  # of a block


def bounded_kernel(function: Callable[..., None]) -> Any:
    """A kernel that starts with SCRATCH threads: its registers are bounded, which the simulator does not know."""
    if config.ENABLE_CUDASIM:
        return cuda.jit(function)
    return cuda.jit(function, max_registers=_REGISTERS // SCRATCH)


def _block_sum(value: Any, scratch: Any, thread: Any, threads: Any) -> Any:
    """The sum of ``value`` over the threads, in all of them; the order of the additions depends on nothing else."""
    scratch[thread] = value
    cuda.syncthreads()
    half = threads // 2
    while half > 0:
        if thread < half:
            scratch[thread] += scratch[thread + half]
        cuda.syncthreads()
        half //= 2
    total = scratch[0]
    cuda.syncthreads()
    return total


def _block_largest(value: Any, scratch: Any, thread: Any, threads: Any) -> Any:
    """The largest ``value`` of the threads, in all of them; NaN if one is NaN."""
    scratch[thread] = value
    cuda.syncthreads()
    half = threads // 2
    while half > 0:
        if thread < half:
            mine, other = scratch[thread], scratch[thread + half]
            if not other <= mine and mine == mine:
                scratch[thread] = other
        cuda.syncthreads()
        half //= 2
    largest = scratch[0]
    cuda.syncthreads()
    return largest


def _lanes_of(threads: Any) -> Any:
    """How many threads work on a row side by side; the others take the next rows. No division a pixel is needed."""
    return LANES if threads >= LANES else threads


lanes_of = cuda.jit(device=True)(_lanes_of)
block_sum = cuda.jit(device=True)(_block_sum)
block_largest = cuda.jit(device=True)(_block_largest)
