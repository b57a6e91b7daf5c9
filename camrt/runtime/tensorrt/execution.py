"""Runs a TensorRT engine: execution contexts with buffers of their own, one a thread at a time."""

from __future__ import annotations

import math
import queue
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from camrt.errors import BackendUnavailableError
from camrt.runtime.cuda_driver import CudaDriver
from camrt.runtime.device_outputs import DeviceArray
from camrt.runtime.engine_options import EngineOptions
from camrt.types import AnyArray


class TensorRtEngine:
    """A deserialised engine and its idle contexts.

    Args:
        engine: TensorRT's ICudaEngine.
        runtime: what made it; it has to live as long.
        driver: of the device.
        outputs: name -> element type, in their order.
        options: buckets, and whether launches are recorded.
    """

    def __init__(
        self,
        engine: Any,
        runtime: Any,
        driver: CudaDriver,
        outputs: Mapping[str, np.dtype[Any]],
        options: EngineOptions,
    ) -> None:
        self._engine, self._runtime, self._driver = engine, runtime, driver
        self._outputs, self._options = outputs, options
        self._idle: queue.SimpleQueue[_Context] = queue.SimpleQueue()
        self.outputs = tuple(outputs)

    def run(self, feeds: Mapping[str, AnyArray]) -> list[AnyArray]:
        """The outputs, in their order, of inputs whose first axes fit the largest bucket."""
        self._driver.attach()
        with self._context() as context:
            return context.run(feeds)

    @contextmanager
    def on_device(self, feeds: Mapping[str, AnyArray]) -> Iterator[OnDevice]:
        """The outputs where the engine wrote them, until the context ends; then another run may write there."""
        self._driver.attach()
        with self._context() as context:
            yield context.on_device(feeds)

    @contextmanager
    def _context(self) -> Iterator[_Context]:
        try:
            context = self._idle.get_nowait()
        except queue.Empty:
            context = _Context(self._engine.create_execution_context(), self._driver, self._outputs, self._options)
        try:
            yield context
        finally:
            self._idle.put(context)


@dataclass(frozen=True, slots=True)
class OnDevice:
    """Outputs of a run on the device.

    Attributes:
        arrays: in the engine's order.
        stream: where they are written.
        fixed: whether a later run of the same shapes writes to the same addresses.
    """

    arrays: list[DeviceArray]
    stream: int
    fixed: bool


class _Context:
    """One execution context, its stream, its buffers on the device, and its recordings."""

    def __init__(
        self, context: Any, driver: CudaDriver, outputs: Mapping[str, np.dtype[Any]], options: EngineOptions
    ) -> None:
        self._context, self._driver, self._outputs, self._options = context, driver, outputs, options
        self._stream = driver.create_stream()
        self._buffers: dict[str, tuple[int, int]] = {}
        self._profile = -1
        self._fed: Mapping[str, AnyArray] = {}  # what is being copied to the device lives until the next run
        self._recordings: dict[tuple[tuple[int, ...], ...], int] = {}
        held = self._buffers, self._recordings
        weakref.finalize(self, _release, driver, self._stream, *held).atexit = False  # the driver may be gone by then

    def run(self, feeds: Mapping[str, AnyArray]) -> list[AnyArray]:
        """See TensorRtEngine.run."""
        results = []
        for array in self._started(feeds):
            results.append(np.empty(array.shape, array.dtype))
            self._driver.copy_out(results[-1], array.address, self._stream)
        self._driver.synchronize(self._stream)
        return results

    def on_device(self, feeds: Mapping[str, AnyArray]) -> OnDevice:
        """See TensorRtEngine.on_device."""
        return OnDevice(self._started(feeds), self._stream, self._options.cuda_graphs)

    def _started(self, feeds: Mapping[str, AnyArray]) -> list[DeviceArray]:
        """Starts a run; the outputs, without what filled the bucket up."""
        fed = self._filled(feeds) if self._options.cuda_graphs else dict(feeds)
        fed = {name: np.ascontiguousarray(array) for name, array in fed.items()}
        self._fed = fed
        self._choose_profile(max(len(array) for array in fed.values()))
        for name, array in fed.items():
            _check(self._context.set_input_shape(name, array.shape), f"the shape {array.shape} of {name!r}")
            self._driver.copy_in(self._bound(name, array.nbytes), array, self._stream)
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in self._outputs}
        for name, shape in shapes.items():
            self._bound(name, math.prod(shape) * self._outputs[name].itemsize)
        self._launch(tuple(array.shape for array in fed.values()))
        rows = max(len(array) for array in feeds.values())
        return [
            DeviceArray(
                self._driver,
                self._stream,
                self._buffers[name][0],
                (min(rows, shape[0]), *shape[1:]),
                self._outputs[name],
            )
            for name, shape in shapes.items()
        ]

    def _filled(self, feeds: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Inputs repeated up to a bucket; one image of several classes stays one image."""
        largest = max(len(array) for array in feeds.values())
        size = self._options.batches[self._options.bucket(largest)]
        alone = len({len(array) for array in feeds.values()}) > 1
        return {
            name: array if alone and len(array) == 1 else np.concatenate([array, *[array[-1:]] * (size - len(array))])
            for name, array in feeds.items()
        }

    def _choose_profile(self, batch: int) -> None:
        profile = self._options.bucket(batch)
        if profile != self._profile:
            done = self._context.set_optimization_profile_async(profile, self._stream)
            _check(done, f"optimisation profile {profile}")
            self._profile = profile

    def _bound(self, name: str, size: int) -> int:
        """The address of a buffer of at least ``size`` bytes, which the context reads or writes."""
        address, capacity = self._buffers.get(name, (0, -1))
        if capacity < size:
            if capacity >= 0:
                self._driver.synchronize(self._stream)
                self._driver.free(address)
            address, capacity = self._driver.allocate(size), size
            self._buffers[name] = address, capacity
            _forget(self._driver, self._recordings)  # they hold the old address
        _check(self._context.set_tensor_address(name, address), f"the address of {name!r}")
        return address

    def _launch(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Runs the engine: as it is, or a recording, which is made after a first run has warmed it up."""
        if self._options.cuda_graphs and shapes in self._recordings:
            self._driver.launch(self._recordings[shapes], self._stream)
            return
        self._enqueue()
        if self._options.cuda_graphs:
            self._driver.synchronize(self._stream)
            self._driver.begin_capture(self._stream)
            self._enqueue()
            self._recordings[shapes] = self._driver.end_capture(self._stream)

    def _enqueue(self) -> None:
        _check(self._context.execute_async_v3(self._stream), "a run")


def _release(driver: CudaDriver, stream: int, buffers: dict[str, tuple[int, int]], recordings: dict[Any, int]) -> None:
    """Gives back what a context held on the device; a bundle closes graphs when too many are open."""
    driver.attach()
    driver.synchronize(stream)
    _forget(driver, recordings)
    for address, _ in buffers.values():
        driver.free(address)
    driver.destroy_stream(stream)


def _forget(driver: CudaDriver, recordings: dict[Any, int]) -> None:
    for executable in recordings.values():
        driver.forget(executable)
    recordings.clear()


def _check(done: object, what: str) -> None:
    if not done:
        raise BackendUnavailableError(
            f"TensorRT refused {what}; its log says why.", "Delete the engine cache, or use provider 'cuda'."
        )


def parts(feeds: Mapping[str, AnyArray], most: int) -> list[dict[str, AnyArray]]:
    """Feeds cut along their first axes to at most ``most``; an input with one row goes to every part."""
    longest = max(len(array) for array in feeds.values())
    return [
        {name: array if len(array) == 1 else array[start : start + most] for name, array in feeds.items()}
        for start in range(0, longest, most)
    ]


def joined(results: Sequence[Sequence[AnyArray]], per_image: Sequence[bool], one_image: bool) -> list[AnyArray]:
    """The outputs of several parts as one.

    Args:
        results: a list of outputs a part.
        per_image: for each output, whether its rows are images rather than classes.
        one_image: whether every part explained the same image, whose rows then count once.
    """
    if len(results) == 1:
        return list(results[0])
    return [
        arrays[0] if one_image and of_images else np.concatenate(arrays)
        for arrays, of_images in zip(zip(*results, strict=True), per_image, strict=True)
    ]
