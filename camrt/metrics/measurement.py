"""``Measurement``: some images with their maps, the model to ask, and what the metrics have computed so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from camrt.errors import ClassIndexError, InvalidInputError
from camrt.kernels import KernelBackend
from camrt.types import AnyArray, BoolArray, DoubleArray, FloatArray, IntArray

ScoreFunction: TypeAlias = Callable[[FloatArray], DoubleArray]
"""Images (N, C, H, W) -> a value of every class, (N, K): probabilities, or logits."""

MapFunction: TypeAlias = Callable[[FloatArray, IntArray], FloatArray]
"""Images (N, C, H, W) and the classes to explain (N,), none negative -> saliency maps (N, H, W)."""

DEFAULT_BATCH_SIZE = 32
NOISE_SCALE = 0.01
"""Standard deviation of what ROAD adds to imputed pixels (arXiv 2202.00449), in units of the model's input."""

_EXPLAIN_SHARE = 4
_ROUNDING = 1e-5


class Measurement:
    """N maps to be measured. Immutable but for what it remembers.

    The value of a class is what ``predict`` says: the probability, or the logit. A score of an image depends on that
    image, its map, its class and the seed, and on nothing else in the batch.

    Args:
        inputs: (N, C, H, W) float32, as the model takes them.
        maps: (N, H, W) float32 in [0, 1].
        class_indices: (N,) the explained classes.
        predict: the model. It gets at most batch_size images at a time.
        explain: the explainer that made the maps. It gets a quarter of batch_size at a time, because a backward pass
            keeps the activations and gradients of every layer.
        backend: the kernels.
        object_masks: (N, H, W) bool, True where the object is.
        seed: of every random number.
        batch_size: images a call.
        noise_scale: standard deviation of ROAD's noise.

    Attributes:
        inputs, maps, class_indices, predict, explain, backend, seed, batch_size, noise_scale: as given.

    Raises:
        InvalidInputError: arrays that do not fit together, are not finite, or maps outside [0, 1].
        ClassIndexError: class_indices are no vector of N indices.
    """

    def __init__(
        self,
        inputs: FloatArray,
        maps: FloatArray,
        class_indices: IntArray,
        predict: ScoreFunction,
        explain: MapFunction,
        backend: KernelBackend,
        object_masks: BoolArray | None = None,
        seed: int = 0,
        batch_size: int = DEFAULT_BATCH_SIZE,
        noise_scale: float = NOISE_SCALE,
    ) -> None:
        self.inputs = _checked_inputs(inputs)
        self.maps = _checked_maps(maps, self._map_shape(), "maps")
        self.class_indices = _checked_classes(class_indices, len(inputs))
        self._object_masks = None if object_masks is None else _checked_masks(object_masks, self._map_shape())
        _check_number("batch_size", batch_size, 1)
        _check_number("seed", seed, 0)
        self.predict, self.explain, self.backend = predict, explain, backend
        self.seed, self.batch_size, self.noise_scale = seed, batch_size, noise_scale
        self._known: dict[Callable[[Measurement], DoubleArray], DoubleArray] = {}

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def object_masks(self) -> BoolArray:
        """(N, H, W) bool.

        Raises:
            InvalidInputError: none were given.
        """
        if self._object_masks is None:
            raise InvalidInputError("There are no object masks.", "Give object_masks=, (N, H, W) bool.")
        return self._object_masks

    @property
    def has_object_masks(self) -> bool:
        """Whether object masks were given."""
        return self._object_masks is not None

    def once(self, compute: Callable[[Measurement], DoubleArray]) -> DoubleArray:
        """What ``compute`` returns for this measurement, (N,); computed the first time it is asked for."""
        if compute not in self._known:
            self._known[compute] = compute(self)
        return self._known[compute]

    def values(self, images: FloatArray, rows: IntArray) -> DoubleArray:
        """The value of a class on each of B images, (B,).

        Args:
            images: (B, C, H, W).
            rows: (B,) which of the N classes is asked for in each.
        """
        values = np.empty(len(images))
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            scores = _checked_scores(self.predict(images[part]), len(images[part]))
            classes = self.class_indices[rows[part]]
            if classes.max() >= scores.shape[1]:
                raise ClassIndexError(
                    f"Class {classes.max()} is explained, but predict knows {scores.shape[1]} classes.",
                    f"Give indices in 0..{scores.shape[1] - 1}.",
                )
            values[part] = scores[np.arange(len(classes)), classes]
        return values

    def values_of_variants(self, make: Callable[[slice], FloatArray], variants: int) -> DoubleArray:
        """The value of its class on each of V changed versions of every image, (N, V).

        As many images are changed at once as fill a batch, so memory does not grow with N.

        Args:
            make: n of the N images -> their versions, (n, V, C, H, W).
            variants: V.
        """
        group = max(1, self.batch_size // variants)
        values = np.empty((len(self), variants))
        for start in range(0, len(self), group):
            part = slice(start, min(start + group, len(self)))
            changed = make(part)
            rows = np.repeat(np.arange(part.start, part.stop), variants)
            flat = changed.reshape(-1, *self.inputs.shape[1:])
            values[part] = self.values(flat, rows).reshape(-1, variants)
        return values

    def explain_again(self, make: Callable[[slice], FloatArray]) -> FloatArray:
        """New maps for the N classes, (N, H, W).

        Args:
            make: n of the N images -> the images to explain instead, (n, C, H, W).
        """
        group = max(1, self.batch_size // _EXPLAIN_SHARE)
        maps = np.empty(self._map_shape(), np.float32)
        for start in range(0, len(self), group):
            part = slice(start, min(start + group, len(self)))
            again = self.explain(make(part), self.class_indices[part])
            maps[part] = _checked_maps(again, (part.stop - start, *maps.shape[1:]), "maps that explain returned")
        return maps

    def random(self, purpose: int) -> np.random.Generator:
        """Random numbers of a metric, from the seed and a number that is its own."""
        return np.random.default_rng([self.seed, purpose])

    def _map_shape(self) -> tuple[int, int, int]:
        count, _, height, width = self.inputs.shape
        return count, height, width


def target_values(measurement: Measurement) -> DoubleArray:
    """y: the value of its class on each image as it is, (N,)."""
    return measurement.values(measurement.inputs, np.arange(len(measurement)))


def masked_target_values(measurement: Measurement) -> DoubleArray:
    """The value of its class on each image times its map, x * m, (N,)."""
    return measurement.values_of_variants(lambda part: masked_inputs(measurement, part)[:, None], 1)[:, 0]


def masked_inputs(measurement: Measurement, part: slice) -> FloatArray:
    """x * m of n of the N images, (n, C, H, W)."""
    return measurement.backend.masked_images(measurement.inputs[part], measurement.maps[part])


def _checked_inputs(inputs: AnyArray) -> FloatArray:
    if not isinstance(inputs, np.ndarray) or inputs.dtype != np.float32 or inputs.ndim != 4 or 0 in inputs.shape:
        raise InvalidInputError(f"Inputs are {_told(inputs)}.", "Give float32 of shape (N, C, H, W), no axis empty.")
    if not np.isfinite(inputs).all():
        raise InvalidInputError("Inputs hold values that are not finite.", "Check the preprocessing.")
    return inputs


def _checked_maps(maps: AnyArray, shape: tuple[int, ...], name: str) -> FloatArray:
    """``maps`` within [0, 1] to the last bit, if that is what they were but for rounding."""
    if not isinstance(maps, np.ndarray) or maps.dtype != np.float32 or maps.shape != shape:
        raise InvalidInputError(f"The {name} are {_told(maps)}.", f"These inputs need float32 of shape {shape}.")
    low, high = float(maps.min()), float(maps.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN fails too
        raise InvalidInputError(f"The {name} go from {low:g} to {high:g}.", "Normalise them to [0, 1].")
    return np.clip(maps, np.float32(0), np.float32(1))


def _checked_classes(class_indices: AnyArray, count: int) -> IntArray:
    fits = isinstance(class_indices, np.ndarray) and class_indices.shape == (count,)
    if not fits or not np.issubdtype(class_indices.dtype, np.integer):
        raise ClassIndexError(f"Class indices are {_told(class_indices)} for {count} images.", "Give one an image.")
    if class_indices.min() < 0:
        raise ClassIndexError(
            f"Class index {class_indices.min()} is a rank, and changed images may rank otherwise.",
            "Give the index that the explanation has.",
        )
    return class_indices.astype(np.int64, copy=False)


def _checked_masks(object_masks: AnyArray, shape: tuple[int, ...]) -> BoolArray:
    if not isinstance(object_masks, np.ndarray) or object_masks.dtype != np.bool_ or object_masks.shape != shape:
        raise InvalidInputError(
            f"Object masks are {_told(object_masks)}.", f"These inputs need bool of shape {shape}: mask > 0."
        )
    return object_masks


def _checked_scores(scores: AnyArray, count: int) -> AnyArray:
    if not isinstance(scores, np.ndarray) or scores.ndim != 2 or len(scores) != count:
        raise InvalidInputError(f"predict returned {_told(scores)} for {count} images.", "It must return (N, K).")
    return scores


def _check_number(name: str, value: int, least: int) -> None:
    if not isinstance(value, int | np.integer) or value < least:
        raise InvalidInputError(f"{name} is {value!r}.", f"Give an integer of {least} or more.")


def _told(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return f"a {type(value).__name__}, not an array"
