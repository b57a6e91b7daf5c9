"""The kernels that metrics need, on the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from camrt.errors import ImputationError
from camrt.kernels.cuda.call import Call
from camrt.kernels.cuda.device import Device, DeviceArray
from camrt.kernels.perturbation import REMOVAL_FRACTIONS, kept_shares
from camrt.kernels.perturbation_validation import (
    check_finite_maps,
    check_fractions,
    check_images_and_maps,
    check_keep_masks,
    check_map_pairs,
    check_noise,
    nothing_known,
)

_MOST_PARTS = 1024
# Vectors and coefficients of the masks that are solved at a time.
_WORKSPACE_BYTES = 512 << 20
_VECTORS = 6
_COEFFICIENTS = 6


class CudaPerturbation:
    """Removal, imputation and map statistics on the GPU. See PerturbationKernels, and CudaBackend for where arrays lie.

    Imputation is that of the native backend, one block a mask and channel. Of arrays on the device, a mask that keeps
    nothing gives 0, and a system that cannot be solved NaN; on the host both are errors.
    """

    device: Device

    def keep_masks(self, saliency_maps: Any, removal_fractions: Sequence[float]) -> Any:
        """See PerturbationKernels.keep_masks."""
        call = Call(self.device, maps=saliency_maps)
        check_finite_maps(call.shape_of("maps"))
        check_fractions(removal_fractions)
        return call.give(self._keep_masks(call.take("maps"), removal_fractions).view(np.bool_))

    def impute(self, images: Any, keep_masks: Any) -> Any:
        """See PerturbationKernels.impute."""
        call = Call(self.device, images=images, keep_masks=keep_masks)
        check_keep_masks(call.shape_of("images"), call.shape_of("keep_masks"))
        if call.on_host:
            empty = np.argwhere(~keep_masks.any(axis=(2, 3)))
            if len(empty):
                raise nothing_known(*empty[0].tolist())
        filled = self._impute(call.take("images"), call.take("keep_masks").view(np.uint8), None)
        return _solved(call, call.give(filled))

    def perturbation_batch(
        self,
        images: Any,
        saliency_maps: Any,
        removal_fractions: Sequence[float] = REMOVAL_FRACTIONS,
        noise: Any = None,
    ) -> Any:
        """See PerturbationKernels.perturbation_batch."""
        call = Call(self.device, images=images, maps=saliency_maps, noise=noise)
        check_images_and_maps(call.shape_of("images"), call.shape_of("maps"))
        check_fractions(removal_fractions)
        check_noise(call.shape_of("images"), None if noise is None else call.shape_of("noise"))
        masks = self._keep_masks(call.take("maps"), removal_fractions)
        added = None if noise is None else call.take("noise")
        return _solved(call, call.give(self._impute(call.take("images"), masks, added)))

    def masked_images(self, images: Any, saliency_maps: Any) -> Any:
        """See PerturbationKernels.masked_images."""
        from camrt.kernels.cuda import numba_masks

        call = Call(self.device, images=images, maps=saliency_maps)
        check_images_and_maps(call.shape_of("images"), call.shape_of("maps"))
        own = call.take("images")
        output = self.device.empty(own.shape, np.float32)
        flat = (len(own), own.shape[1], -1)
        arguments = (own.reshape(flat), _flat(call.take("maps")), output.reshape(flat))
        grid = (self._parts(own.shape[2] * own.shape[3]), len(own))
        self.device.launch_numba(numba_masks.masked_images, grid, self.device.numba_threads, arguments)
        return call.give(output)

    def pearson(self, first: Any, second: Any) -> Any:
        """See PerturbationKernels.pearson."""
        from camrt.kernels.cuda import numba_masks

        call = Call(self.device, first=first, second=second)
        check_map_pairs(call.shape_of("first"), call.shape_of("second"))
        one, other = _flat(call.take("first")), _flat(call.take("second"))
        output = self.device.empty((len(one),), np.float64)
        arguments = (one, other, output)
        self.device.launch_numba(numba_masks.pearson, (len(one),), self.device.numba_threads, arguments)
        return call.give(output)

    def mean_absolute(self, maps: Any) -> Any:
        """See PerturbationKernels.mean_absolute."""
        from camrt.kernels.cuda import numba_masks

        call = Call(self.device, maps=maps)
        check_finite_maps(call.shape_of("maps"))
        own = _flat(call.take("maps"))
        output = self.device.empty((len(own),), np.float64)
        arguments = (own, output)
        self.device.launch_numba(numba_masks.mean_absolute, (len(own),), self.device.numba_threads, arguments)
        return call.give(output)

    def _keep_masks(self, maps: DeviceArray, removal_fractions: Sequence[float]) -> DeviceArray:
        """(N, 2 F, H, W) of uint8."""
        from camrt.kernels.cuda import numba_masks

        flat = _flat(maps)
        count, size = flat.shape
        ranks, fractions = _places(kept_shares(removal_fractions), size)
        values = self.device.empty((count, len(ranks)), np.uint32)
        arguments = (flat.view(np.uint32), self.device.to_device(ranks), values)
        self.device.launch_numba(numba_masks.select_ranks, (len(ranks), count), self.device.numba_threads, arguments)
        limits = self.device.empty((count, 2 * len(fractions)), np.float64)
        arguments = (values.view(np.float32), self.device.to_device(fractions), limits)
        self.device.launch_numba(numba_masks.thresholds, (count,), self.device.numba_threads, arguments)
        masks = self.device.empty((count, limits.shape[1], *maps.shape[1:]), np.uint8)
        arguments = (flat, limits, masks.reshape(count, limits.shape[1], -1))
        self.device.launch_numba(
            numba_masks.write_masks, (self._parts(size), count), self.device.numba_threads, arguments
        )
        return masks

    def _impute(self, images: DeviceArray, masks: DeviceArray, noise: DeviceArray | None) -> DeviceArray:
        """(N, B, C, H, W). masks: (N, B, H, W) of uint8. As many masks at a time as the workspace allows."""
        from camrt.kernels.cuda import numba_imputation

        _, channels, height, width = images.shape
        per_image = masks.shape[1]
        keep = masks.reshape(-1, height, width)
        levels, elements = _levels(height, width)
        chunk = max(1, min(len(keep), _WORKSPACE_BYTES // (4 * elements * (_COEFFICIENTS + _VECTORS * channels))))
        # The borders of all grids are 0, and no kernel writes them.
        planes = self.device.zeros((chunk, _COEFFICIENTS, elements), np.float32)
        vectors = self.device.zeros((chunk, channels, _VECTORS, elements), np.float32)
        output = self.device.empty((*masks.shape[:2], channels, height, width), np.float32)
        added = self.device.zeros((channels, 1), np.float32) if noise is None else noise.reshape(channels, -1)
        table = self.device.to_device(levels)
        flat = (images.reshape(len(images), channels, -1), output.reshape(len(keep), channels, -1))
        threads = self.device.solver_threads
        for first in range(0, len(keep), chunk):
            part = keep[first : first + chunk]
            self.device.launch_numba(numba_imputation.build_operators, (len(part),), threads, (part, planes, table))
            arguments = (flat[0], part, planes, vectors, table, added, flat[1], np.int64(first), np.int64(per_image))
            self.device.launch_numba(numba_imputation.impute, (channels, len(part)), threads, arguments)
        return output

    def _parts(self, size: int) -> int:
        """Blocks that share the pixels of a map."""
        return min(-(-size // self.device.numba_threads), _MOST_PARTS)


def _flat(maps: DeviceArray) -> DeviceArray:
    return maps.reshape(len(maps), -1)


def _places(shares: Sequence[float], size: int) -> tuple[Any, Any]:
    """Ranks (4 F) and fractions (F) of NumPy's linear quantiles of ``size`` values.

    Of each share: the ranks below and above it, and the same from the other end, where 1 - m has them.
    """
    positions = np.asarray(shares, np.float64) * (size - 1)
    low = np.minimum(positions.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    ranks = np.stack([low, high, size - 1 - low, size - 1 - high], axis=1).ravel()
    return ranks, positions - low


def _levels(height: int, width: int) -> tuple[Any, int]:
    """The grids of numba_multigrid, each half of the one before, down to one element; and the elements of all."""
    rows, elements = [], 0
    while True:
        stride = width + 4
        rows.append((height, width, stride, elements + stride + 2))
        elements += (height + 2) * stride
        if height == width == 1:
            return np.asarray(rows, np.int64), elements
        height, width = (height + 1) // 2, (width + 1) // 2


def _solved(call: Call, filled: Any) -> Any:
    """``filled``, if on the host without NaN.

    Raises:
        ImputationError: a system was not solved.
    """
    if call.on_host and np.isnan(filled).any():
        raise ImputationError("The imputation did not converge.", "Check the image for extreme values.")
    return filled
