"""What the compiler says of every CUDA kernel: ``python -m benchmarks.gpu_kernels --json results.json``.

Registers, spilled bytes and shared memory for every architecture. Needs nvcc and Numba, no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from camrt.kernels.cuda.device import SOURCES
from tests.kernels.cuda.compilation import ARCHITECTURES, Usage, compile_numba, compile_sources, missing_tools


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles everything and prints one line a kernel; 2 where the compiler is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if missing_tools():
        print(f"Nothing can be compiled here: {missing_tools()}.", file=sys.stderr)
        return 2
    usage: list[Usage] = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted(SOURCES.glob("*.cu")):
            usage += compile_sources(source, Path(folder))
        for uses in compile_numba(Path(folder)).values():
            usage += uses
    for kernel in sorted({use.kernel for use in usage}):
        registers = {use.architecture: use.registers for use in usage if use.kernel == kernel}
        spilled = sum(use.spilled_bytes for use in usage if use.kernel == kernel)
        print(f"{kernel:28}", *(f"sm_{number} {registers[number]:3}" for number in ARCHITECTURES), f"spilled {spilled}")
    if options.json:
        compiler = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
        rows = [dataclasses.asdict(use) for use in usage]
        options.json.write_text(json.dumps({"compiler": compiler.splitlines()[-2], "kernels": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
