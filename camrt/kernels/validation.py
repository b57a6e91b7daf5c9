"""Checks of kernel arguments, shared by every backend so that all of them refuse the same inputs in the same words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from camrt.errors import InvalidInputError, MethodNotFoundError
from camrt.types import AnyArray

_FLOAT32 = np.dtype(np.float32)
_LONGEST_AXIS = 1 << 24  # up to here every pixel's number is a float32
_MOST_WIDE_FLOATS = 1 << 28  # 1 GiB, as kMostWideFloats in fusion.cpp


def check_array(name: str, array: AnyArray, layouts: tuple[str, ...]) -> None:
    """Check that ``array`` is float32, without an empty axis, of the rank of one of ``layouts``.

    Args:
        name: what the array is called in the message.
        array: the array.
        layouts: accepted axes, one letter an axis, such as ``("MC", "MChw")``.

    Raises:
        InvalidInputError: not an array, wrong dtype, wrong rank or an axis of length 0.
    """
    if not isinstance(array, np.ndarray):
        raise InvalidInputError(
            f"{name} is a {type(array).__name__}, not a numpy array.",
            "Pass it through numpy.asarray(..., numpy.float32).",
        )
    if array.dtype != _FLOAT32:
        raise InvalidInputError(
            f"{name} of shape {array.shape} has dtype {array.dtype}; expected float32.",
            f"Convert it with {name}.astype(numpy.float32).",
        )
    if array.ndim not in map(len, layouts):
        raise InvalidInputError(f"{name} has shape {array.shape}; expected {_axes(layouts)}.")
    if 0 in array.shape:
        raise InvalidInputError(f"{name} has shape {array.shape} with an empty axis; expected {_axes(layouts)}.")


def check_layer(activations: AnyArray, gradients: AnyArray) -> None:
    """Check activations (N, C, h, w) against gradients (M, C, h, w), N being M or 1.

    Raises:
        InvalidInputError: one of the arrays is unusable, or they do not fit together.
    """
    check_array("activations", activations, ("NChw",))
    check_array("gradients", gradients, ("MChw",))
    if activations.shape[1:] != gradients.shape[1:] or activations.shape[0] not in (1, gradients.shape[0]):
        raise InvalidInputError(
            f"activations of shape {activations.shape} do not fit gradients of shape {gradients.shape}; "
            "expected (N, C, h, w) and (M, C, h, w) with N = M or N = 1."
        )


def check_layers(activations: Sequence[AnyArray], gradients: Sequence[AnyArray]) -> None:
    """Check the arrays of L layers: as many activations as gradients, at least one, each pair as in check_layer.

    Raises:
        InvalidInputError: the lists or a pair in them do not fit together.
    """
    if len(activations) != len(gradients) or not activations:
        raise InvalidInputError(
            f"Got activations of {len(activations)} layers and gradients of {len(gradients)}; "
            "expected one pair a layer, and at least one."
        )
    for layer_activations, layer_gradients in zip(activations, gradients, strict=True):
        check_layer(layer_activations, layer_gradients)


def check_weights(activations: AnyArray, weights: AnyArray) -> None:
    """Check activations (N, C, h, w) against weights (M, C) or (M, C, h, w), N being M or 1.

    Raises:
        InvalidInputError: one of the arrays is unusable, or they do not fit together.
    """
    check_array("activations", activations, ("NChw",))
    check_array("weights", weights, ("MC", "MChw"))
    fits = weights.shape[1:] == activations.shape[1 : weights.ndim]
    if not fits or activations.shape[0] not in (1, weights.shape[0]):
        raise InvalidInputError(
            f"activations of shape {activations.shape} do not fit weights of shape {weights.shape}; "
            "expected (N, C, h, w) and (M, C) or (M, C, h, w) with N = M or N = 1."
        )


def check_maps(maps: AnyArray) -> None:
    """Check a stack of maps (M, h, w).

    Raises:
        InvalidInputError: not such an array.
    """
    check_array("maps", maps, ("Mhw",))


def check_layer_maps(layer_maps: Sequence[AnyArray]) -> None:
    """Check the maps of L layers, each (M, h_l, w_l) with one M.

    Raises:
        InvalidInputError: no layer, an unusable array, or different M.
    """
    if not layer_maps:
        raise InvalidInputError("layer_maps is empty; expected the maps of at least one layer.")
    for index, maps in enumerate(layer_maps):
        check_array(f"layer_maps[{index}]", maps, ("Mhw",))
        if maps.shape[0] != layer_maps[0].shape[0]:
            raise InvalidInputError(
                f"layer_maps[{index}] has shape {maps.shape} and layer_maps[0] has shape {layer_maps[0].shape}; "
                "expected (M, h, w) with the same M in every layer."
            )


def check_output_size(output_size: tuple[int, int]) -> None:
    """Check that ``output_size`` is (H, W), both in 1..2^24.

    Raises:
        InvalidInputError: it is not.
    """
    if len(output_size) != 2 or min(output_size) < 1 or max(output_size) > _LONGEST_AXIS:
        raise InvalidInputError(
            f"output_size is {tuple(output_size)}; expected (H, W), both at least 1 and at most {_LONGEST_AXIS}."
        )


def check_fused_size(layer_maps: Sequence[AnyArray], output_size: tuple[int, int]) -> None:
    """Check that layer maps can be fused at ``output_size`` (H, W).

    Fusing holds every row of every layer at the output's width.

    Raises:
        InvalidInputError: as check_output_size; or that is more than 1 GiB a map.
    """
    check_output_size(output_size)
    rows = sum(int(maps.shape[1]) for maps in layer_maps)
    if rows * output_size[1] > _MOST_WIDE_FLOATS:
        raise InvalidInputError(
            f"output_size is {tuple(output_size)}; fusing {rows} rows of layer maps so wide takes more than 1 GiB.",
            f"Ask for at most {_MOST_WIDE_FLOATS // rows} columns.",
        )


def check_matrix(matrix: AnyArray) -> None:
    """Check an affine matrix (2, 3), float32 and finite.

    Raises:
        InvalidInputError: it is not.
    """
    check_array("matrix", matrix, ("23",))
    if matrix.shape != (2, 3) or not np.isfinite(matrix).all():
        raise InvalidInputError(f"matrix of shape {matrix.shape} holds {matrix.tolist()}; expected (2, 3), all finite.")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check that ``value`` is one of ``choices``.

    Raises:
        MethodNotFoundError: it is not.
    """
    if value not in choices:
        raise MethodNotFoundError(f"Unknown {name} {value!r}.", f"Choose one of {', '.join(choices)}.")


def check_threads(threads: int) -> None:
    """Check a number of threads; 0 stands for one a core.

    Raises:
        InvalidInputError: negative or above 1024.
    """
    if not 0 <= threads <= 1024:
        raise InvalidInputError(f"threads is {threads}; expected 0 (one a core) to 1024.")


def _axes(layouts: tuple[str, ...]) -> str:
    return " or ".join("(" + ", ".join(layout) + ")" for layout in layouts)
