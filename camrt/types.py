"""Array aliases and small value objects shared by every layer.

Shape letters, used in every docstring: ``N`` batch, ``K`` classes, ``C`` channels, ``H W`` image, ``h w`` layer,
``L`` layers, ``M`` explained classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
DoubleArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
ByteArray: TypeAlias = npt.NDArray[np.uint8]
AnyArray: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class LayerOutputs:
    """What one run returns for one target layer.

    Attributes:
        name: the layer's name in the manifest.
        activations: (N, C, h, w) float32.
        gradients: (M, C, h, w) float32, the gradient of the explained logit. N is M, or 1 with M classes of one image.
            (0, C, h, w) from a run without derivatives; with second derivatives, the gradient of their target value.
        hessian_vectors: (M, C, h, w) float32, from a run with second derivatives: H A, with H the Hessian of the target
            value with respect to the layer's activations A.
        channel_weights: (M, C) float32, where a method has found the weight of every channel by perturbation.
    """

    name: str
    activations: FloatArray
    gradients: FloatArray
    hessian_vectors: FloatArray | None = None
    channel_weights: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class SessionOutputs:
    """What one run of a bundle returns.

    Attributes:
        logits: (N, K) float32, before softmax.
        class_indices: (M,) int64, the explained classes with negative ranks resolved; empty for a plain prediction.
        layers: one entry a requested target layer, coarse to fine.
    """

    logits: FloatArray
    class_indices: IntArray
    layers: tuple[LayerOutputs, ...] = field(default=())
