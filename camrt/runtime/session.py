"""The session protocol: what every execution provider offers to the layers above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

from camrt.bundle import Manifest
from camrt.types import AnyArray, FloatArray, IntArray, SessionOutputs

Optimization: TypeAlias = Literal["all", "extended", "basic"]
"""How far an engine may rewrite a graph before it runs, ONNX Runtime's levels: fewer fusions from left to right."""


class Session(Protocol):
    """A bundle, ready to run. Safe to call from several threads."""

    manifest: Manifest

    def predict(self, inputs: FloatArray) -> FloatArray:
        """Logits (N, K) of images (N, 3, H, W), at the price of the source model."""
        ...

    def prepare(self, layers: Sequence[str], derivatives: int = 1) -> None:
        """Opens what ``run`` needs for these layers, if it is not open yet, so that the first run is as fast as any."""
        ...

    def run(
        self, inputs: FloatArray, class_indices: IntArray, layers: Sequence[str], derivatives: int = 1
    ) -> SessionOutputs:
        """Logits, and for each layer its activations and the gradient of the explained logits.

        Args:
            inputs: (N, 3, H, W).
            class_indices: (M,) int64, M = N, or any M with N = 1; -r is the class with the r-th highest logit.
            layers: names of target layers; only their part of the backward is computed.
            derivatives: 0 for activations alone, at the price of a prediction; 1 for gradients; 2 for Hessian-vector
                products and the gradients of the target value that they belong to, see camrt.exporter.second_order.

        Raises:
            LayerNotFoundError: a name that the bundle does not have.
            ClassIndexError: an index out of range, or a number of them that does not fit N.
            InvalidInputError: inputs of a wrong shape or dtype.
            MethodUnavailableError: second derivatives that the bundle does not have.
        """
        ...

    def run_from_layer(self, layer: str, activations: FloatArray) -> FloatArray:
        """Logits (N, K) computed from the activations (N, C, h, w) of one layer, without the image.

        Raises:
            UnsupportedModelError: the logits depend on the image by a way around the layer.
        """
        ...

    def target_gradients_from_layer(self, layer: str, activations: FloatArray, class_indices: IntArray) -> FloatArray:
        """Gradients (M, C, h, w) of the second-order target value at activations (N, C, h, w), without the image.

        Class indices as in ``run``; the target value is that of camrt.exporter.second_order.

        Raises:
            UnsupportedModelError: the logits depend on the image by a way around the layer.
            MethodUnavailableError: the bundle has no second derivatives.
        """
        ...


class PlainModel(Protocol):
    """Any ONNX model, ready to run."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Every output by name; inputs are converted to the float type that the model takes."""
        ...
