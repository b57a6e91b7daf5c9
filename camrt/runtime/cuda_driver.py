"""What an engine needs of CUDA, from the driver itself: memory, streams, copies, graphs, and what the device is.

The driver's library comes with every NVIDIA driver and keeps its interface, so no CUDA toolkit is needed. Every
function that is called is in ``FUNCTIONS``.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from camrt.errors import BackendUnavailableError
from camrt.types import AnyArray

LIBRARY = "libcuda.so.1"
FUNCTIONS = (
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuStreamDestroy_v2",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
)
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NON_BLOCKING = 1
_CAPTURE_THIS_THREAD = 1
_NAME_BYTES = 256
_VERSION_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """The GPU and its driver."""

    name: str
    compute_capability: tuple[int, int]
    driver_version: str

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.name}, compute capability {major}.{minor}, driver {self.driver_version}"


class CudaDriver:
    """Device 0 and its primary context, which CuPy and ONNX Runtime use too. Safe to use from several threads.

    Args:
        library: the driver's functions, ``load_library()``.

    Raises:
        BackendUnavailableError: there is no GPU, or the driver refuses.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._attached = threading.local()
        self._call("cuInit", 0)
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, _NAME_BYTES, device)
        numbers = []
        for attribute in (_MAJOR, _MINOR):
            number = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
            numbers.append(number.value)
        self.info = DeviceInfo(name.value.decode(errors="replace"), (numbers[0], numbers[1]), self._driver_version())

    def attach(self) -> None:
        """Makes the context the calling thread's; every other method needs that."""
        if not getattr(self._attached, "done", False):
            self._call("cuCtxSetCurrent", self._context)
            self._attached.done = True

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes on the device."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Gives memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def copy_in(self, address: int, array: AnyArray, stream: int) -> None:
        """Copies a contiguous array to the device; the array must live until the stream has done it."""
        source = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, *_size_and_stream(array, stream))

    def copy_out(self, array: AnyArray, address: int, stream: int) -> None:
        """Copies from the device into a contiguous array, which holds it after ``synchronize``."""
        target = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), *_size_and_stream(array, stream))

    def create_stream(self) -> int:
        """A stream that does not wait for the default stream."""
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        return stream.value or 0

    def synchronize(self, stream: int) -> None:
        """Waits until a stream has done everything."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def destroy_stream(self, stream: int) -> None:
        """Ends a stream when it has done everything."""
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def begin_capture(self, stream: int) -> None:
        """From here on, what goes to the stream is recorded and not run."""
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), _CAPTURE_THIS_THREAD)

    def end_capture(self, stream: int) -> int:
        """What was recorded, ready to be launched."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
        self._call("cuGraphDestroy", graph)
        return executable.value or 0

    def launch(self, executable: int, stream: int) -> None:
        """Runs a recording."""
        self._call("cuGraphLaunch", ctypes.c_void_p(executable), ctypes.c_void_p(stream))

    def forget(self, executable: int) -> None:
        """Frees a recording."""
        self._call("cuGraphExecDestroy", ctypes.c_void_p(executable))

    def _driver_version(self) -> str:
        """The driver's own number where Linux shows it, with the newest CUDA version that it speaks."""
        number = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(number))
        cuda = f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
        try:
            words = _VERSION_FILE.read_text(encoding="utf-8", errors="replace").split()
        except OSError:
            return cuda
        own = next((word for word in words if word.count(".") in (1, 2) and word[0].isdecimal()), None)
        return cuda if own is None else f"{own} ({cuda})"

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise BackendUnavailableError(
                f"The NVIDIA driver's {name} failed with error {code}.", "See `nvidia-smi`, and the driver's log."
            )


def load_library() -> Any:
    """The driver's library.

    Raises:
        BackendUnavailableError: there is none.
    """
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise BackendUnavailableError(
            f"There is no NVIDIA driver on this machine ({LIBRARY} is missing).",
            "Install the driver, or start the container with --gpus all.",
        ) from error


@cache
def cuda_driver() -> CudaDriver:
    """The driver of this process."""
    return CudaDriver(load_library())


def _size_and_stream(array: AnyArray, stream: int) -> tuple[ctypes.c_size_t, ctypes.c_void_p]:
    assert array.flags.c_contiguous
    return ctypes.c_size_t(array.nbytes), ctypes.c_void_p(stream)
