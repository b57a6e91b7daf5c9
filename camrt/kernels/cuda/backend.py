"""The kernels on the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from camrt.errors import InvalidInputError
from camrt.kernels.backend import CHANNEL_RULES, FUSIONS, ORDERS, PIXEL_RULES, ChannelRule, Fusion, Order, PixelRule
from camrt.kernels.cuda.call import Call, suffix
from camrt.kernels.cuda.device import CupyDevice, Device, DeviceArray
from camrt.kernels.cuda.perturbation import CudaPerturbation
from camrt.kernels.validation import (
    check_array,
    check_choice,
    check_fused_size,
    check_layer,
    check_layer_maps,
    check_layers,
    check_maps,
    check_matrix,
    check_output_size,
    check_threads,
    check_weights,
)

# Sizes of blocks and tiles, and the numbers of rules and fusions: those of src/ and camrt/math/constants.hpp.
_THREADS = 256
_MAP_THREADS = 512
_PIXELS, _STRIDES = 32, 8
_TILE_HEIGHT, _TILE_WIDTH = 16, 32
_TILE_BLOCK = (32, 8)
_SMALL_LAYER = 1024
_RULES: dict[str, int] = {name: number for number, name in enumerate(CHANNEL_RULES + PIXEL_RULES)}
_FUSIONS = {name: number for number, name in enumerate(FUSIONS)}

MOST_LAYERS = 32
_LAYER_MAPS = np.dtype(
    [
        ("maps", np.uint64, MOST_LAYERS),
        ("offsets", np.int64, MOST_LAYERS),
        ("heights", np.int32, MOST_LAYERS),
        ("widths", np.int32, MOST_LAYERS),
    ]
)
# Blocks that keep a large GPU busy, and the fewest channels that are worth a block.
_ENOUGH_BLOCKS = 512
_FEWEST_CHANNELS = 64


class CudaBackend(CudaPerturbation):
    """Every kernel on the GPU, on CuPy's current stream.

    NumPy arrays come back as NumPy arrays. Arrays on the device (CuPy's, or any with DLPack: PyTorch's, ONNX Runtime's)
    may be float16 and come back as float32 CuPy arrays, without a copy to the host and without waiting: an error in
    their values shows as NaN. All arrays of a call lie in one place. Sums over channels are split by the shape of a
    layer alone, so results do not depend on the GPU.

    Args:
        threads: has no effect; every backend takes it.
        device: for tests; by default CuPy's current device.

    Raises:
        BackendUnavailableError: CuPy, Numba, a driver or a GPU is missing.
    """

    name = "cuda"

    def __init__(self, threads: int = 0, device: Device | None = None) -> None:
        check_threads(threads)
        self.device = device if device is not None else CupyDevice()
        self.description = f"CUDA, {self.device.description}"

    def on_stream(self, handle: int) -> AbstractContextManager[Any]:
        """Within it, all kernels run on this CUDA stream (a cudaStream_t as an integer), after its earlier work."""
        return self.device.on_stream(handle)

    def channel_weights(self, activations: Any, gradients: Any, rule: ChannelRule) -> Any:
        """See KernelBackend.channel_weights."""
        check_choice("channel rule", rule, CHANNEL_RULES)
        call = self._layer(activations, gradients)
        return call.give(self._channel_weights(*call.take_pair("activations", "gradients"), rule))

    def pixel_weights(self, activations: Any, gradients: Any, rule: PixelRule) -> Any:
        """See KernelBackend.pixel_weights."""
        check_choice("pixel rule", rule, PIXEL_RULES)
        call = self._layer(activations, gradients)
        a, g = call.take_pair("activations", "gradients")
        weights = self.device.empty(g.shape, np.float32)
        volume = g.size // len(g)
        grid = (min(_blocks(volume, _THREADS), 4 * _ENOUGH_BLOCKS), len(g))
        arguments = (a, g, weights, len(a), np.int64(volume), _RULES[rule])
        self.device.launch("weights", f"pixel_weights_{suffix(g)}", grid, (_THREADS,), arguments)
        return call.give(weights)

    def weighted_sum(self, activations: Any, weights: Any) -> Any:
        """See KernelBackend.weighted_sum."""
        call = Call(self.device, activations=activations, weights=weights)
        check_weights(call.shape_of("activations"), call.shape_of("weights"))
        if call.shape_of("weights").ndim == 2:
            sums = self._sum_channels(call.take("activations", half=True), call.take("weights"))
        else:
            sums = self._sum_pixels(*call.take_pair("activations", "weights"), "hirescam")
        return call.give(self._added(sums, call.shape_of("activations").shape[2:]))

    def layer_map(self, activations: Any, gradients: Any, rule: ChannelRule | PixelRule) -> Any:
        """See KernelBackend.layer_map."""
        return self.layer_maps([activations], [gradients], rule)[0]

    def layer_maps(
        self, activations: Sequence[Any], gradients: Sequence[Any], rule: ChannelRule | PixelRule
    ) -> list[Any]:
        """See KernelBackend.layer_maps."""
        check_choice("rule", rule, CHANNEL_RULES + PIXEL_RULES)
        arrays = {f"activations[{i}]": array for i, array in enumerate(activations)}
        arrays |= {f"gradients[{i}]": array for i, array in enumerate(gradients)}
        call = Call(self.device, **arrays)
        check_layers(
            [call.shape_of(f"activations[{i}]") for i in range(len(activations))],
            [call.shape_of(f"gradients[{i}]") for i in range(len(gradients))],
        )
        pairs = [call.take_pair(f"activations[{i}]", f"gradients[{i}]") for i in range(len(activations))]
        return call.give_all([self._layer_map(a, g, rule) for a, g in pairs])

    def normalize(self, maps: Any) -> Any:
        """See KernelBackend.normalize."""
        call = self._maps(maps)
        own = call.take("maps")
        return call.give(self._finished(own[:, None], own.shape[1:]))

    def fuse_layers(
        self,
        layer_maps: Sequence[Any],
        output_size: tuple[int, int],
        fusion: Fusion = "product",
        order: Order = "normalize_twice",
    ) -> tuple[Any, Any]:
        """See KernelBackend.fuse_layers. At most 32 layers.

        Raises:
            InvalidInputError: more layers.
        """
        check_choice("fusion", fusion, FUSIONS)
        check_choice("order", order, ORDERS)
        call = Call(self.device, **{f"layer_maps[{i}]": maps for i, maps in enumerate(layer_maps)})
        shapes = [call.shape_of(f"layer_maps[{i}]") for i in range(len(layer_maps))]
        check_layer_maps(shapes)
        check_fused_size(shapes, output_size)
        if len(layer_maps) > MOST_LAYERS:
            raise InvalidInputError(
                f"{len(layer_maps)} layers cannot be fused on the GPU.",
                f"Choose at most {MOST_LAYERS}, or the backend 'native'.",
            )
        maps = [call.take(f"layer_maps[{i}]") for i in range(len(layer_maps))]
        if order == "normalize_twice":
            output, degenerate = self._fused(maps, output_size, fusion, twice=True)
        else:
            largest = (max(one.shape[1] for one in maps), max(one.shape[2] for one in maps))
            fused, degenerate = self._fused(maps, largest, fusion, twice=False)
            output = self._resized(fused, output_size)
        return call.give(output), call.give(degenerate)

    def resize(self, maps: Any, output_size: tuple[int, int]) -> Any:
        """See KernelBackend.resize."""
        call = self._maps(maps)
        check_output_size(output_size)
        return call.give(self._resized(call.take("maps"), output_size))

    def warp_affine(self, maps: Any, matrix: Any, output_size: tuple[int, int]) -> Any:
        """See KernelBackend.warp_affine. ``matrix`` is a NumPy array wherever the maps are."""
        call = Call(self.device, maps=maps)
        check_array("maps", call.shape_of("maps"), ("MHW",))
        check_matrix(matrix)
        check_output_size(output_size)
        own = call.take("maps")
        output = self.device.empty((len(own), *output_size), np.float32)
        arguments = (own, *own.shape[1:], output, *output_size, *matrix.ravel().tolist())
        self.device.launch("resample", "warp_maps", _tiles(output), _TILE_BLOCK, arguments)
        return call.give(output)

    def _layer(self, activations: Any, gradients: Any) -> Call:
        call = Call(self.device, activations=activations, gradients=gradients)
        check_layer(call.shape_of("activations"), call.shape_of("gradients"))
        return call

    def _maps(self, maps: Any) -> Call:
        call = Call(self.device, maps=maps)
        check_maps(call.shape_of("maps"))
        return call

    def _layer_map(
        self, activations: DeviceArray, gradients: DeviceArray, rule: ChannelRule | PixelRule
    ) -> DeviceArray:
        if rule in PIXEL_RULES:
            sums = self._sum_pixels(activations, gradients, rule)
        else:
            sums = self._sum_channels(activations, self._channel_weights(activations, gradients, rule))
        return self._finished(sums, activations.shape[2:])

    def _channel_weights(self, activations: DeviceArray, gradients: DeviceArray, rule: str) -> DeviceArray:
        classes, channels, height, width = gradients.shape
        weights = self.device.empty((classes, channels), np.float32)
        small = height * width <= _SMALL_LAYER
        grid = (_blocks(channels, _THREADS // 32) if small else channels, classes)
        kernel = f"channel_weights_{'small' if small else 'large'}_{suffix(gradients)}"
        arguments = (activations, gradients, weights, len(activations), channels, height * width, _RULES[rule])
        self.device.launch("weights", kernel, grid, (_THREADS,), arguments)
        return weights

    def _sum_channels(self, activations: DeviceArray, weights: DeviceArray) -> DeviceArray:
        """(M, splits, h w): weighted sums of parts of the channels."""
        sums, grid = self._splits(len(weights), activations)
        arguments = (activations, weights, sums, len(activations), activations.shape[1], sums.shape[2])
        kernel = f"sum_channels_{suffix(activations)}"
        self.device.launch("weighted_sum", kernel, grid, (_PIXELS, _STRIDES), arguments)
        return sums

    def _sum_pixels(self, activations: DeviceArray, gradients: DeviceArray, rule: str) -> DeviceArray:
        """The same with weights that a pixel rule makes of the gradients."""
        sums, grid = self._splits(len(gradients), activations)
        arguments = (activations, gradients, sums, len(activations), activations.shape[1], sums.shape[2], _RULES[rule])
        kernel = f"sum_pixels_{suffix(activations)}"
        self.device.launch("weighted_sum", kernel, grid, (_PIXELS, _STRIDES), arguments)
        return sums

    def _splits(self, classes: int, activations: DeviceArray) -> tuple[DeviceArray, tuple[int, int, int]]:
        _, channels, height, width = activations.shape
        blocks = _blocks(height * width, _PIXELS)
        splits = min(_blocks(_ENOUGH_BLOCKS, blocks * classes), _blocks(channels, _FEWEST_CHANNELS))
        return self.device.empty((classes, splits, height * width), np.float32), (blocks, splits, classes)

    def _added(self, sums: DeviceArray, size: tuple[int, int]) -> DeviceArray:
        classes, splits, pixels = sums.shape
        maps = self.device.empty((classes, *size), np.float32)
        grid = (_blocks(pixels, _MAP_THREADS), classes)
        self.device.launch("weighted_sum", "add_splits", grid, (_MAP_THREADS,), (sums, maps, splits, pixels))
        return maps

    def _finished(self, sums: DeviceArray, size: tuple[int, int]) -> DeviceArray:
        classes, splits = sums.shape[:2]
        maps = self.device.empty((classes, *size), np.float32)
        arguments = (sums, maps, splits, size[0] * size[1])
        self.device.launch("weighted_sum", "finish_maps", (classes,), (_MAP_THREADS,), arguments)
        return maps

    def _fused(
        self, maps: Sequence[DeviceArray], size: tuple[int, int], fusion: Fusion, twice: bool
    ) -> tuple[DeviceArray, DeviceArray]:
        count, layers = len(maps[0]), len(maps)
        table = _table(self.device, maps)
        normalized = self.device.empty((sum(one.size for one in maps),), np.float32)
        degenerate = self.device.empty((count, layers), np.uint8)
        launch = self.device.launch
        launch("fusion", "normalize_layers", (layers, count), (_THREADS,), (table, normalized, degenerate))
        output = self.device.empty((count, *size), np.float32)
        tiles = _tiles(output)[0]
        ranges = self.device.empty((count, layers, tiles, 2), np.float32)
        if twice:
            grid = (tiles, layers, count)
            launch("fusion", "range_of_tiles", grid, _TILE_BLOCK, (table, normalized, ranges, *size))
        fused_ranges = self.device.empty((count, tiles, 2), np.float32)
        arguments = (table, layers, normalized, ranges, int(twice), _FUSIONS[fusion], output, fused_ranges, *size)
        launch("fusion", "fuse_tiles", (tiles, count), _TILE_BLOCK, arguments)
        launch("fusion", "rescale_tiles", (tiles, count), _TILE_BLOCK, (output, fused_ranges, *size))
        return output, degenerate.view(np.bool_)

    def _resized(self, maps: DeviceArray, size: tuple[int, int]) -> DeviceArray:
        output = self.device.empty((len(maps), *size), np.float32)
        self.device.launch(
            "resample", "resize_maps", _tiles(output), _TILE_BLOCK, (maps, *maps.shape[1:], output, *size)
        )
        return output


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


def _tiles(output: DeviceArray) -> tuple[int, int]:
    """The grid of kernels that work on tiles of (M, H, W)."""
    count, height, width = output.shape
    return _blocks(height, _TILE_HEIGHT) * _blocks(width, _TILE_WIDTH), count


def _table(device: Device, maps: Sequence[DeviceArray]) -> Any:
    """The struct LayerMaps of src/fusion.cu, an argument that is passed by value."""
    table = np.zeros(1, _LAYER_MAPS)
    offset = 0
    for layer, one in enumerate(maps):
        table["maps"][0, layer] = device.pointer(one)
        table["offsets"][0, layer] = offset
        table["heights"][0, layer], table["widths"][0, layer] = one.shape[1:]
        offset += one.size
    return table
