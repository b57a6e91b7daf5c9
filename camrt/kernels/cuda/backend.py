"""The kernels on the GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from camrt.errors import InvalidInputError
from camrt.kernels.backend import CHANNEL_RULES, FUSIONS, ORDERS, PIXEL_RULES, ChannelRule, Fusion, Order, PixelRule
from camrt.kernels.cuda.call import Call, suffix
from camrt.kernels.cuda.device import CupyDevice, Device, DeviceArray
from camrt.kernels.cuda.perturbation import CudaPerturbation
from camrt.kernels.cuda.recordings import Recordings, ResultT
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
_WARP, _WARP_LAYER = 32, 1024
_RULES: dict[str, int] = {name: number for number, name in enumerate(CHANNEL_RULES + PIXEL_RULES)}
_FUSIONS = {name: number for number, name in enumerate(FUSIONS)}

MOST_LAYERS = 32
_LAYERS = np.dtype(
    [
        ("activations", np.uint64, MOST_LAYERS),
        ("factors", np.uint64, MOST_LAYERS),
        ("outputs", np.int64, MOST_LAYERS),
        ("maps", np.int64, MOST_LAYERS),
        ("channels", np.int32, MOST_LAYERS),
        ("sizes", np.int32, MOST_LAYERS),
        ("splits", np.int32, MOST_LAYERS),
        ("first_blocks", np.int32, MOST_LAYERS),
        ("count", np.int32),
        ("images", np.int32),
    ]
)
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
        self._recordings = Recordings(self.device.record)

    def on_stream(self, handle: int) -> AbstractContextManager[Any]:
        """Within it, all kernels run on this CUDA stream (a cudaStream_t as an integer), after its earlier work."""
        return self.device.on_stream(handle)

    def replayed(self, key: Hashable, work: Callable[[], ResultT]) -> ResultT:
        """What ``work`` returns, its kernels recorded at the second call with a key and replayed from then on.

        For arrays on the device that are read at the same addresses every time. See Recordings.run.
        """
        return self._recordings.run(key, work)

    def channel_weights(self, activations: Any, gradients: Any, rule: ChannelRule) -> Any:
        """See KernelBackend.channel_weights."""
        check_choice("channel rule", rule, CHANNEL_RULES)
        call = self._layer(activations, gradients)
        [weights] = self._channel_weights([call.take_pair("activations", "gradients")], rule)
        return call.give(weights)

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
            layers = [(call.take("activations", half=True), call.take("weights"))]
            sums, table = self._sums(layers, None)
        else:
            layers = [call.take_pair("activations", "weights")]
            sums, table = self._sums(layers, "hirescam")
        return call.give(self._added(sums, table, call.shape_of("activations").shape[2:]))

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
        alike: dict[Any, list[int]] = {}
        for i, (a, g) in enumerate(pairs):
            alike.setdefault((a.dtype, len(a), len(g)), []).append(i)
        maps: dict[int, DeviceArray] = {}
        for indices in alike.values():
            for first in range(0, len(indices), MOST_LAYERS):
                chosen = indices[first : first + MOST_LAYERS]
                maps |= zip(chosen, self._layer_maps([pairs[i] for i in chosen], rule), strict=True)
        return call.give_all([maps[i] for i in range(len(pairs))])

    def normalize(self, maps: Any) -> Any:
        """See KernelBackend.normalize."""
        call = self._maps(maps)
        own = call.take("maps")
        table = np.zeros(1, _LAYERS)
        table["count"], table["sizes"][0, 0], table["splits"][0, 0] = 1, own.shape[1] * own.shape[2], 1
        return call.give(self._finished(own, table, [own.shape])[0])

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

    def _layer_maps(
        self, pairs: Sequence[tuple[DeviceArray, DeviceArray]], rule: ChannelRule | PixelRule
    ) -> list[DeviceArray]:
        """One map (M, h, w) a layer, of layers alike: three launches, or two with a pixel rule, for all of them."""
        if rule in PIXEL_RULES:
            sums, table = self._sums(pairs, rule)
        else:
            weights = self._channel_weights(pairs, rule)
            sums, table = self._sums([(a, w) for (a, _), w in zip(pairs, weights, strict=True)], None)
        return self._finished(sums, table, [(len(g), *g.shape[2:]) for _, g in pairs])

    def _channel_weights(self, pairs: Sequence[tuple[DeviceArray, DeviceArray]], rule: str) -> list[DeviceArray]:
        """Weights (M, C) of layers of one type, N and M."""
        classes = len(pairs[0][1])
        table = self._table_of_layers(pairs)
        shapes = [(classes, a.shape[1]) for a, _ in pairs]
        weights = self._buffer(table["outputs"], shapes)
        blocks = 0
        for layer, (a, _) in enumerate(pairs):
            table["first_blocks"][0, layer] = blocks
            by_warps = a.shape[2] * a.shape[3] <= _WARP_LAYER
            blocks += _blocks(a.shape[1], _THREADS // _WARP) if by_warps else a.shape[1]
        kernel, more = ("mean_gradients", ()) if rule == "gradcam" else ("channel_weights", (_RULES[rule],))
        kernel = f"{kernel}_{suffix(pairs[0][0])}"
        self.device.launch("weights", kernel, (blocks, classes), (_THREADS,), (table, weights, *more))
        return _split(weights, table["outputs"], shapes)

    def _sums(self, layers: Sequence[tuple[DeviceArray, DeviceArray]], rule: str | None) -> tuple[DeviceArray, Any]:
        """Weighted sums of parts of the channels, (M, splits, h w) a layer in one buffer; the table says where.

        Args:
            layers: activations of one type, and weights (M, C), or gradients (M, C, h, w) with a rule.
            rule: a pixel rule, or None.
        """
        classes = len(layers[0][1])
        table = self._table_of_layers(layers)
        shapes, blocks = [], 0
        for layer, (a, _) in enumerate(layers):
            size, channels = a.shape[2] * a.shape[3], a.shape[1]
            across = _blocks(size, _PIXELS)
            splits = min(_blocks(_ENOUGH_BLOCKS, across * classes), _blocks(channels, _FEWEST_CHANNELS))
            table["splits"][0, layer], table["first_blocks"][0, layer] = splits, blocks
            shapes.append((classes, splits, size))
            blocks += across * splits
        sums = self._buffer(table["outputs"], shapes)
        kernel, more = ("sum_channels", ()) if rule is None else ("sum_pixels", (_RULES[rule],))
        kernel = f"{kernel}_{suffix(layers[0][0])}"
        self.device.launch("weighted_sum", kernel, (blocks, classes), (_PIXELS, _STRIDES), (table, sums, *more))
        return sums, table

    def _added(self, sums: DeviceArray, table: Any, size: tuple[int, int]) -> DeviceArray:
        """Maps (M, h, w) of one layer, as they are."""
        splits, pixels = int(table["splits"][0, 0]), size[0] * size[1]
        classes = sums.size // (splits * pixels)
        maps = self.device.empty((classes, *size), np.float32)
        grid = (_blocks(pixels, _MAP_THREADS), classes)
        self.device.launch("weighted_sum", "add_splits", grid, (_MAP_THREADS,), (sums, maps, splits, pixels))
        return maps

    def _finished(self, sums: DeviceArray, table: Any, shapes: Sequence[tuple[int, ...]]) -> list[DeviceArray]:
        """Normalized maps (M, h, w) of all layers."""
        maps = self._buffer(table["maps"], shapes)
        grid = (len(shapes), shapes[0][0])
        self.device.launch("weighted_sum", "finish_maps", grid, (_MAP_THREADS,), (table, sums, maps))
        return _split(maps, table["maps"], shapes)

    def _table_of_layers(self, layers: Sequence[tuple[DeviceArray, DeviceArray]]) -> Any:
        """The struct Layers of src/layers.cuh, an argument that is passed by value."""
        table = np.zeros(1, _LAYERS)
        table["count"], table["images"] = len(layers), len(layers[0][0])
        for layer, (a, factors) in enumerate(layers):
            table["activations"][0, layer] = self.device.pointer(a)
            table["factors"][0, layer] = self.device.pointer(factors)
            table["channels"][0, layer], table["sizes"][0, layer] = a.shape[1], a.shape[2] * a.shape[3]
        return table

    def _buffer(self, offsets: Any, shapes: Sequence[tuple[int, ...]]) -> DeviceArray:
        """One float32 buffer for arrays of all layers, and where each begins in ``offsets``."""
        sizes = [math.prod(shape) for shape in shapes]
        offsets[0, : len(sizes)] = np.cumsum([0, *sizes[:-1]])
        return self.device.empty((sum(sizes),), np.float32)

    def _fused(
        self, maps: Sequence[DeviceArray], size: tuple[int, int], fusion: Fusion, twice: bool
    ) -> tuple[DeviceArray, DeviceArray]:
        count, layers = len(maps[0]), len(maps)
        table = _table(self.device, maps)
        normalized = self.device.empty((sum(one.size for one in maps),), np.float32)
        degenerate = self.device.empty((count, layers), np.uint8)
        # Ranges of the resized maps and of the result, see SharedRange in src/fusion.cu.
        ranges = self.device.empty((count, layers, 2), np.uint32)
        fused_ranges = self.device.empty((count, 2), np.uint32)
        launch = self.device.launch
        outputs = (normalized, degenerate, ranges, fused_ranges)
        launch("fusion", "normalize_layers", (layers, count), (_THREADS,), (table, *outputs))
        output = self.device.empty((count, *size), np.float32)
        tiles = _tiles(output)[0]
        if twice:
            grid = (tiles, layers, count)
            launch("fusion", "range_of_tiles", grid, _TILE_BLOCK, (table, normalized, ranges, *size))
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


def _split(buffer: DeviceArray, offsets: Any, shapes: Sequence[tuple[int, ...]]) -> list[DeviceArray]:
    """The parts of a buffer, without a copy."""
    starts = offsets[0, : len(shapes)].tolist()
    return [
        buffer[start : start + math.prod(shape)].reshape(shape) for start, shape in zip(starts, shapes, strict=True)
    ]


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
