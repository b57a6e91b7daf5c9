"""The kernels compile for every kind of GPU, without warnings, spills or more registers than a block can have."""

from __future__ import annotations

from pathlib import Path

import pytest

from camrt.kernels.cuda.device import NUMBA_THREADS, SOLVER_THREADS, SOURCES
from tests.kernels.cuda import compilation
from tests.kernels.cuda.emulation import kernel_names

pytestmark = pytest.mark.skipif(bool(compilation.missing_tools()), reason=compilation.missing_tools() or "none")
REGISTERS_OF_A_MULTIPROCESSOR = 65536


@pytest.mark.parametrize("source", sorted(SOURCES.glob("*.cu")), ids=lambda path: path.name)
def test_sources_compile(source: Path, tmp_path: Path):
    usage = compilation.compile_sources(source, tmp_path)
    compiled = {(use.kernel, use.architecture) for use in usage}
    assert compiled == {(name, number) for name in kernel_names(source) for number in compilation.ARCHITECTURES}
    # At least 24 warps fit on a multiprocessor.
    assert max(use.registers for use in usage) * 24 * 32 <= REGISTERS_OF_A_MULTIPROCESSOR
    assert sum(use.spilled_bytes for use in usage) == 0


@pytest.mark.slow
def test_numba_kernels_compile(tmp_path: Path):
    pytest.importorskip("numba", reason="Numba is not installed")
    usage = compilation.compile_numba(tmp_path)
    assert len(usage) == 8
    for uses in usage.values():
        assert [use.architecture for use in uses] == list(compilation.ARCHITECTURES)
        # At least two blocks fit on a multiprocessor, of those that solve one.
        assert max(use.registers for use in uses) * NUMBA_THREADS * 2 <= REGISTERS_OF_A_MULTIPROCESSOR
        assert max(use.registers for use in uses) * SOLVER_THREADS <= REGISTERS_OF_A_MULTIPROCESSOR
        assert sum(use.spilled_bytes for use in uses) == 0
