"""``BundleSession``: what every engine's session does the same way around its engine."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from camrt.bundle import MAX_RANK, Bundle, TargetLayer
from camrt.errors import BundleError, ClassIndexError, InvalidInputError, UnsupportedModelError
from camrt.runtime.open_graphs import OpenGraphs
from camrt.runtime.parity import LEAST_CORRELATION, Parity
from camrt.runtime.pruning import PrunableModel
from camrt.types import AnyArray, FloatArray, IntArray, LayerOutputs, SessionOutputs

SPARE_GRAPHS = 4
"""Graphs that a bundle keeps open beside those of predictions and of all layers, or 1 + its layers if that is more.

An engine packs weights anew for every graph that it opens, twice as much memory as the file has and more. Callers
choose layers freely, so memory must not grow with every choice. 1 + layers is what one call of ablationcam needs: a
forward graph, and one that starts at each layer.
"""

EngineT = TypeVar("EngineT")
_NO_CLASSES = np.empty(0, np.int64)


class BundleSession(ABC, Generic[EngineT]):
    """A bundle whose graphs, one a set of outputs, an engine runs. See camrt.runtime.session.Session for the methods.

    Args:
        path: the bundle.
        threads: intra-operator threads; 0 = one a core.

    Raises:
        InvalidModelError, BundleError: the file cannot be used.
        InvalidInputError: a negative number of threads.

    Attributes:
        parity: how it compared with the CPU provider when it was opened; None for the CPU provider itself.
    """

    parity: Parity | None = None

    def __init__(self, path: str | os.PathLike[str], threads: int = 0) -> None:
        if threads < 0:
            raise InvalidInputError(f"threads is {threads}.", "Give a number of threads, or 0 for one a core.")
        self.manifest = Bundle.open(path).manifest
        self._path = os.fspath(path)
        self._threads = threads
        self._model = PrunableModel(path)
        self._dtypes = {**self._model.input_dtypes, **self._model.output_dtypes}
        self._check_manifest()
        always = [(None, self._explaining(layers)) for layers in ((), self.manifest.layer_names)]
        self._graphs: OpenGraphs[EngineT] = OpenGraphs(always, max(SPARE_GRAPHS, 1 + len(self.manifest.target_layers)))

    @property
    def least_correlation(self) -> float:
        """What its maps have to reach beside the CPU provider's, see camrt.runtime.parity."""
        return LEAST_CORRELATION[self.manifest.precision]

    @abstractmethod
    def _open(self, outputs: tuple[str, ...], cut_at: str | None) -> EngineT:
        """The graph that computes ``outputs``, ready to run. ``cut_at``: see PrunableModel.pruned."""

    @abstractmethod
    def _execute(self, engine: EngineT, feeds: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        """Runs what ``_open`` returned; its outputs in their order. Feeds have the model's element types."""

    def predict(self, inputs: FloatArray) -> FloatArray:
        """See Session.predict."""
        self._check_inputs(inputs)
        manifest = self.manifest
        (logits,) = self._run((manifest.logits,), {manifest.input_name: self._as_the_model_takes(inputs)})
        return self._logits(logits, len(inputs))

    def prepare(self, layers: Sequence[str], derivatives: int = 1) -> None:
        """See Session.prepare."""
        with self._engine(self._explaining(layers, derivatives)):
            pass

    def run(
        self, inputs: FloatArray, class_indices: IntArray, layers: Sequence[str], derivatives: int = 1
    ) -> SessionOutputs:
        """See Session.run."""
        if not layers:
            return SessionOutputs(self.predict(inputs), _NO_CLASSES)
        manifest, feeds = self.manifest, self._checked_feeds(inputs, class_indices)
        wanted = self._explaining(layers, derivatives)
        found = dict(zip(wanted, self._run(wanted, feeds), strict=True))
        logits, chosen = found[manifest.logits], found[manifest.class_index_output]
        outputs = []
        for name in layers:
            layer = manifest.layer(name)
            own, shape = [found[array] for array in layer.arrays(derivatives)], layer.shape
            activations = self._typed(own[0], (len(inputs), *shape))
            of_classes = [self._typed(array, (len(class_indices), *shape)) for array in own[1:]]
            if not of_classes:
                of_classes = [np.empty((0, *shape), np.float32)]
            outputs.append(LayerOutputs(name, activations, *of_classes))
        return SessionOutputs(self._logits(logits, len(inputs)), chosen, tuple(outputs))

    def run_from_layer(self, layer: str, activations: FloatArray) -> FloatArray:
        """See Session.run_from_layer."""
        target = self._start(layer, activations)
        (logits,) = self._run((self.manifest.logits,), {target.activations: activations}, target.activations)
        return self._logits(logits, len(activations))

    def target_gradients_from_layer(self, layer: str, activations: FloatArray, class_indices: IntArray) -> FloatArray:
        """See Session.target_gradients_from_layer."""
        target = self._start(layer, activations)
        self._check_classes(class_indices, len(activations))
        _, gradients, _ = target.arrays(2)
        feeds: dict[str, AnyArray] = {
            target.activations: activations,
            self.manifest.class_index_input: class_indices,
        }
        (found,) = self._run((gradients,), feeds, target.activations)
        return self._typed(found, (len(class_indices), *target.shape))

    def _start(self, layer: str, activations: FloatArray) -> TargetLayer:
        """The layer that a graph starts at, the activations checked."""
        target = self.manifest.layer(layer)
        if target.layout not in ("NCHW", "NHWC"):
            raise UnsupportedModelError(
                f"Layer {layer!r} is kept as {target.layout}; the graph cannot start there.", "Choose another layer."
            )
        if activations.shape[1:] != target.shape or len(activations) == 0 or activations.dtype != np.float32:
            raise InvalidInputError(
                f"Activations have the shape {activations.shape} and dtype {activations.dtype}.",
                f"Layer {layer!r} takes float32 of shape (N, {', '.join(map(str, target.shape))}).",
            )
        return target

    def _feeds_on_device(
        self, inputs: FloatArray, class_indices: IntArray, layers: Sequence[str]
    ) -> tuple[dict[str, AnyArray], tuple[str, ...]]:
        """The inputs of an explanation that stays on a GPU, as the graph takes them, and the graph's outputs."""
        feeds = self._checked_feeds(inputs, class_indices)
        if not layers:
            raise InvalidInputError("No layer is to be explained.", "Name at least one, or use predict.")
        return self._typed_feeds(feeds), self._explaining(layers)

    def _checked_feeds(self, inputs: FloatArray, class_indices: IntArray) -> dict[str, AnyArray]:
        """The inputs of an explanation by name."""
        self._check_inputs(inputs)
        self._check_classes(class_indices, len(inputs))
        manifest = self.manifest
        return {manifest.input_name: self._as_the_model_takes(inputs), manifest.class_index_input: class_indices}

    def _typed_feeds(self, feeds: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Inputs in the model's element types."""
        return {name: array.astype(self._dtypes[name], copy=False) for name, array in feeds.items()}

    def _as_the_model_takes(self, inputs: FloatArray) -> FloatArray:
        """Images (N, C, H, W) in the layout of the model's input."""
        return inputs if self.manifest.input_layout == "NCHW" else np.ascontiguousarray(inputs.transpose(0, 2, 3, 1))

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

    def _explaining(self, layers: Sequence[str], derivatives: int = 1) -> tuple[str, ...]:
        """The graph outputs that ``run`` fetches, each once, in the manifest's order: one graph a choice of layers."""
        manifest = self.manifest
        if not layers:
            return (manifest.logits,)
        wanted = {manifest.layer(name).name for name in layers}
        chosen = [layer for layer in manifest.target_layers if layer.name in wanted]
        arrays = [array for layer in chosen for array in layer.arrays(derivatives)]
        return (manifest.logits, manifest.class_index_output, *arrays)

    def _check_manifest(self) -> None:
        """Every name of the manifest is an input or output of the graph."""
        manifest = self.manifest
        wanted = {manifest.logits, manifest.class_index_output, *manifest.outputs}
        for layer in manifest.target_layers:
            second = (layer.target_gradients, layer.hessian_vectors)
            wanted.update(layer.arrays(1), (name for name in second if name is not None))
        missing = {manifest.input_name, manifest.class_index_input} - self._model.input_dtypes.keys()
        missing |= wanted - self._model.output_dtypes.keys()
        if missing:
            raise BundleError(
                f"The manifest of {self._path} names what the graph does not have: {', '.join(sorted(missing))}.",
                "Export the model again.",
            )

    def _check_inputs(self, inputs: FloatArray) -> None:
        expected = self.manifest.input_shape
        if inputs.ndim != 4 or inputs.shape[1:] != expected or inputs.shape[0] < 1:
            advice = "Resize the images, or use explain_images, which does."
            if inputs.ndim == 4 and inputs.shape[0] < 1:
                advice = "Give at least one image."
            elif inputs.ndim == 4 and (inputs.shape[3], *inputs.shape[1:3]) == expected:
                advice = "Transpose them to (N, C, H, W)."
            raise InvalidInputError(
                f"Inputs have the shape {inputs.shape}; the bundle takes (N, {', '.join(map(str, expected))}).", advice
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

    def _run(
        self, outputs: tuple[str, ...], feeds: Mapping[str, AnyArray], cut_at: str | None = None
    ) -> Sequence[AnyArray]:
        """The outputs; inputs become the model's element type."""
        typed = self._typed_feeds(feeds)
        with self._engine(outputs, cut_at) as engine:
            return self._execute(engine, typed)

    def _engine(self, outputs: tuple[str, ...], cut_at: str | None = None) -> AbstractContextManager[EngineT]:
        """What ``_open`` made for a set of outputs; open as long as the context, and longer where there is room."""
        return self._graphs.use((cut_at, outputs), partial(self._open, outputs, cut_at))
