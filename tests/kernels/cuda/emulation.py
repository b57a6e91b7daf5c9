"""A Device without a GPU: the kernels of src/*.cu run on the CPU as fibers, those in Numba compiled for one thread.

What is proven this way is the kernels' own source, the backend's launches, and the layout of every argument. Allocations
have guards around them and start as NaN.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from camrt.kernels.cuda.device import HEADERS, SOURCES, check_grid, typed

HOST = Path(__file__).parent / "host"
_GUARD = 256
_NUMBA_MODULES = ("numba_blocks", "numba_masks", "numba_multigrid", "numba_imputation")


def kernel_names(source: Path) -> list[str]:
    return re.findall(r'extern "C" __global__ void __launch_bounds__\([^)]*\)\s+(\w+)\(', source.read_text())


def build_host_kernels(folder: Path, *flags: str) -> Path:
    """A library with a function host_<kernel> for every kernel."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    units = []
    for source in sorted(SOURCES.glob("*.cu")):
        names = kernel_names(source)
        assert names, source
        unit = folder / f"{source.stem}.cpp"
        exports = "\n".join(f"CAMRT_HOST_KERNEL({name})" for name in names)
        unit.write_text(f'#include "shim.hpp"\n#include "{source.name}"\n{exports}\n')
        units.append(str(unit))
    order = folder / "order.cpp"
    order.write_text('#include "shim.hpp"\nextern "C" void set_order(int order) { host::block.order = order; }\n')
    units.append(str(order))
    library = folder / "host_kernels.so"
    # Fibers are left by longjmp, which FORTIFY_SOURCE takes for an error.
    options = [
        "-std=c++20",
        "-O2",
        "-fPIC",
        "-shared",
        "-ffp-contract=off",
        "-U_FORTIFY_SOURCE",
        "-Wno-unknown-pragmas",
    ]
    includes = [f"-I{path}" for path in (HOST, SOURCES, HEADERS)]
    subprocess.run([compiler, *options, *flags, *includes, *units, "-o", str(library)], check=True)
    return library


class EmulatedArray(np.ndarray):
    """An array "on the device": NumPy's, but told apart from those on the host."""

    guarded: Any = None

    def __array_finalize__(self, other: Any) -> None:
        self.guarded = getattr(other, "guarded", None)


class EmulatedDevice:
    """See Device.

    Args:
        library: what build_host_kernels made.
        numba_threads: threads of a block of the Numba kernels.
    """

    def __init__(self, library: Path, numba_threads: int = 1) -> None:
        self._library = ctypes.CDLL(str(library))
        self.numba_threads = self.solver_threads = numba_threads
        self.description = "emulated"
        self.copies_to_host = 0
        self.launches: list[str] = []
        self._recorder: list[Callable[[], None]] | None = None

    def is_device_array(self, value: object) -> bool:
        return isinstance(value, EmulatedArray) or hasattr(value, "__cuda_array_interface__")

    def adopt(self, array: Any) -> Any:
        known = getattr(array, "__cuda_array_interface__", None)
        if known is not None:  # of a device whose memory is the host's
            dtype, shape, (address, _) = np.dtype(known["typestr"]), known["shape"], known["data"]
            memory = (ctypes.c_ubyte * (int(np.prod(shape)) * dtype.itemsize)).from_address(address)
            return np.frombuffer(memory, dtype).reshape(shape).view(EmulatedArray)
        return array if array.flags.c_contiguous else self.to_device(np.asarray(array))

    def to_device(self, array: Any) -> Any:
        own = self.empty(array.shape, array.dtype)
        own[...] = array
        return own

    def to_host(self, array: Any) -> Any:
        self.copies_to_host += 1
        return np.array(array, subok=False)

    def pointer(self, array: Any) -> int:
        return int(array.ctypes.data)

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        whole = np.full(size + 2 * _GUARD, 0xFF, np.uint8)
        whole[:_GUARD] = whole[size + _GUARD :] = 0xA5
        own = whole[_GUARD : size + _GUARD].view(dtype).reshape(shape).view(EmulatedArray)
        own.guarded = whole
        return own

    def zeros(self, shape: Sequence[int], dtype: Any) -> Any:
        own = self.empty(shape, dtype)
        own[...] = 0
        return own

    def launch(self, source: str, kernel: str, grid: Any, block: Any, arguments: Sequence[Any]) -> None:
        check_grid(grid)
        assert kernel in kernel_names(SOURCES / f"{source}.cu")
        self.launches.append(kernel)
        # As CuPy does: an array is its address, a number or a structured array of one element its bytes.
        values = [
            np.uint64(self.pointer(argument)) if isinstance(argument, EmulatedArray) else typed(argument)
            for argument in arguments
        ]
        stored = [value if isinstance(value, np.ndarray) else np.array(value) for value in values]
        addresses = (ctypes.c_void_p * len(stored))(*[value.ctypes.data for value in stored])
        dims = (ctypes.c_uint * 6)(*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3])

        def run() -> None:
            assert stored
            self._library[f"host_{kernel}"](dims, addresses)
            _check_guards(kernel, arguments)

        run() if self._recorder is None else self._recorder.append(run)

    def launch_numba(self, kernel: Any, grid: Any, threads: int, arguments: Sequence[Any]) -> None:
        check_grid(grid)
        self.launches.append(kernel.__name__)
        plain = [
            argument.view(np.ndarray) if isinstance(argument, EmulatedArray) else argument for argument in arguments
        ]
        self.run_numba(kernel, grid, threads, plain)
        _check_guards(kernel.__name__, arguments)

    def run_numba(self, kernel: Any, grid: Any, threads: int, arguments: Sequence[Any]) -> None:
        one_thread.run(kernel, grid, arguments)

    @contextlib.contextmanager
    def order(self, number: int) -> Iterator[None]:
        """Within it, the threads of a block take turns in another order: 1 from the last to the first, above mixed."""
        self._library.set_order(number)
        yield
        self._library.set_order(0)

    def record(self, work: Callable[[], Any]) -> EmulatedRecording:
        self._recorder = []
        try:
            return EmulatedRecording(work(), self._recorder)
        finally:
            self._recorder = None

    @contextlib.contextmanager
    def on_stream(self, handle: int) -> Iterator[None]:
        self.launches.append(f"stream {handle}")
        yield


class EmulatedRecording:
    """Launches of EmulatedDevice.launch, kept with the arrays that they use."""

    def __init__(self, result: Any, runs: list[Callable[[], None]]) -> None:
        self.result, self._runs = result, runs

    def launch(self) -> None:
        for run in self._runs:
            run()


def _check_guards(kernel: str, arguments: Sequence[Any]) -> None:
    for number, argument in enumerate(arguments):
        whole = getattr(argument, "guarded", None)
        if whole is not None:
            edges = np.concatenate([whole[:_GUARD], whole[-_GUARD:]])
            assert (edges == 0xA5).all(), f"{kernel} writes outside of argument {number}"


class OneThread:
    """numba.cuda for blocks of one thread on the CPU: device functions are compiled, kernels are plain Python."""

    def __init__(self) -> None:
        self._modules: dict[str, types.ModuleType | None] = {}
        self.cuda: Any = types.ModuleType("one_thread_cuda")

    def _fill(self, numba: Any) -> None:
        def atomic_add(array: Any, index: Any, value: Any) -> None:
            array[index] += value

        def nothing() -> None:
            pass

        def jit(function: Any, device: bool = False) -> Any:
            return numba.njit(function) if device else function

        self.cuda.jit = lambda function=None, device=False, max_registers=None: (
            jit(function) if function is not None else lambda inner: jit(inner, device)
        )
        self.cuda.syncthreads = numba.njit(nothing)
        self.cuda.atomic = types.ModuleType("atomic")
        self.cuda.atomic.__dict__["add"] = numba.njit(atomic_add)
        self.cuda.shared = types.SimpleNamespace(array=lambda size, kind: np.zeros(size, kind))
        self.cuda.threadIdx = types.SimpleNamespace(x=0)
        self.cuda.blockDim = types.SimpleNamespace(x=1)

    @contextlib.contextmanager
    def modules(self) -> Iterator[None]:
        """Within it, the modules numba_*.py are those for one thread; without Numba nothing changes."""
        if importlib.util.find_spec("numba") is None:
            yield
            return
        import camrt.kernels.cuda as package

        before = {name: sys.modules.get(f"{package.__name__}.{name}") for name in _NUMBA_MODULES}
        if not self._modules:
            self._modules = self._import(package)
        _place(package, self._modules)
        try:
            yield
        finally:
            _place(package, before)

    def _import(self, package: types.ModuleType) -> dict[str, types.ModuleType | None]:
        import numba
        import numba.cuda  # so that it can be replaced

        self._fill(numba)
        _place(package, dict.fromkeys(_NUMBA_MODULES))
        with mock.patch.object(numba, "cuda", self.cuda):
            return {name: importlib.import_module(f"{package.__name__}.{name}") for name in _NUMBA_MODULES}

    def run(self, kernel: Any, grid: Sequence[int], arguments: Sequence[Any]) -> None:
        shape = (*grid, 1, 1)[:3]
        self.cuda.gridDim = types.SimpleNamespace(**dict(zip("xyz", shape, strict=True)))
        for z, y, x in np.ndindex(*shape[::-1]):
            self.cuda.blockIdx = types.SimpleNamespace(x=x, y=y, z=z)
            kernel(*arguments)


def _place(package: types.ModuleType, modules: Mapping[str, types.ModuleType | None]) -> None:
    """Makes these the submodules of a package; None removes one."""
    for name, module in modules.items():
        sys.modules.pop(f"{package.__name__}.{name}", None)
        package.__dict__.pop(name, None)
        if module is not None:
            sys.modules[f"{package.__name__}.{name}"] = module
            setattr(package, name, module)


one_thread = OneThread()
