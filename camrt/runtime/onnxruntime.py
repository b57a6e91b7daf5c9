"""Sessions on ONNX Runtime: one a set of outputs, opened when first needed, weights shared."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from camrt.errors import InvalidModelError
from camrt.runtime.bundle_session import BundleSession
from camrt.runtime.providers import onnx_runtime_provider
from camrt.runtime.session import Optimization
from camrt.types import AnyArray

_FLOATS = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
_LEVELS: dict[Optimization, onnxruntime.GraphOptimizationLevel] = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
}
Provider: TypeAlias = "str | tuple[str, dict[str, str]]"
_EXPORT_AGAIN = "Check the model with onnx.checker, or export it again."
ENGINE_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.InvalidArgument,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    UnicodeDecodeError,
)


class OnnxRuntimeSession(BundleSession[onnxruntime.InferenceSession]):
    """A bundle on ONNX Runtime. See camrt.runtime.session.Session for the methods.

    Args:
        path: the bundle.
        provider: "cpu".
        threads: intra-operator threads; 0 = one a core.

    Raises:
        InvalidModelError, BundleError: the file cannot be used.
        BackendUnavailableError: the provider cannot be used here.
        InvalidInputError: a negative number of threads.
    """

    def __init__(self, path: str | os.PathLike[str], provider: str = "cpu", threads: int = 0) -> None:
        self._provider = onnx_runtime_provider(provider)
        super().__init__(path, threads)
        self._weights = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in self._model.weights.items()
        }

    def _open(self, outputs: tuple[str, ...], cut_at: str | None) -> onnxruntime.InferenceSession:
        model, weights = self._model.pruned(outputs, cut_at)
        options = session_options(self._threads)
        if weights:
            options.add_external_initializers(weights, [self._weights[name] for name in weights])
        return inference_session(model, options, [self._provider], self._path)

    def _execute(self, engine: onnxruntime.InferenceSession, feeds: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        try:
            arrays: Sequence[AnyArray] = engine.run(None, feeds)
        except ENGINE_ERRORS as error:
            raise InvalidModelError(f"ONNX Runtime cannot run {self._path}: {error}.", _EXPORT_AGAIN) from error
        return arrays


class OnnxRuntimeModel:
    """Any ONNX model on ONNX Runtime's CPU provider. See camrt.runtime.session.PlainModel."""

    def __init__(self, path: str | os.PathLike[str], threads: int = 0, optimization: Optimization = "all") -> None:
        self._path = os.fspath(path)
        options = session_options(threads)
        options.graph_optimization_level = _LEVELS[optimization]
        self._session = inference_session(self._path, options, ["CPUExecutionProvider"], self._path)
        self._dtypes = {
            value.name: _FLOATS[value.type] for value in self._session.get_inputs() if value.type in _FLOATS
        }
        self.input_names = tuple(value.name for value in self._session.get_inputs())
        self.output_names = tuple(value.name for value in self._session.get_outputs())

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """See PlainModel.run."""
        feeds = {name: array.astype(self._dtypes.get(name, array.dtype), copy=False) for name, array in inputs.items()}
        try:
            outputs = self._session.run(None, feeds)
        except (*ENGINE_ERRORS, ValueError) as error:
            raise InvalidModelError(f"ONNX Runtime cannot run {self._path}: {error}.", _EXPORT_AGAIN) from error
        return dict(zip(self.output_names, outputs, strict=True))


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options of every session that camrt opens."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is an error is raised
    # Several sessions and the kernels take turns on the same cores: threads that spin between runs would be in the way.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def inference_session(
    model: bytes | str, options: onnxruntime.SessionOptions, providers: Sequence[Provider], path: str
) -> onnxruntime.InferenceSession:
    """ONNX Runtime's session on these providers and no others; InvalidModelError where it cannot load the model."""
    try:
        return onnxruntime.InferenceSession(model, options, providers=list(providers), enable_fallback=0)
    except ENGINE_ERRORS as error:
        raise InvalidModelError(f"ONNX Runtime cannot load {path}: {error}.", _EXPORT_AGAIN) from error
