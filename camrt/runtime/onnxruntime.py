"""Sessions on ONNX Runtime: one a set of outputs, opened when first needed, weights shared."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from camrt.bundle import MAX_RANK, Bundle
from camrt.errors import BundleError, ClassIndexError, InvalidInputError, InvalidModelError, UnsupportedModelError
from camrt.runtime.providers import onnx_runtime_provider
from camrt.runtime.pruning import PrunableModel
from camrt.types import AnyArray, FloatArray, IntArray, LayerOutputs, SessionOutputs

MAX_SESSIONS = 32
"""Sessions that one bundle keeps open: callers choose layers freely, and memory must not grow with every choice."""

_NO_CLASSES = np.empty(0, np.int64)
_FLOATS = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
_EXPORT_AGAIN = "Check the model with onnx.checker, or export it again."
_ENGINE_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.InvalidArgument,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    UnicodeDecodeError,
)


class OnnxRuntimeSession:
    """A bundle on ONNX Runtime. See camrt.runtime.session.Session for the methods.

    Args:
        path: the bundle.
        provider: "cpu" or "cuda".
        threads: intra-operator threads; 0 = one a core.

    Raises:
        InvalidModelError, BundleError: the file cannot be used.
        BackendUnavailableError: the provider cannot be used here.
        InvalidInputError: a negative number of threads.
    """

    def __init__(self, path: str | os.PathLike[str], provider: str = "cpu", threads: int = 0) -> None:
        self._provider = onnx_runtime_provider(provider)
        if threads < 0:
            raise InvalidInputError(f"threads is {threads}.", "Give a number of threads, or 0 for one a core.")
        self.manifest = Bundle.open(path).manifest
        self._path = os.fspath(path)
        self._threads = threads
        self._model = PrunableModel(path)
        self._dtypes = {**self._model.input_dtypes, **self._model.output_dtypes}
        self._check_manifest()
        self._weights = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in self._model.weights.items()
        }
        self._sessions: dict[tuple[str | None, tuple[str, ...]], onnxruntime.InferenceSession] = {}
        self._lock = threading.Lock()

    def predict(self, inputs: FloatArray) -> FloatArray:
        """See Session.predict."""
        self._check_inputs(inputs)
        manifest = self.manifest
        (logits,) = self._run((manifest.logits,), {manifest.input_name: inputs})
        return self._logits(logits, len(inputs))

    def prepare(self, layers: Sequence[str]) -> None:
        """See Session.prepare."""
        self._session(self._explaining(layers))

    def run(self, inputs: FloatArray, class_indices: IntArray, layers: Sequence[str]) -> SessionOutputs:
        """See Session.run."""
        if not layers:
            return SessionOutputs(self.predict(inputs), _NO_CLASSES)
        self._check_inputs(inputs)
        self._check_classes(class_indices, len(inputs))
        manifest = self.manifest
        feeds: dict[str, AnyArray] = {manifest.input_name: inputs, manifest.class_index_input: class_indices}
        logits, chosen, *arrays = self._run(self._explaining(layers), feeds)
        outputs = tuple(
            LayerOutputs(
                name,
                self._typed(arrays[2 * index], (len(inputs), *manifest.layer(name).shape)),
                self._typed(arrays[2 * index + 1], (len(class_indices), *manifest.layer(name).shape)),
            )
            for index, name in enumerate(layers)
        )
        return SessionOutputs(self._logits(logits, len(inputs)), chosen, outputs)

    def run_from_layer(self, layer: str, activations: FloatArray) -> FloatArray:
        """See Session.run_from_layer."""
        target = self.manifest.layer(layer)
        if target.layout != "NCHW":
            raise UnsupportedModelError(
                f"Layer {layer!r} is kept as {target.layout}; the graph cannot start there.", "Choose another layer."
            )
        if activations.shape[1:] != target.shape or len(activations) == 0 or activations.dtype != np.float32:
            raise InvalidInputError(
                f"Activations have the shape {activations.shape} and dtype {activations.dtype}.",
                f"Layer {layer!r} takes float32 of shape (N, {', '.join(map(str, target.shape))}).",
            )
        (logits,) = self._run((self.manifest.logits,), {target.activations: activations}, target.activations)
        return self._logits(logits, len(activations))

    def _logits(self, array: AnyArray, batch: int) -> FloatArray:
        return self._typed(array, (batch, self.manifest.num_classes))

    def _typed(self, array: AnyArray, shape: tuple[int, ...]) -> FloatArray:
        """An output as float32; BundleError where it has not the shape that the manifest says."""
        if array.shape != shape:
            raise BundleError(
                f"{self._path} returns an array of shape {array.shape} where its manifest says {shape}.",
                "Export the model again.",
            )
        return array if array.dtype == np.float32 else array.astype(np.float32)

    def _run(
        self, outputs: tuple[str, ...], feeds: Mapping[str, AnyArray], cut_at: str | None = None
    ) -> Sequence[AnyArray]:
        """Runs the session for a set of outputs; inputs become the model's element type."""
        typed = {name: array.astype(self._dtypes[name], copy=False) for name, array in feeds.items()}
        session = self._session(outputs, cut_at)
        try:
            arrays: Sequence[AnyArray] = session.run(None, typed)
        except _ENGINE_ERRORS as error:
            raise InvalidModelError(f"ONNX Runtime cannot run {self._path}: {error}.", _EXPORT_AGAIN) from error
        return arrays

    def _explaining(self, layers: Sequence[str]) -> tuple[str, ...]:
        """The graph outputs that ``run`` fetches."""
        manifest = self.manifest
        if not layers:
            return (manifest.logits,)
        targets = [manifest.layer(name) for name in layers]
        pairs = [name for target in targets for name in (target.activations, target.gradients)]
        return (manifest.logits, manifest.class_index_output, *pairs)

    def _check_manifest(self) -> None:
        """Every name of the manifest is an input or output of the graph."""
        manifest = self.manifest
        wanted = {manifest.logits, manifest.class_index_output, *manifest.outputs}
        wanted.update(name for layer in manifest.target_layers for name in (layer.activations, layer.gradients))
        missing = {manifest.input_name, manifest.class_index_input} - self._model.input_dtypes.keys()
        missing |= wanted - self._model.output_dtypes.keys()
        if missing:
            raise BundleError(
                f"The manifest of {self._path} names what the graph does not have: {', '.join(sorted(missing))}.",
                "Export the model again.",
            )

    def _session(self, outputs: tuple[str, ...], cut_at: str | None = None) -> onnxruntime.InferenceSession:
        """The cached session for a set of outputs. One too many closes the one that was opened first.

        A session that is closed while it runs ends its run first; it is opened again when it is needed.
        """
        key = (cut_at, outputs)
        session = self._sessions.get(key)
        if session is None:
            with self._lock:
                session = self._sessions.get(key) or self._open(outputs, cut_at)
                self._sessions[key] = session
                while len(self._sessions) > MAX_SESSIONS:
                    del self._sessions[next(iter(self._sessions))]
        return session

    def _open(self, outputs: tuple[str, ...], cut_at: str | None) -> onnxruntime.InferenceSession:
        model, weights = self._model.pruned(outputs, cut_at)
        options = _options(self._threads)
        if weights:
            options.add_external_initializers(weights, [self._weights[name] for name in weights])
        return _inference_session(model, options, self._provider, self._path)

    def _check_inputs(self, inputs: FloatArray) -> None:
        expected = self.manifest.input_shape
        if inputs.ndim != 4 or inputs.shape[1:] != expected or inputs.shape[0] < 1:
            wanted = "x".join(map(str, expected))
            raise InvalidInputError(
                f"Inputs have the shape {inputs.shape}; the bundle takes (N, {wanted.replace('x', ', ')}).",
                "Resize the images, or use explain_images, which does.",
            )
        if inputs.dtype != np.float32:
            raise InvalidInputError(f"Inputs have the dtype {inputs.dtype}.", "Convert them to float32.")

    def _check_classes(self, class_indices: IntArray, batch: int) -> None:
        classes = self.manifest.num_classes
        if class_indices.ndim != 1 or class_indices.dtype != np.int64 or len(class_indices) == 0:
            raise ClassIndexError(
                f"Class indices have the shape {class_indices.shape} and dtype {class_indices.dtype}.",
                "Give a vector of int64.",
            )
        if batch not in (1, len(class_indices)):
            raise ClassIndexError(
                f"{len(class_indices)} class indices for {batch} images.",
                "Give one an image, or several for a single image.",
            )
        ranks = min(classes, MAX_RANK)
        if class_indices.max() >= classes or class_indices.min() < -ranks:
            raise ClassIndexError(
                f"Class indices {class_indices.tolist()} are out of range for {classes} classes.",
                f"Use 0 to {classes - 1}, or -1 to -{ranks} for ranks.",
            )


class OnnxRuntimeModel:
    """Any ONNX model on ONNX Runtime's CPU provider. See camrt.runtime.session.PlainModel."""

    def __init__(self, path: str | os.PathLike[str], threads: int = 0) -> None:
        self._path = os.fspath(path)
        self._session = _inference_session(self._path, _options(threads), "CPUExecutionProvider", self._path)
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
        except (*_ENGINE_ERRORS, ValueError) as error:
            raise InvalidModelError(f"ONNX Runtime cannot run {self._path}: {error}.", _EXPORT_AGAIN) from error
        return dict(zip(self.output_names, outputs, strict=True))


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is an error is raised
    # Several sessions and the kernels take turns on the same cores: threads that spin between runs would be in the way.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _inference_session(
    model: bytes | str, options: onnxruntime.SessionOptions, provider: str, path: str
) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(model, options, providers=[provider], enable_fallback=0)
    except _ENGINE_ERRORS as error:
        raise InvalidModelError(f"ONNX Runtime cannot load {path}: {error}.", _EXPORT_AGAIN) from error
