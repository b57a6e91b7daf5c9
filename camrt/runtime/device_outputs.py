"""What a run leaves on a GPU for kernels that read it there."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from camrt.bundle import Manifest
from camrt.errors import BundleError
from camrt.runtime.cuda_driver import CudaDriver
from camrt.types import AnyArray


@dataclass(frozen=True, slots=True)
class DeviceOutputs:
    """Arrays on the device, with DLPack or the CUDA array interface, and ``numpy()``, which copies them to the host.

    Attributes:
        logits: (N, K).
        class_indices: (M,).
        layers: layer name -> activations (N, C, h, w) and gradients (M, C, h, w).
        stream: the CUDA stream of the run, a cudaStream_t as an integer. Whoever reads the arrays does it there: they
            may not be written yet.
        memory: None where the arrays are new in every run. Else it stands for their addresses and shapes: what reads
            them may be recorded, and replayed where ``memory`` is the same.
    """

    logits: Any
    class_indices: Any
    layers: dict[str, tuple[Any, Any]]
    stream: int
    memory: Hashable | None = None


def device_outputs(
    manifest: Manifest,
    outputs: Sequence[str],
    arrays: Sequence[Any],
    layers: Sequence[str],
    stream: int,
    fixed: bool,
) -> DeviceOutputs:
    """The arrays of a run by what they are.

    Args:
        manifest: of the bundle.
        outputs: names of the graph's outputs.
        arrays: DeviceArray or OrtValue, one an output.
        layers: the layers asked for.
        stream: of the run.
        fixed: whether every run of these shapes writes to these addresses.

    Raises:
        BundleError: a layer's array has another shape than the manifest says.
    """
    found = dict(zip(outputs, arrays, strict=True))
    pairs = {}
    for name in layers:
        layer = manifest.layer(name)
        pairs[name] = found[layer.activations], found[layer.gradients]
        for array in pairs[name]:
            if _shape(array)[1:] != layer.shape:
                raise BundleError(
                    f"Layer {name!r} has an array of shape {_shape(array)} where the manifest says (N, {layer.shape}).",
                    "Export the model again.",
                )
    memory = tuple((name, _address(array), _shape(array)) for name, array in found.items()) if fixed else None
    return DeviceOutputs(found[manifest.logits], found[manifest.class_index_output], pairs, stream, memory)


def _shape(array: Any) -> tuple[int, ...]:
    return tuple(array.shape if isinstance(array, DeviceArray) else array.shape())


def _address(array: Any) -> int:
    address: int = array.address if isinstance(array, DeviceArray) else array.data_ptr()
    return address


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
