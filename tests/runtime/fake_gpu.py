"""A driver and a TensorRT that are not there: the calls that camrt makes, carried out by the CPU.

Device memory is host memory, and an engine's plan is its ONNX graph, which ONNX Runtime runs. Only names of
camrt.runtime.tensorrt.api.NAMES and camrt.runtime.cuda_driver.FUNCTIONS exist here, so that a call of any other fails.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime

NAME = b"Fake GPU"


def _address(value: Any) -> int:
    return int(value.value or 0)


@dataclass
class FakeLibrary:
    """libcuda: see camrt.runtime.cuda_driver.FUNCTIONS."""

    memory: dict[int, Any] = field(default_factory=dict)
    freed: int = 0
    streams: int = 0
    destroyed_streams: int = 0
    forgotten: int = 0
    launches: int = 0
    copies_out: int = 0
    failing: str = ""
    capturing: list[Callable[[], None]] | None = None
    graphs: list[list[Callable[[], None]]] = field(default_factory=list)
    attached: int = 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cu") and object.__getattribute__(self, "failing") == name:
            return lambda *_: 999
        return object.__getattribute__(self, name)

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDriverGetVersion(self, number: Any) -> int:
        number._obj.value = 13010
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = NAME
        return 0

    def cuDeviceGetAttribute(self, number: Any, attribute: int, device: Any) -> int:
        number._obj.value = {75: 9, 76: 0}[attribute]
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        context._obj.value = 77
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        assert _address(context) == 77
        self.attached += 1
        return 0

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        buffer = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(buffer)
        self.memory[ctypes.addressof(buffer)] = buffer
        return 0

    def cuMemFree_v2(self, address: Any) -> int:
        del self.memory[_address(address)]
        self.freed += 1
        return 0

    def cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> int:
        assert size.value <= len(self.memory[_address(target)])
        ctypes.memmove(_address(target), _address(source), size.value)
        return 0

    def cuMemcpyDtoHAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> int:
        assert size.value <= len(self.memory[_address(source)])
        self.copies_out += 1
        ctypes.memmove(_address(target), _address(source), size.value)
        return 0

    def cuStreamCreate(self, stream: Any, flags: int) -> int:
        assert flags == 1  # non-blocking
        self.streams += 1
        stream._obj.value = self.streams
        return 0

    def cuStreamSynchronize(self, stream: Any) -> int:
        assert 1 <= _address(stream) <= self.streams
        return 0

    def cuStreamDestroy_v2(self, stream: Any) -> int:
        self.destroyed_streams += 1
        return 0

    def cuGraphExecDestroy(self, executable: Any) -> int:
        self.forgotten += 1
        return 0

    def cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> int:
        self.capturing = []
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:
        assert self.capturing is not None
        self.graphs.append(self.capturing)
        self.capturing, graph._obj.value = None, len(self.graphs)
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:
        executable._obj.value = _address(graph)
        return 0

    def cuGraphDestroy(self, graph: Any) -> int:
        return 0

    def cuGraphLaunch(self, executable: Any, stream: Any) -> int:
        self.launches += 1
        for call in self.graphs[_address(executable) - 1]:
            call()
        return 0


@dataclass
class _Cache:
    content: bytes

    def serialize(self) -> bytes:
        return self.content + b"+"


class FakeTensorRt:
    """The package ``tensorrt``; ``calls`` says what was asked of it."""

    __version__ = "11.4.0.106"

    def __init__(self, library: FakeLibrary) -> None:
        self.library = library
        self.calls: list[tuple[Any, ...]] = []
        self.refuses_to: str | None = None
        outer = self

        class Logger:
            WARNING = 2

            def __init__(self, level: int) -> None:
                assert level == self.WARNING

        class NetworkDefinitionCreationFlag:
            STRONGLY_TYPED = 1

        class BuilderFlag:
            TF32 = 7

        class Builder:
            def __init__(self, logger: Logger) -> None:
                assert isinstance(logger, Logger)

            def create_network(self, flags: int) -> dict[str, bytes]:
                outer.calls.append(("create_network", flags))
                return {}

            def create_builder_config(self) -> _Config:
                return _Config(outer)

            def create_optimization_profile(self) -> _Profile:
                return _Profile()

            def build_serialized_network(self, network: dict[str, bytes], config: _Config) -> bytes | None:
                outer.calls.append(("build", config.profiles))
                return None if outer.refuses_to == "build" else network["graph"]

        class OnnxParser:
            def __init__(self, network: dict[str, bytes], logger: Logger) -> None:
                self._network = network
                self.num_errors = 1 if outer.refuses_to == "parse" else 0

            def parse(self, graph: bytes) -> bool:
                self._network["graph"] = graph
                return self.num_errors == 0

            def get_error(self, index: int) -> str:
                return f"no importer for node {index}"

        class Runtime:
            def __init__(self, logger: Logger) -> None:
                assert isinstance(logger, Logger)

            def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
                return None if outer.refuses_to == "deserialize" else _Engine(outer, plan)

        self.Logger, self.NetworkDefinitionCreationFlag, self.BuilderFlag = (
            Logger,
            NetworkDefinitionCreationFlag,
            BuilderFlag,
        )
        self.Builder, self.OnnxParser, self.Runtime = Builder, OnnxParser, Runtime


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = shapes


class _Config:
    def __init__(self, outer: FakeTensorRt) -> None:
        self._outer = outer
        self.profiles: list[dict[str, tuple[tuple[int, ...], ...]]] = []
        self._cache = _Cache(b"")

    def clear_flag(self, flag: int) -> None:
        self._outer.calls.append(("clear_flag", flag))

    def create_timing_cache(self, content: bytes) -> _Cache:
        self._outer.calls.append(("timing_cache", content))
        return _Cache(content)

    def set_timing_cache(self, cache: _Cache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self._cache = cache
        return True

    def get_timing_cache(self) -> _Cache:
        return self._cache

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1


class _Engine:
    def __init__(self, outer: FakeTensorRt, plan: bytes) -> None:
        self._outer, self._session = outer, onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
        self._graph = onnx.load_model_from_string(plan).graph

    def create_execution_context(self) -> _Context:
        self._outer.calls.append(("create_execution_context",))
        return _Context(self._outer, self._session, self._graph)


class _Context:
    def __init__(self, outer: FakeTensorRt, session: onnxruntime.InferenceSession, graph: onnx.GraphProto) -> None:
        self._outer, self._session, self._graph = outer, session, graph
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._outer.calls.append(("profile", index))
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return self._outer.refuses_to != "shape"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        value = next(output for output in self._graph.output if output.name == name)
        rows = max(shape[0] for shape in self._shapes.values())
        tail = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
        image = [shape[0] for shape in self._shapes.values() if len(shape) > 1]
        per_class = name == "class_index_out" or name.startswith("gradients/")
        return (rows if per_class else image[0], *tail)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address in self._outer.library.memory
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        recorder = self._outer.library.capturing
        addresses, shapes = dict(self._addresses), dict(self._shapes)
        if recorder is not None:
            recorder.append(lambda: self._compute(addresses, shapes))
            return True
        self._outer.calls.append(("execute", stream))
        self._compute(addresses, shapes)
        return True

    def _compute(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        feeds = {}
        for value in self._session.get_inputs():
            dtype = {"tensor(float)": np.float32, "tensor(int64)": np.int64}[value.type]
            memory = self._outer.library.memory[addresses[value.name]]
            shape = shapes[value.name]
            feeds[value.name] = np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape).copy()
        names = [value.name for value in self._session.get_outputs()]
        for name, array in zip(names, self._session.run(names, feeds), strict=True):
            assert array.nbytes <= len(self._outer.library.memory[addresses[name]])
            ctypes.memmove(addresses[name], np.ascontiguousarray(array).ctypes.data, array.nbytes)
