"""Sessions on ONNX Runtime's GPU providers, "cuda" and "tensorrt-ort": outputs stay on the device until asked for."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from camrt.errors import BackendUnavailableError, InvalidModelError
from camrt.runtime.bundle_session import BundleSession
from camrt.runtime.cuda_driver import CudaDriver, cuda_driver
from camrt.runtime.device_outputs import DeviceOutputs, device_outputs
from camrt.runtime.engine_cache import EngineCache, EngineKey
from camrt.runtime.engine_options import EngineOptions, input_tail
from camrt.runtime.onnxruntime import ENGINE_ERRORS, Provider, inference_session, session_options
from camrt.runtime.providers import onnx_runtime_provider
from camrt.runtime.tensorrt import TENSORRT_ORT
from camrt.runtime.tensorrt.onnxruntime_context import session_by_context, tensorrt_options
from camrt.types import AnyArray, FloatArray, IntArray

logger = logging.getLogger(__name__)
_CUDA = "CUDAExecutionProvider"
_TURN = threading.Lock()
"""With CUDA graphs, whose it is to open or run. While ONNX Runtime records, whatever another graph sends to the stream
would be recorded too, and nobody else in the process may allocate."""
_MOST_RECORDINGS = 16  # shapes that a graph is recorded for; more run without


@dataclass(slots=True)
class _Engine:
    """One graph. Its bindings keep their buffers, so runs take turns; with CUDA graphs those of all engines do."""

    session: onnxruntime.InferenceSession
    outputs: tuple[str, ...]
    lock: threading.Lock
    bindings: dict[tuple[tuple[int, ...], ...], _Binding] = field(default_factory=dict)


@dataclass(slots=True)
class _Binding:
    """Inputs at fixed addresses, for the runs that are recorded."""

    binding: Any
    inputs: dict[str, Any]
    number: int

    @property
    def recorded(self) -> bool:
        """Whether outputs stay at their addresses too."""
        return self.number > 0


class CudaSession(BundleSession[_Engine]):
    """A bundle on an NVIDIA GPU by ONNX Runtime. See camrt.runtime.session.Session for the methods.

    On "cuda", float32 is float32 unless TF32 is asked for; "tensorrt-ort" has TensorRT's default, which is TF32. All
    graphs run on one stream, ``stream``, which kernels may share.

    Args:
        path: the bundle.
        provider: "cuda", or "tensorrt-ort": ONNX Runtime's own use of TensorRT, with fixed profiles.
        threads: of the host.
        options: buckets, cache, CUDA graphs; default from the environment.

    Raises:
        InvalidModelError, BundleError: the file cannot be used.
        BackendUnavailableError: the provider or a GPU is missing.
    """

    device = "cuda"
    most_on_device: int | None = None

    def __init__(
        self,
        path: str | os.PathLike[str],
        provider: str = "cuda",
        threads: int = 0,
        options: EngineOptions | None = None,
    ) -> None:
        self._provider = onnx_runtime_provider(provider)
        self._options = EngineOptions.from_environment() if options is None else options
        super().__init__(path, threads)
        load_cuda_libraries()
        self._driver: CudaDriver = cuda_driver()
        self._driver.attach()
        self.stream = self._driver.create_stream()
        self._cache: tuple[EngineCache, EngineKey] | None = None
        if provider == TENSORRT_ORT:
            version = f"ONNX Runtime {onnxruntime.__version__}"
            key = EngineKey.of_bundle(Path(path), self.manifest.precision, version, self._driver.info, self._options)
            self._cache = EngineCache(self._options.cache), key

    @contextlib.contextmanager
    def outputs_on_device(
        self, inputs: FloatArray, class_indices: IntArray, layers: Sequence[str]
    ) -> Iterator[DeviceOutputs]:
        """As ``run``, without copying anything back to the host.

        With CUDA graphs every run of the same shapes writes to the same memory, so the next one waits until this
        context ends: the arrays must have been read by then.

        Raises:
            InvalidInputError, ClassIndexError: as ``run``, and where no layer is named.
        """
        feeds, wanted = self._feeds_on_device(inputs, class_indices, layers)
        with self._engine(wanted) as engine, contextlib.ExitStack() as turn:
            turn.enter_context(engine.lock)
            bound = self._bound(engine, feeds)
            values = self._values(engine, bound)
            if not self._options.cuda_graphs:
                turn.close()
            yield device_outputs(self.manifest, wanted, values, layers, self.stream, bound.recorded)

    def _open(self, outputs: tuple[str, ...], cut_at: str | None) -> _Engine:
        if not self._options.cuda_graphs:
            return _Engine(self._opened(outputs, cut_at), outputs, threading.Lock())
        with _TURN:
            return _Engine(self._opened(outputs, cut_at), outputs, _TURN)

    def _opened(self, outputs: tuple[str, ...], cut_at: str | None) -> onnxruntime.InferenceSession:
        model = self._model.complete(outputs, cut_at)
        on_cuda = (_CUDA, cuda_options(self.stream, self._options))

        def opened(graph: bytes, *tensorrt: Provider) -> onnxruntime.InferenceSession:
            session = inference_session(graph, session_options(self._threads), [*tensorrt, on_cuda], self._path)
            check_providers(session, {self._provider, _CUDA})
            return session

        if self._cache is None:
            return opened(model)
        cache, key = self._cache
        tails = {name: input_tail(self.manifest, name) for name in self._model.inputs(outputs, cut_at)}
        settings = tensorrt_options(cache.folder, tails, self._options, self.stream)

        def by_tensorrt(graph: bytes, more: dict[str, str]) -> onnxruntime.InferenceSession:
            return opened(graph, (self._provider, settings | more))

        return session_by_context(cache, key.computing(outputs, cut_at), model, by_tensorrt)

    def _execute(self, engine: _Engine, feeds: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        with engine.lock:
            return [value.numpy() for value in self._values(engine, self._bound(engine, feeds))]

    def _values(self, engine: _Engine, bound: _Binding) -> list[Any]:
        """The outputs on the device."""
        run = onnxruntime.RunOptions()
        if self._options.cuda_graphs:
            run.add_run_config_entry("gpu_graph_id", str(bound.number))
        try:
            engine.session.run_with_iobinding(bound.binding, run)
        except ENGINE_ERRORS as error:
            raise InvalidModelError(f"ONNX Runtime cannot run {self._path}: {error}.", "Use provider 'cpu'.") from error
        values: list[Any] = bound.binding.get_outputs()
        return values

    def _bound(self, engine: _Engine, feeds: Mapping[str, AnyArray]) -> _Binding:
        """A binding with the feeds on the device; with CUDA graphs the one that these shapes had before."""
        shapes = tuple(array.shape for array in feeds.values())
        known = engine.bindings.get(shapes)
        if known is not None:
            for name, array in feeds.items():
                known.inputs[name].update_inplace(np.ascontiguousarray(array))
            return known
        inputs = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device, 0)
            for name, array in feeds.items()
        }
        binding = engine.session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name in engine.outputs:
            binding.bind_output(name, self.device, 0)
        recorded = self._options.cuda_graphs and len(engine.bindings) < _MOST_RECORDINGS
        made = _Binding(binding, inputs, len(engine.bindings) + 1 if recorded else -1)  # -1: not recorded
        if recorded:
            engine.bindings[shapes] = made
        return made


def cuda_options(stream: int, options: EngineOptions) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider."""
    return {
        "device_id": "0",
        "use_tf32": "1" if options.tf32 else "0",
        "user_compute_stream": str(stream),
        "do_copy_in_default_stream": "0",
        "enable_cuda_graph": "1" if options.cuda_graphs else "0",
        "cudnn_conv_algo_search": "HEURISTIC",  # exhaustive search stalls at every new shape
    }


_loading = threading.Lock()


@cache
def _load_cuda_libraries() -> None:
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is None:
        return
    with contextlib.redirect_stdout(io.StringIO()) as said:
        preload()
    if said.getvalue():
        logger.info("ONNX Runtime looks for CUDA's libraries: %s", said.getvalue().strip())


def load_cuda_libraries() -> None:
    """Loads CUDA's libraries from NVIDIA's packages, once a process, where ONNX Runtime would not find them by itself.

    What it prints when one is missing goes to the log: check_providers says whether that matters.
    """
    with _loading:  # sys.stdout is replaced meanwhile
        _load_cuda_libraries()


def check_providers(session: onnxruntime.InferenceSession, wanted: Collection[str]) -> None:
    """Refuses a session that ONNX Runtime opened without a provider that it could not load.

    Raises:
        BackendUnavailableError: a provider is not there; ONNX Runtime would compute on the CPU.
    """
    missing = sorted(set(wanted) - set(session.get_providers()))
    if missing:
        raise BackendUnavailableError(
            f"ONNX Runtime {onnxruntime.__version__} could not load {' and '.join(missing)}.",
            "See `camrt doctor`: CUDA's libraries must be of the version that onnxruntime-gpu was built for.",
        )
