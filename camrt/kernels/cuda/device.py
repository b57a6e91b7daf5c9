"""The GPU as the backend sees it: arrays, launches and streams. The only module that calls CuPy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from camrt.errors import BackendUnavailableError, InvalidInputError
from camrt.kernels.cuda.recordings import Recording
from camrt.types import AnyArray

DeviceArray: TypeAlias = Any
"""A cupy.ndarray; CuPy has no types."""

SOURCES = Path(__file__).parent / "src"
HEADERS = Path(__file__).parent.parent / "native" / "include"
OPTIONS = ("-std=c++17", "--fmad=false")
"""Without contraction, products and sums round as in the other backends. CuPy adds -ftz=true: numbers below 1.2e-38
count as 0."""

NUMBA_THREADS = 256
"""Threads of a block of the Numba kernels: so few that they start with however many registers Numba gives them."""

SOLVER_THREADS = 512
"""Threads of a block that solves one mask: as many as numba_blocks.SCRATCH. A block's time falls with its threads."""

_MOST_BLOCKS = 65535
_CUDA_MEMORY = (2, 13)
"""kDLCUDA and kDLCUDAManaged of DLPack."""

_INSTALL = "Install camrt[cuda] on a machine with an NVIDIA GPU and driver, or choose the backend 'native'."


class Device(Protocol):
    """What the backend needs of a GPU. Arrays have NumPy's shape, dtype, reshape, view and astype."""

    description: str
    numba_threads: int
    solver_threads: int

    def is_device_array(self, value: object) -> bool:
        """Whether ``value`` lies on the GPU and can be used without a copy."""
        ...

    def adopt(self, array: Any) -> DeviceArray:
        """A C-contiguous array of this device over the memory of an array that lies there."""
        ...

    def to_device(self, array: AnyArray) -> DeviceArray:
        """A copy of a host array."""
        ...

    def to_host(self, array: DeviceArray) -> AnyArray:
        """A copy on the host: the one call that waits for the GPU."""
        ...

    def pointer(self, array: DeviceArray) -> int:
        """The address of the first element."""
        ...

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        """An array with any values."""
        ...

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        """An array of zeros."""
        ...

    def launch(
        self, source: str, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any]
    ) -> None:
        """Starts a kernel of ``src/<source>.cu`` on the current stream."""
        ...

    def launch_numba(self, kernel: Any, grid: tuple[int, ...], threads: int, arguments: Sequence[Any]) -> None:
        """Starts a kernel of the modules numba_*.py on the current stream."""
        ...

    def on_stream(self, handle: int) -> AbstractContextManager[Any]:
        """Within it, everything runs on the CUDA stream with this handle (a cudaStream_t as an integer)."""
        ...

    def record(self, work: Callable[[], Any]) -> Recording:
        """Records what ``work`` starts; nothing of it runs."""
        ...


class CupyDevice:
    """The current GPU of CuPy. Every launch and copy goes to CuPy's current stream; Numba gets the same one.

    Raises:
        BackendUnavailableError: CuPy, Numba, a driver or a GPU is missing.
    """

    def __init__(self) -> None:
        self._cupy = _import_cupy()
        self._numba = _import_numba()
        self.numba_threads, self.solver_threads = NUMBA_THREADS, SOLVER_THREADS
        number = self._cupy.cuda.runtime.getDevice()
        properties = self._cupy.cuda.runtime.getDeviceProperties(number)
        name = properties["name"]
        capability = f"{properties['major']}.{properties['minor']}"
        label = name.decode() if isinstance(name, bytes) else str(name)
        self.description = f"{label}, compute capability {capability}, CuPy {self._cupy.__version__}"

    def is_device_array(self, value: object) -> bool:
        """See Device.is_device_array: CuPy's arrays, and any other of DLPack or the CUDA array interface on a GPU."""
        if isinstance(value, self._cupy.ndarray):
            return True
        locate = getattr(value, "__dlpack_device__", None)
        return locate()[0] in _CUDA_MEMORY if locate is not None else hasattr(value, "__cuda_array_interface__")

    def adopt(self, array: Any) -> DeviceArray:
        """See Device.adopt. Only an array with gaps between its elements is copied, on the device."""
        cupy = self._cupy
        if isinstance(array, cupy.ndarray):
            own = array
        else:
            own = cupy.from_dlpack(array) if hasattr(array, "__dlpack__") else cupy.asarray(array)
        return cupy.ascontiguousarray(own)

    def to_device(self, array: AnyArray) -> DeviceArray:
        """See Device.to_device."""
        return self._cupy.asarray(np.ascontiguousarray(array))

    def to_host(self, array: DeviceArray) -> AnyArray:
        """See Device.to_host."""
        host: AnyArray = self._cupy.asnumpy(array)
        return host

    def pointer(self, array: DeviceArray) -> int:
        """See Device.pointer."""
        address: int = array.data.ptr
        return address

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        """See Device.empty."""
        return self._cupy.empty(tuple(shape), dtype)

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        """See Device.zeros."""
        return self._cupy.zeros(tuple(shape), dtype)

    def launch(
        self, source: str, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any]
    ) -> None:
        """See Device.launch."""
        check_grid(grid)
        _kernel(source, kernel)(grid, block, tuple(map(typed, arguments)))

    def launch_numba(self, kernel: Any, grid: tuple[int, ...], threads: int, arguments: Sequence[Any]) -> None:
        """See Device.launch_numba. Arrays are handed over without the synchronisation that Numba makes by itself."""
        check_grid(grid)
        handle = self._cupy.cuda.get_current_stream().ptr
        stream = self._numba.external_stream(handle) if handle else 0
        own = [
            self._numba.as_cuda_array(argument, sync=False) if isinstance(argument, self._cupy.ndarray) else argument
            for argument in arguments
        ]
        configure(kernel, grid, threads, stream)(*own)

    def on_stream(self, handle: int) -> AbstractContextManager[Any]:
        """See Device.on_stream."""
        streams = self._cupy.cuda
        # CuPy 14 has another way than CuPy 13.
        known = getattr(streams.Stream, "from_external", None)
        stream: AbstractContextManager[Any] = known(_Stream(handle)) if known else streams.ExternalStream(handle)
        return stream

    def record(self, work: Callable[[], Any]) -> Recording:
        """See Device.record."""
        return _CupyRecording(self._cupy, work)


class _CupyRecording:
    """A CUDA graph, its result, and the memory that its kernels use: nobody else gets any of it.

    It is recorded on a stream of its own: what other threads send to a stream meanwhile would be recorded too.
    """

    def __init__(self, cupy: Any, work: Callable[[], Any]) -> None:
        self._cupy, self._pool = cupy, cupy.cuda.MemoryPool()
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream, cupy.cuda.using_allocator(self._pool.malloc):
            stream.begin_capture()
            try:
                self.result = work()
            finally:
                self._graph = stream.end_capture()

    def launch(self) -> None:
        """See Recording.launch."""
        self._graph.launch(self._cupy.cuda.get_current_stream())


class _Stream:
    """A stream of somebody else, in the CUDA stream protocol."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        """Version of the protocol, and the handle."""
        return 0, self._handle


def configure(kernel: Any, grid: tuple[int, ...], threads: int, stream: Any) -> Any:
    """A Numba kernel, ready to be called, without Numba's warning that a small grid does not fill the GPU."""
    from numba.cuda import dispatcher

    before = dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS
    dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0
    try:
        return kernel[grid, threads, stream]
    finally:
        dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS = before


def typed(argument: Any) -> Any:
    """An argument of a kernel: Python's int and float become the C types int and float."""
    if isinstance(argument, int):
        return np.int32(argument)
    return np.float32(argument) if type(argument) is float else argument


def check_grid(grid: tuple[int, ...]) -> None:
    """Check the second and third axis of a grid, one of which counts maps or layers.

    Raises:
        InvalidInputError: more than CUDA allows.
    """
    if max(grid[1:], default=0) > _MOST_BLOCKS:
        raise InvalidInputError(
            f"A batch of {max(grid[1:])} maps is too large for one call.", f"Pass at most {_MOST_BLOCKS} at a time."
        )


@cache
def _kernel(source: str, name: str) -> Any:
    return _module(source).get_function(name)


@cache
def _module(source: str) -> Any:
    """The kernels of ``src/<source>.cu``, compiled at first use; CuPy keeps the binaries in its own cache."""
    import cupy

    # CuPy's cache looks at the source and the options, not at the headers.
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.cuh"), *(HEADERS / "camrt" / "math").glob("*.hpp")]):
        digest.update(path.read_bytes())
    options = (*OPTIONS, f"-I{HEADERS}", f"-I{SOURCES}", f"-DCAMRT_HEADERS=0x{digest.hexdigest()[:8]}")
    return cupy.RawModule(code=(SOURCES / f"{source}.cu").read_text(encoding="utf-8"), options=options)


def _import_cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise BackendUnavailableError(f"The CUDA kernels need CuPy: {error}.", _INSTALL) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendUnavailableError(f"CuPy finds no usable GPU: {error}.", _INSTALL) from error
    if count == 0:
        raise BackendUnavailableError("CuPy finds no GPU.", _INSTALL)
    return cupy


def _import_numba() -> Any:
    try:
        from numba import cuda
    except ImportError as error:
        raise BackendUnavailableError(f"The CUDA kernels need Numba: {error}.", _INSTALL) from error
    if not cuda.is_available():
        reason = cuda.cuda_error() or "it finds no driver, GPU or compiler (libnvvm)"
        raise BackendUnavailableError(f"Numba cannot use the GPU: {reason}.", _INSTALL)
    _load_numba_types()
    return cuda


def _load_numba_types() -> None:
    """Loads what Numba otherwise loads at the first kernel, where it would be too late to choose another backend.

    numba-cuda 0.30 cannot with NumPy 2.5, which lacks a name that it uses.

    Raises:
        BackendUnavailableError: Numba does not fit NumPy.
    """
    from numba.cuda import descriptor

    try:
        descriptor.cuda_target.typing_context.refresh()
    except (AttributeError, ImportError) as error:
        raise BackendUnavailableError(
            f"Numba's CUDA kernels do not work with NumPy {np.__version__}: {error}.",
            "Install versions that fit: pip install --upgrade 'camrt[cuda]'.",
        ) from error
