"""What a run leaves on a GPU for kernels that read it there."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from camrt.runtime.cuda_driver import CudaDriver
from camrt.types import AnyArray


@dataclass(frozen=True, slots=True)
class DeviceOutputs:
    """Arrays on the device, with DLPack or the CUDA array interface, and ``numpy()``, which copies them to the host.

    Attributes:
        logits: (N, K).
        class_indices: (M,).
        layers: layer name -> activations (N, C, h, w) and gradients (M, C, h, w).
        stream: the CUDA stream of the run, a cudaStream_t as an integer. Whoever reads the arrays does it there.
        memory: None where the arrays are new in every run. Else it stands for their addresses and shapes: what reads
            them may be recorded, and replayed where ``memory`` is the same.
    """

    logits: Any
    class_indices: Any
    layers: dict[str, tuple[Any, Any]]
    stream: int
    memory: Hashable | None = None


class DeviceArray:
    """A contiguous array in a session's memory on the device.

    Args:
        driver: of the device.
        stream: where it is written, a cudaStream_t as an integer.
        address: of the first element.
        shape: its shape.
        dtype: its element type.
    """

    def __init__(
        self, driver: CudaDriver, stream: int, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._driver, self._stream = driver, stream
        self.address, self.shape, self.dtype = address, shape, dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3. Without a stream: the reader is on the session's, and has nothing to wait for."""
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3}

    def numpy(self) -> AnyArray:
        """A copy on the host, when the stream has written the array."""
        host: AnyArray = np.empty(self.shape, self.dtype)
        self._driver.copy_out(host, self.address, self._stream)
        self._driver.synchronize(self._stream)
        return host
