"""Arrays of one call: all on the host, or all on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from camrt.errors import InvalidInputError
from camrt.kernels.cuda.device import Device, DeviceArray
from camrt.types import AnyArray

_FLOAT32 = np.dtype(np.float32)
_FLOAT16 = np.dtype(np.float16)


class Call:
    """Where the arrays of a call lie, and so where its results go.

    Arrays on the device may be float16. Their values are never looked at, since that would wait for the device: what
    another backend refuses because of a value comes out as NaN.

    Args:
        device: the device.
        arrays: the arguments, by name. None is left out.

    Raises:
        InvalidInputError: some arrays are on the host and some on the device, or one there is neither float32, float16
            nor bool.
    """

    def __init__(self, device: Device, **arrays: Any) -> None:
        self._device = device
        given = {name: array for name, array in arrays.items() if array is not None}
        here = [name for name, array in given.items() if not device.is_device_array(array)]
        self.on_host = bool(here)
        if here and len(here) < len(given):
            there = [name for name in given if name not in here]
            raise InvalidInputError(
                f"{', '.join(here)} is on the host, {', '.join(there)} on the device.",
                "Pass all arrays from one place.",
            )
        self._arrays = given if self.on_host else {name: device.adopt(array) for name, array in given.items()}
        for name, array in self._arrays.items():
            if not self.on_host and array.dtype not in (_FLOAT32, _FLOAT16, np.bool_):
                raise InvalidInputError(
                    f"{name} of shape {array.shape} has dtype {array.dtype}; expected float32 or float16."
                )

    def shape_of(self, name: str) -> AnyArray:
        """What the shared checks are to look at: the array itself on the host, else zeros of its shape.

        The zeros take up no memory.
        """
        array = self._arrays[name]
        if self.on_host:
            checked: AnyArray = array
            return checked
        dtype = np.bool_ if array.dtype == np.bool_ else np.float32
        return np.broadcast_to(np.zeros((), dtype), array.shape)

    def take(self, name: str, half: bool = False) -> DeviceArray:
        """The array on the device, contiguous: bool, or float32, or as it is with ``half``."""
        array = self._arrays[name]
        own = self._device.to_device(array) if self.on_host else array
        return own.astype(np.float32) if own.dtype == _FLOAT16 and not half else own

    def take_pair(self, first: str, second: str) -> tuple[DeviceArray, DeviceArray]:
        """Two arrays of one type, float32 or float16."""
        half = all(self._arrays[name].dtype == _FLOAT16 for name in (first, second))
        return self.take(first, half), self.take(second, half)

    def give(self, result: DeviceArray) -> Any:
        """The result where the arguments are."""
        return self._device.to_host(result) if self.on_host else result

    def give_all(self, results: Sequence[DeviceArray]) -> list[Any]:
        """Several results where the arguments are."""
        return [self.give(result) for result in results]


def suffix(array: DeviceArray) -> str:
    """What the names of kernels for this type of array end in."""
    return "f16" if array.dtype == _FLOAT16 else "f32"
