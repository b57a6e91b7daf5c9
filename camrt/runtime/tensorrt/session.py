"""Sessions on TensorRT."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from camrt.errors import BackendUnavailableError, InvalidInputError
from camrt.runtime.bundle_session import BundleSession
from camrt.runtime.cuda_driver import CudaDriver, cuda_driver
from camrt.runtime.device_outputs import DeviceOutputs, device_outputs
from camrt.runtime.engine_cache import EngineCache, EngineKey, read_sealed, write_sealed
from camrt.runtime.engine_options import EngineOptions, input_tail
from camrt.runtime.tensorrt.api import load_tensorrt
from camrt.runtime.tensorrt.builder import build_engine
from camrt.runtime.tensorrt.execution import TensorRtEngine, joined, parts
from camrt.types import AnyArray, FloatArray, IntArray


class TensorRtSession(BundleSession[TensorRtEngine]):
    """A bundle on TensorRT. See camrt.runtime.session.Session for the methods.

    An engine is built for each set of outputs when it is first needed, which takes minutes, and comes from the cache
    after that; `camrt build` does it ahead.

    Args:
        path: the bundle; its precision is the engine's.
        threads: of the host; unused.
        options: buckets, cache, CUDA graphs; default from the environment.

    Raises:
        InvalidModelError, BundleError: the file cannot be used.
        BackendUnavailableError: TensorRT or a GPU is missing.
        InvalidInputError: options that cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 0, options: EngineOptions | None = None) -> None:
        self._tensorrt = load_tensorrt()
        self._driver: CudaDriver = cuda_driver()
        self._options = EngineOptions.from_environment() if options is None else options
        super().__init__(path, threads)
        self._cache = EngineCache(self._options.cache)
        version = str(self._tensorrt.__version__)
        self._key = EngineKey.of_bundle(Path(path), self.manifest.precision, version, self._driver.info, self._options)
        self._logger = self._tensorrt.Logger(self._tensorrt.Logger.WARNING)

    def key(self, outputs: tuple[str, ...], cut_at: str | None = None) -> EngineKey:
        """The cache's key of the engine that computes ``outputs``."""
        return self._key.computing(outputs, cut_at)

    @property
    def most_on_device(self) -> int:
        """The largest batch that is one run."""
        return self._options.batches[-1]

    @contextmanager
    def outputs_on_device(
        self, inputs: FloatArray, class_indices: IntArray, layers: Sequence[str]
    ) -> Iterator[DeviceOutputs]:
        """As ``run``, without copying anything back to the host.

        The arrays hold until the context ends, and must have been read by then.

        Raises:
            InvalidInputError, ClassIndexError: as ``run``; where no layer is named; more than ``most_on_device``.
        """
        feeds, wanted = self._feeds_on_device(inputs, class_indices, layers)
        if len(class_indices) > self.most_on_device:
            raise InvalidInputError(
                f"{len(class_indices)} classes in one run; the largest bucket is {self.most_on_device}.",
                "Use run, which takes parts.",
            )
        with self._engine(wanted) as engine, engine.on_device(feeds) as run:
            yield device_outputs(self.manifest, wanted, run.arrays, layers, run.stream, run.fixed)

    def _open(self, outputs: tuple[str, ...], cut_at: str | None) -> TensorRtEngine:
        self._driver.attach()
        key = self.key(outputs, cut_at)
        plan = self._cache.engine(key, lambda: self._build(outputs, cut_at))
        runtime = self._tensorrt.Runtime(self._logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendUnavailableError(
                f"TensorRT cannot load the engine in {self._cache.path(key)}.", "Delete that file; it is built again."
            )
        dtypes = {name: self._dtypes[name] for name in outputs}
        return TensorRtEngine(engine, runtime, self._driver, dtypes, self._options)

    def _execute(self, engine: TensorRtEngine, feeds: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        lengths = [len(array) for array in feeds.values()]
        results = [engine.run(part) for part in parts(feeds, self._options.batches[-1])]
        of_images = {self.manifest.logits, *(layer.activations for layer in self.manifest.target_layers)}
        per_image = [name in of_images for name in engine.outputs]
        return joined(results, per_image, min(lengths) == 1 < max(lengths))

    def _build(self, outputs: tuple[str, ...], cut_at: str | None) -> bytes:
        graph = self._model.complete(outputs, cut_at)
        info = self._driver.info
        fields = {"timings": str(self._tensorrt.__version__), "gpu": str(info)}
        tails = {name: input_tail(self.manifest, name) for name in self._model.inputs(outputs, cut_at)}
        path = self._cache.folder / f"timings-{info.compute_capability[0]}{info.compute_capability[1]}.cache"
        with self._cache.locked("timings"):
            timings = read_sealed(path, fields) or b""
        plan, timings = build_engine(self._tensorrt, graph, tails, self._options, timings)
        with self._cache.locked("timings"):
            write_sealed(path, fields, timings)
        return plan
