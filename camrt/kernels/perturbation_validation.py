"""Checks of the arguments of the kernels that metrics need, shared by every backend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from camrt.errors import ImputationError, InvalidInputError
from camrt.kernels.validation import check_array
from camrt.types import AnyArray

MAX_FRACTIONS = 1000


def check_finite(name: str, array: AnyArray) -> None:
    """Check that every value is finite.

    Raises:
        InvalidInputError: one is not; its position is named.
    """
    # One value that NumPy repeats along an axis is looked at once.
    array = array[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)]
    # The sum of finite values is finite unless it overflows: most arrays need no second look.
    with np.errstate(all="ignore"):
        suspicious = not np.isfinite(array.sum(dtype=np.float64))
    if suspicious:
        position = np.argwhere(~np.isfinite(array))
        if len(position):
            where = position[0].tolist()
            raise InvalidInputError(f"{name} holds {array[tuple(where)]} at {where}.", "Only finite values are scored.")


def check_finite_maps(maps: AnyArray) -> None:
    """Check a stack of maps (N, H, W) and its values.

    Raises:
        InvalidInputError: not such an array, or a value that is not finite.
    """
    check_array("maps", maps, ("NHW",))
    check_finite("maps", maps)


def check_map_pairs(first: AnyArray, second: AnyArray) -> None:
    """Check two stacks of maps (N, H, W) of one shape.

    Raises:
        InvalidInputError: one is unusable, or they do not fit together.
    """
    check_finite_maps(first)
    check_finite_maps(second)
    if first.shape != second.shape:
        raise InvalidInputError(
            f"Maps of shape {first.shape} cannot be compared with maps of shape {second.shape}; expected one shape."
        )


def check_images_and_maps(images: AnyArray, saliency_maps: AnyArray) -> None:
    """Check images (N, C, H, W) against maps (N, H, W).

    Raises:
        InvalidInputError: one is unusable, or they do not fit together.
    """
    _check_images(images)
    check_finite_maps(saliency_maps)
    if saliency_maps.shape != (images.shape[0], *images.shape[2:]):
        raise InvalidInputError(
            f"Maps of shape {saliency_maps.shape} do not fit images of shape {images.shape}; "
            "expected (N, H, W) and (N, C, H, W)."
        )


def check_keep_masks(images: AnyArray, keep_masks: AnyArray) -> None:
    """Check images (N, C, H, W) against keep masks (N, B, H, W), bool.

    Raises:
        InvalidInputError: one is unusable, or they do not fit together.
    """
    _check_images(images)
    is_mask = isinstance(keep_masks, np.ndarray) and keep_masks.dtype == np.bool_ and keep_masks.ndim == 4
    if not is_mask or 0 in keep_masks.shape:
        kind = getattr(keep_masks, "dtype", type(keep_masks).__name__)
        raise InvalidInputError(
            f"keep_masks is {kind} of shape {getattr(keep_masks, 'shape', ())}; expected bool (N, B, H, W)."
        )
    if (keep_masks.shape[0], *keep_masks.shape[2:]) != (images.shape[0], *images.shape[2:]):
        raise InvalidInputError(
            f"keep_masks of shape {keep_masks.shape} do not fit images of shape {images.shape}; "
            "expected (N, B, H, W) and (N, C, H, W)."
        )


def check_noise(images: AnyArray, noise: AnyArray | None) -> None:
    """Check noise (C, H, W) for images (N, C, H, W).

    Raises:
        InvalidInputError: it is unusable, or does not fit.
    """
    if noise is None:
        return
    check_array("noise", noise, ("CHW",))
    check_finite("noise", noise)
    if noise.shape != images.shape[1:]:
        raise InvalidInputError(
            f"noise of shape {noise.shape} does not fit images of shape {images.shape}; expected (C, H, W)."
        )


def check_fractions(removal_fractions: Sequence[float]) -> None:
    """Check the fractions of the pixels that are removed.

    Raises:
        InvalidInputError: none, too many, or one outside (0, 1).
    """
    count = len(removal_fractions)
    if not 1 <= count <= MAX_FRACTIONS or not all(0 < fraction < 1 for fraction in removal_fractions):
        raise InvalidInputError(
            f"removal_fractions is {list(removal_fractions)[:10]}; "
            f"expected 1 to {MAX_FRACTIONS} numbers between 0 and 1."
        )


def nothing_known(image: int, mask: int) -> ImputationError:
    """The error of a mask that keeps nothing."""
    return ImputationError(
        f"Mask {mask} of image {image} keeps no pixel, so nothing is known.", "Keep at least one pixel."
    )


def _check_images(images: AnyArray) -> None:
    check_array("images", images, ("NCHW",))
    check_finite("images", images)
