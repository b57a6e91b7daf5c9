"""How the input gradient of a convolution is written: by convolutions, where ConvTranspose would be the slow path.

Along one axis, with stride s, kernel k, padding p and dilation d, the gradient is

    dx[i] = sum over m, o with s o - p + d m = i of w[m] dy[o].

Case 1, s = 1: a Conv of dy with the flipped kernel and padding d (k - 1) - p.
Case 2, s > 1, d = 1: split i = s q + t into s phases. Phase t sees only the taps m = r, r + s, ... with
    r = (t + p) mod s, and is a stride-1 Conv of dy with those taps flipped. The phases are interleaved.
Case 3, anything else (dilated and strided, or strides beyond all use): ConvTranspose, cropped or padded to the input.
    Also two forms of which it is the fastest, and everything in a bundle exported without lowering.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import onnx_ir as ir

from camrt.exporter.op_builder import OpBuilder

_MAX_PHASES = 4096  # one node each
_FEW_GROUPED = 8
_FEW_POINTWISE = 256
_TO_THE_START = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class WindowAxis:
    """One spatial axis of a convolution or a pooling window.

    Attributes:
        size: input length. output: output length.
        kernel, stride, dilation: as in the node. begin: padding before the first element.
    """

    size: int
    output: int
    kernel: int
    stride: int
    dilation: int
    begin: int


@dataclass(frozen=True, slots=True)
class _Phase:
    """Phase t of one axis (case 2): taps first, first + stride, ... and the padding of its Conv."""

    first: int
    taps: int
    begin: int
    end: int

    @classmethod
    def of(cls, axis: WindowAxis, t: int) -> _Phase:
        shift, first = divmod(t + axis.begin, axis.stride)
        taps = max(0, -(-(axis.kernel - first) // axis.stride))
        length = -(-axis.size // axis.stride)
        return cls(first, taps, taps - 1 - shift, length - 1 + shift - (axis.output - 1))

    def last(self, stride: int) -> int:
        return self.first + stride * (self.taps - 1)


def conv_input_gradient(
    op: OpBuilder,
    cotangent: ir.Value,
    weight: ir.Value,
    shape: tuple[int, int, int, int],
    axes: tuple[WindowAxis, WindowAxis],
    group: int,
) -> ir.Value:
    """The gradient of a 2-D convolution's input.

    Args:
        op: the builder.
        cotangent: (M, C_out, h', w').
        weight: (C_out, C_in / group, kh, kw), of that ``shape``.
        shape: the weight's shape.
        axes: rows and columns.
        group: number of groups.

    Returns:
        (M, C_in, h, w).
    """
    if not op.lowering or _transpose_is_faster(shape, axes, group):
        return _transposed(op, cotangent, weight, axes, group)
    swapped = _swap_channels(op, weight, shape, group)
    if all(axis.stride == 1 for axis in axes) and _complement(axes) is not None:
        return _stride_one(op, cotangent, swapped, axes, group)
    if all(axis.dilation == 1 for axis in axes) and axes[0].stride * axes[1].stride <= _MAX_PHASES:
        phases = [[_Phase.of(axis, t) for t in range(axis.stride)] for axis in axes]
        if all(phase.taps == 0 or min(phase.begin, phase.end) >= 0 for phase in (*phases[0], *phases[1])):
            return _phased(op, cotangent, swapped, shape[1] * group, axes, phases, group)
    return _transposed(op, cotangent, weight, axes, group)


def _transpose_is_faster(shape: tuple[int, int, int, int], axes: tuple[WindowAxis, WindowAxis], group: int) -> bool:
    """Two forms that ConvTranspose wins (benchmarks/bench_lowering.py).

    Groups of few channels, which Conv takes by its slow path, but not one channel each; and 1x1 with strides and few
    channels, whose gradient is mostly zeros.
    """
    c_out, c_in_group, kh, kw = shape
    few_in_a_group = group > 1 and 1 < c_in_group <= _FEW_GROUPED and c_out // group <= _FEW_GROUPED
    strided = max(axis.stride for axis in axes) > 1
    return few_in_a_group or (group == 1 and kh == kw == 1 and strided and c_out <= _FEW_POINTWISE)


def interleave(
    op: OpBuilder, phases: list[ir.Value], strides: tuple[int, int], shape: tuple[int, int, int]
) -> ir.Value:
    """Phases (M, C, q, r), row by row, to (M, C, q * strides[0], r * strides[1]); ``shape`` is (C, q, r).

    Two Concats over new axes: in ONNX Runtime DepthToSpace takes twice as long (benchmarks/bench_lowering.py).
    """
    channels, rows, columns = shape
    wide = columns * strides[1]
    bands = []
    for start in range(0, len(phases), strides[1]):
        band = phases[start]
        if strides[1] > 1:
            parts = [op("Unsqueeze", part, op.ints([4])) for part in phases[start : start + strides[1]]]
            band = op("Concat", *parts, axis=4)
        bands.append(op("Reshape", band, op.ints([-1, channels, rows, 1, wide])) if strides[0] > 1 else band)
    whole = op("Concat", *bands, axis=3) if len(bands) > 1 else bands[0]
    if len(phases) == 1:
        return whole
    return op("Reshape", whole, op.ints([-1, channels, rows * strides[0], wide]))


def fit(
    op: OpBuilder, value: ir.Value, starts: tuple[int, int], lengths: tuple[int, int], size: tuple[int, int]
) -> ir.Value:
    """Rows and columns [start, start + size) of a value with the spatial ``lengths``; zeros past its end."""
    missing = [max(starts[a] + size[a] - lengths[a], 0) for a in (0, 1)]
    if any(missing):
        value = op("Pad", value, op.ints([0, 0, 0, 0, 0, 0, *missing]), op.scalar(0.0))
    if starts == (0, 0) and all(size[a] == lengths[a] + missing[a] for a in (0, 1)):
        return value
    ends = [starts[0] + size[0], starts[1] + size[1]]
    return op("Slice", value, op.ints(starts), op.ints(ends), op.ints([2, 3]))


def _complement(axes: tuple[WindowAxis, WindowAxis]) -> list[int] | None:
    """Pads of case 1: all begins, then all ends; None where one would be negative."""
    begins = [axis.dilation * (axis.kernel - 1) - axis.begin for axis in axes]
    ends = [axis.size - axis.output + axis.begin for axis in axes]
    return [*begins, *ends] if min(*begins, *ends) >= 0 else None


def _swap_channels(op: OpBuilder, weight: ir.Value, shape: tuple[int, int, int, int], group: int) -> ir.Value:
    """(C_out, C_in / g, kh, kw) to (C_in, C_out / g, kh, kw), group by group."""
    c_out, c_in_group, kh, kw = shape
    if c_in_group == 1 and c_out == group:
        return weight
    if group == 1:
        return op("Transpose", weight, perm=[1, 0, 2, 3])
    grouped = op("Reshape", weight, op.ints([group, c_out // group, c_in_group, kh, kw]))
    turned = op("Transpose", grouped, perm=[0, 2, 1, 3, 4])
    return op("Reshape", turned, op.ints([group * c_in_group, c_out // group, kh, kw]))


def _stride_one(
    op: OpBuilder, cotangent: ir.Value, swapped: ir.Value, axes: tuple[WindowAxis, WindowAxis], group: int
) -> ir.Value:
    """Case 1."""
    kernel = [axis.kernel for axis in axes]
    whole = (_Phase(0, kernel[0], 0, 0), _Phase(0, kernel[1], 0, 0))
    flipped = _flipped_taps(op, swapped, whole, (1, 1)) if max(kernel) > 1 else swapped
    pads = _complement(axes)
    assert pads is not None
    dilations = [axis.dilation for axis in axes]
    return op(
        "Conv", cotangent, flipped, kernel_shape=kernel, pads=pads, dilations=dilations, group=group, strides=[1, 1]
    )


def _flipped_taps(op: OpBuilder, weight: ir.Value, phase: tuple[_Phase, _Phase], strides: tuple[int, int]) -> ir.Value:
    """The taps of one phase, last first."""
    starts = [phase[axis].last(strides[axis]) for axis in (0, 1)]
    steps = [-strides[0], -strides[1]]
    return op("Slice", weight, op.ints(starts), op.ints([_TO_THE_START] * 2), op.ints([2, 3]), op.ints(steps))


def _phased(
    op: OpBuilder,
    cotangent: ir.Value,
    swapped: ir.Value,
    c_in: int,
    axes: tuple[WindowAxis, WindowAxis],
    phases: list[list[_Phase]],
    group: int,
) -> ir.Value:
    """Case 2."""
    strides = (axes[0].stride, axes[1].stride)
    lengths = (-(-axes[0].size // strides[0]), -(-axes[1].size // strides[1]))
    pairs = list(product(phases[0], phases[1]))
    size = (axes[0].size, axes[1].size)
    whole = (lengths[0] * strides[0], lengths[1] * strides[1])

    def convolve(pair: tuple[_Phase, _Phase], taps: ir.Value) -> ir.Value:
        (row, column) = pair
        return op(
            "Conv",
            cotangent,
            taps,
            kernel_shape=[row.taps, column.taps],
            pads=[row.begin, column.begin, row.end, column.end],
            group=group,
        )

    taps = [_flipped_taps(op, swapped, pair, strides) if pair[0].taps and pair[1].taps else None for pair in pairs]
    if group == 1 and _alike(pairs):
        stacked = convolve(pairs[0], op("Concat", *taps, axis=0))
        maps: list[ir.Value | None] = [_channels(op, stacked, index * c_in, c_in) for index in range(len(pairs))]
    else:
        maps = [None if tap is None else convolve(pair, tap) for pair, tap in zip(pairs, taps, strict=True)]
    filled = [value for value in maps if value is not None]
    if len(filled) == 1 and maps[0] is not None:
        return fit(op, _zero_interleave(op, filled[0], lengths, strides), (0, 0), whole, size)
    zeros = op("Mul", filled[0], op.scalar(0.0)) if len(filled) < len(maps) else None
    complete = [item for value in maps if (item := zeros if value is None else value) is not None]
    return fit(op, interleave(op, complete, strides, (c_in, *lengths)), (0, 0), whole, size)


def _channels(op: OpBuilder, value: ir.Value, start: int, count: int) -> ir.Value:
    return op("Slice", value, op.ints([start]), op.ints([start + count]), op.ints([1]))


def _alike(pairs: list[tuple[_Phase, _Phase]]) -> bool:
    """Whether every phase has the same, non-empty kernel and padding, so that one Conv can compute all."""
    forms = {(row.taps, row.begin, row.end, column.taps, column.begin, column.end) for row, column in pairs}
    return len(forms) == 1 and pairs[0][0].taps > 0 and pairs[0][1].taps > 0


def _zero_interleave(op: OpBuilder, value: ir.Value, lengths: tuple[int, int], strides: tuple[int, int]) -> ir.Value:
    """``value`` at every stride-th row and column, zeros between: enlarged, then masked."""
    mask = np.zeros((1, 1, lengths[0] * strides[0], lengths[1] * strides[1]), op.dtype.numpy())
    mask[:, :, :: strides[0], :: strides[1]] = 1
    return op("Mul", enlarge(op, value, strides), op.constant(mask))


def enlarge(op: OpBuilder, value: ir.Value, factors: tuple[int, int]) -> ir.Value:
    """Every row and column repeated."""
    scales = op.constant(np.asarray([1, 1, *factors], np.float32))
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return op("Resize", value, None, scales, **nearest)


def tiled_max_gradient(
    op: OpBuilder, x: ir.Value, y: ir.Value, cotangent: ir.Value, kernel: tuple[int, int], size: tuple[int, int]
) -> ir.Value:
    """The gradient of a MaxPool whose windows tile its input x, (M, C, h, w): dy at the first maximum of each window.

    Positions of a window have falling ranks, row by row. A position that equals its window's maximum keeps its rank,
    any other has 0; where the rank is the largest of its window, there the gradient goes.

    Args:
        op: the builder.
        x: (N, C, h, w), of the spatial ``size``.
        y: (N, C, h', w'), the maxima.
        cotangent: (M, C, h', w').
        kernel: rows and columns of a window.
        size: (h, w).
    """
    ranks = np.arange(kernel[0] * kernel[1], 0, -1).reshape(kernel)
    tiled = np.tile(ranks, (size[0] // kernel[0], size[1] // kernel[1]))
    rank = op.constant(tiled.astype(op.dtype.numpy())[None, None])
    found = op("Mul", op.cast(op("Equal", x, enlarge(op, y, kernel))), rank)
    first = op("MaxPool", found, kernel_shape=kernel, strides=kernel)
    return op("Mul", enlarge(op, cotangent, kernel), op.cast(op("Equal", enlarge(op, first, kernel), rank)))


def _transposed(
    op: OpBuilder, cotangent: ir.Value, weight: ir.Value, axes: tuple[WindowAxis, WindowAxis], group: int
) -> ir.Value:
    """Case 3. ConvTranspose covers [-begin, length - begin); its own paddings cut that to the input where they can.

    They must not be negative, nor as wide as the kernel; an output padding must be less than the stride.
    """
    lengths = [(axis.output - 1) * axis.stride + axis.dilation * (axis.kernel - 1) + 1 for axis in axes]
    ends = [length - axis.begin - axis.size for axis, length in zip(axes, lengths, strict=True)]
    reach = [axis.dilation * (axis.kernel - 1) + 1 for axis in axes]
    fits = all(
        axis.begin < width and -axis.stride < end < width for axis, end, width in zip(axes, ends, reach, strict=True)
    )
    cut = {
        "pads": [axis.begin for axis in axes] + [max(end, 0) for end in ends],
        "output_padding": [max(-end, 0) for end in ends],
    }
    full = op(
        "ConvTranspose",
        cotangent,
        weight,
        kernel_shape=[axis.kernel for axis in axes],
        strides=[axis.stride for axis in axes],
        dilations=[axis.dilation for axis in axes],
        group=group,
        **(cut if fits else {}),
    )
    if fits:
        return full
    return fit(op, full, (axes[0].begin, axes[1].begin), (lengths[0], lengths[1]), (axes[0].size, axes[1].size))
