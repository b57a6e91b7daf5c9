"""What the machine can do at most: single-precision GEMM and memory copies. ``python -m camrt.bench.limits THREADS``.

A process of its own measures them, because the number of threads of NumPy's BLAS is fixed when NumPy is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from camrt.errors import InvalidInputError

GEMM_SIZE = 1536
COPY_BYTES = 64 << 20
REPEATS = 12
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_TIMEOUT_SECONDS = 120


def machine_limits(threads: int) -> dict[str, float]:
    """GEMM peak and copy bandwidth with so many threads, each the best of several runs.

    Returns:
        gemm_gflops: single-precision multiply-adds counted as two, 1e9 a second.
        copy_gbytes: bytes read plus bytes written, 1e9 a second.

    Raises:
        InvalidInputError: the measuring process failed, says what it printed; or it took too long.
    """
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
    command = [sys.executable, "-m", "camrt.bench.limits", str(threads)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InvalidInputError(
            f"The machine's limits were not measured within {_TIMEOUT_SECONDS} seconds.",
            "Try again when the machine is less busy.",
        ) from error
    if done.returncode != 0:
        raise InvalidInputError(
            f"The machine's limits could not be measured: {done.stderr.strip()[-300:]}", "Try again."
        )
    return {str(name): float(value) for name, value in json.loads(done.stdout).items()}


def measure(threads: int) -> dict[str, float]:
    """The figures of machine_limits, in this process."""
    return {"gemm_gflops": _gemm_gflops(), "copy_gbytes": _copy_gbytes(threads)}


def _gemm_gflops() -> float:
    left, right = np.random.default_rng(0).random((2, GEMM_SIZE, GEMM_SIZE), np.float32)
    out = np.empty_like(left)
    return 2e-9 * GEMM_SIZE**3 / _fastest(lambda: np.matmul(left, right, out=out))


def _copy_gbytes(threads: int) -> float:
    pairs = [
        (np.ones(COPY_BYTES // threads, np.uint8), np.zeros(COPY_BYTES // threads, np.uint8)) for _ in range(threads)
    ]
    with ThreadPoolExecutor(threads) as pool:
        seconds = _fastest(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs)))
    return 2e-9 * sum(source.nbytes for source, _ in pairs) / seconds


def _fastest(run: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(int(sys.argv[1]))) + "\n")
