"""Compiles the CUDA kernels for real GPUs without having one, and reads what the compiler says of each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from camrt.kernels.cuda.device import HEADERS, OPTIONS, SOURCES

ARCHITECTURES = (75, 80, 90, 120)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one kernel takes on one architecture."""

    kernel: str
    architecture: int
    registers: int
    spilled_bytes: int
    shared_bytes: int


def missing_tools() -> str:
    """Why nothing can be compiled here, or nothing."""
    missing = [tool for tool in ("nvcc", "ptxas") if shutil.which(tool) is None]
    return f"{' and '.join(missing)} not installed" if missing else ""


def compile_sources(source: Path, folder: Path) -> list[Usage]:
    """A .cu file for all architectures; a warning is an error."""
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in ARCHITECTURES]
    strict = ["-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills,-warn-lmem-usage"]
    command = ["nvcc", "-fatbin", *targets, *OPTIONS, "--ftz=true", f"-I{HEADERS}", f"-I{SOURCES}", *strict]
    output = folder / f"{source.stem}.fatbin"
    done = subprocess.run([*command, "-o", str(output), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(parse_usage(done.stderr))


_NUMBA = """
import sys, types, warnings
from numba import cuda, float32, float64, int64, uint8, uint32
import numba.cuda.dispatcher
# Functions that kernels call are compiled for the current device; there is none.
numba.cuda.dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=(7, 5))
from numba.core.errors import NumbaWarning
warnings.simplefilter("error", NumbaWarning)
from camrt.kernels.cuda import numba_imputation, numba_masks
images, maps, flat = float32[:, :, ::1], float32[:, ::1], float64[::1]
masks, levels, solver = uint8[:, :, ::1], int64[:, ::1], float32[:, :, :, ::1]
kernels = {
    numba_masks.select_ranks: (uint32[:, ::1], int64[::1], uint32[:, ::1]),
    numba_masks.thresholds: (maps, flat, float64[:, ::1]),
    numba_masks.write_masks: (maps, float64[:, ::1], masks),
    numba_masks.masked_images: (images, maps, images),
    numba_masks.pearson: (maps, maps, flat),
    numba_masks.mean_absolute: (maps, flat),
    numba_imputation.build_operators: (masks, images, levels),
    numba_imputation.impute: (images, masks, images, solver, levels, maps, images, int64, int64),
}
for kernel, arguments in kernels.items():
    ptx, _ = cuda.compile_ptx(kernel.py_func, arguments, cc=(7, 5))
    with open(f"{sys.argv[1]}/{kernel.py_func.__name__.lstrip('_')}.ptx", "w") as file:
        file.write(ptx)
"""


def compile_numba(folder: Path) -> dict[str, list[Usage]]:
    """Every Numba kernel to PTX, and that for all architectures."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "CUDA_HOME": _toolkit()}
    command = [sys.executable, "-c", _NUMBA, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    usage = {}
    for ptx in sorted(folder.glob("*.ptx")):
        usage[ptx.stem] = [use for number in ARCHITECTURES for use in _assemble(ptx, number)]
    return usage


def _toolkit() -> str:
    """The folder that nvcc takes its files from."""
    command = ["nvcc", "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull]
    steps = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    top = re.search(r"^#\$ TOP=(.*)$", steps, re.MULTILINE)
    assert top, steps
    return str(Path(top[1]).resolve())


def _assemble(ptx: Path, architecture: int) -> Iterator[Usage]:
    command = ["ptxas", f"-arch=sm_{architecture}", "-v", "-warn-spills", "-o", "/dev/null", str(ptx)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for use in parse_usage(done.stderr):
        yield Usage(ptx.stem, use.architecture, use.registers, use.spilled_bytes, use.shared_bytes)


def parse_usage(report: str) -> Iterator[Usage]:
    """What ptxas -v prints."""
    pattern = (
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers([^\n]*)"
    )
    for kernel, architecture, stores, loads, registers, rest in re.findall(pattern, report, re.DOTALL):
        shared = re.search(r"(\d+) bytes smem", rest)
        yield Usage(
            kernel,
            int(architecture),
            int(registers),
            int(stores) + int(loads),
            int(shared[1]) if shared else 0,
        )
