"""The part of an ``Explainer`` that measures maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from camrt.bundle import Manifest
from camrt.cam import Perturbation
from camrt.errors import InvalidInputError
from camrt.explainer.arguments import checked_tensor, one_an_item
from camrt.explainer.checked_session import CheckedSession
from camrt.explainer.scoring import map_function, maps_at_input_size, rows_by_plan, score_function
from camrt.explanation import Explanation
from camrt.kernels import KernelBackend
from camrt.metrics import DEFAULT_BATCH_SIZE, MapFunction, Measurement, check_metrics, measure
from camrt.runtime.parity import Parity
from camrt.runtime.session import Session
from camrt.types import BoolArray, DoubleArray, FloatArray, IntArray


class Evaluator:
    """Measures maps of one classifier. See camrt.metrics for the metrics.

    Args:
        session: the classifier.
        backend: the kernels.
    """

    def __init__(self, session: Session, backend: KernelBackend) -> None:
        self._session = session
        self._backend = backend

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._session.manifest

    @property
    def parity(self) -> Parity | None:
        """How the provider compared with the CPU when the bundle was opened; None where nobody looked."""
        parity: Parity | None = getattr(self._session, "parity", None)
        return parity

    def arcc(self, inputs: FloatArray, explanations: Sequence[Explanation], seed: int = 0) -> DoubleArray:
        """How good the explanations are, without ground truth: the metric ARCC, (N,) in [0, 1]. See evaluate."""
        return self.evaluate(inputs, explanations, ("arcc",), seed=seed)["arcc"]

    def evaluate(
        self,
        inputs: FloatArray,
        explanations: Sequence[Explanation],
        metrics: Sequence[str] = ("arcc",),
        object_masks: BoolArray | None = None,
        seed: int = 0,
        target: str = "probability",
        batch_size: int = DEFAULT_BATCH_SIZE,
        checkpoint: Callable[[], None] | None = None,
        perturbation: Perturbation | None = None,
    ) -> dict[str, DoubleArray]:
        """Measures explanations that this explainer made.

        What changed images look like to the explainer is found with the method, layers, fusion and order that made each
        explanation, for its class. A map that was brought to the pixels of the original image, or to another size, is
        measured as the model's input has it: it is fused again from its layer maps.

        Args:
            inputs: (N, C, H, W) float32, the preprocessed images that were explained.
            explanations: one an image, or any number of one image.
            metrics: names in camrt.metrics.METRICS.
            object_masks: (N, H, W) bool in the pixels of the inputs, or one for all; for metrics with ground truth.
            seed: of every random number. The same seed gives the same scores, whatever the batch.
            target: what of the class is followed on changed images: its "probability" or its "logit".
            batch_size: images a run.
            checkpoint: called before every run of the model; what it raises ends the measurement.
            perturbation: what the explanations were made with, if it was given.

        Returns:
            Metric to scores, one an explanation; NaN where a metric is undefined.

        Raises:
            MethodNotFoundError: an unknown metric.
            InvalidInputError: arrays of wrong shapes, or explanations of another bundle.
        """
        check_metrics(metrics, object_masks is not None)
        session = self._session if checkpoint is None else CheckedSession(self._session, checkpoint)
        predict, count = score_function(session, target), len(explanations)
        inputs = one_an_item(self._checked_inputs(inputs), count, "images")
        masks = None if object_masks is None else one_an_item(object_masks, count, "object masks")
        scores = {name: np.empty(count) for name in metrics}
        for plan, rows in rows_by_plan(self.manifest, explanations, perturbation).items():
            own = slice(None) if len(rows) == count else rows
            items = [explanations[row] for row in rows]
            measurement = Measurement(
                inputs[own],
                maps_at_input_size(self._backend, items, plan, (inputs.shape[2], inputs.shape[3])),
                np.array([item.class_index for item in items], np.int64),
                predict,
                map_function(session, self._backend, plan),
                self._backend,
                None if masks is None else masks[own],
                seed,
                batch_size,
            )
            for name, values in measure(metrics, measurement).items():
                scores[name][own] = values
        return scores

    def evaluate_maps(
        self,
        inputs: FloatArray,
        maps: FloatArray,
        class_indices: IntArray,
        explain: MapFunction,
        metrics: Sequence[str] = ("arcc",),
        object_masks: BoolArray | None = None,
        seed: int = 0,
        target: str = "probability",
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> dict[str, DoubleArray]:
        """Measures maps that any explainer of this model made.

        Args:
            inputs: (N, C, H, W) float32, the preprocessed images; or one for all maps.
            maps: (N, H, W) float32 in [0, 1].
            class_indices: (N,) the explained classes, none negative.
            explain: images (n, C, H, W) and classes (n,) to maps (n, H, W): the explainer that made the maps.
            metrics: as in evaluate.
            object_masks: as in evaluate.
            seed: as in evaluate.
            target: as in evaluate.
            batch_size: as in evaluate.

        Raises:
            MethodNotFoundError, InvalidInputError: as evaluate.
        """
        check_metrics(metrics, object_masks is not None)
        predict, inputs = score_function(self._session, target), self._checked_inputs(inputs)
        if not isinstance(maps, np.ndarray) or maps.ndim != 3:
            told = getattr(maps, "shape", type(maps).__name__)
            raise InvalidInputError(f"Maps are {told}.", "Give a float32 array (N, H, W) of the size of the inputs.")
        if not len(maps):
            return {name: np.empty(0) for name in metrics}
        measurement = Measurement(
            one_an_item(inputs, len(maps), "images"),
            maps,
            class_indices,
            predict,
            explain,
            self._backend,
            None if object_masks is None else one_an_item(object_masks, len(maps), "object masks"),
            seed,
            batch_size,
        )
        return measure(metrics, measurement)

    def _checked_inputs(self, inputs: FloatArray) -> FloatArray:
        """``inputs`` if they fit the bundle."""
        inputs = checked_tensor(inputs)
        if inputs.shape[1:] != self.manifest.input_shape:
            raise InvalidInputError(
                f"Inputs have the shape {inputs.shape}; the bundle takes (N, *{self.manifest.input_shape}).",
                "Give what preprocess_images() returns.",
            )
        return inputs
