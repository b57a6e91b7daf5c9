"""Rules in company: where the batch is not the first axis, and in front of slopes that are infinite somewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from camrt.errors import UnsupportedOpError
from camrt.exporter.backward import append_backward
from camrt.exporter.op_builder import OpBuilder
from tests.exporter.graphs import model_proto
from tests.exporter.test_vjp import evaluator

TOKENS, CHANNELS = 5, 4
RNG = np.random.default_rng(2)


def step(op: str, *inputs: Any, **attributes: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """One node of a chain: its first input is the output of the one before it, arrays are constants."""
    return op, inputs, attributes


def chain(
    steps: Sequence[tuple[str, tuple[Any, ...], dict[str, Any]]],
    shape: tuple[int, ...],
    dtype: int = TensorProto.FLOAT,
    lowering: bool = True,
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The forward model x (N, *shape) -> y, and one that returns the gradient of x for a cotangent dy."""
    real = helper.tensor_dtype_to_np_dtype(dtype)
    constants: dict[str, np.ndarray] = {}
    nodes, value = [], "x"
    for index, (op_type, arrays, attributes) in enumerate(steps):
        output = "y" if index == len(steps) - 1 else f"v{index}"
        names = [f"c{index}_{position}" for position in range(len(arrays))]
        constants |= {
            name: array.astype(real) if array.dtype == np.float64 else array
            for name, array in zip(names, map(np.asarray, arrays), strict=True)
        }
        nodes.append(helper.make_node(op_type, [value, *names], [output], f"node{index}", **attributes))
        value = output
    plain = model_proto(nodes, {"x": ["N", *shape]}, {}, constants, 18, dtype)
    plain.graph.output.append(helper.make_tensor_value_info("y", dtype, None))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(plain, data_prop=True))
    graph = model.graph
    y = graph.outputs[0]
    kind = ir.TensorType(ir.DataType(dtype))
    dy = ir.Value(name="dy", type=kind, shape=ir.Shape([dim if isinstance(dim, int) else "M" for dim in y.shape]))
    graph.inputs.append(dy)
    op = OpBuilder(graph, ir.DataType(dtype), lowering=lowering)
    gradient = op.identity(append_backward(op, y, dy, {"x": graph.inputs[0]})["x"])
    gradient.name, gradient.type = "dx", kind
    graph.outputs.clear()
    graph.outputs.append(gradient)
    return plain, ir.to_proto(model)


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return session.run(None, {name: array for name, array in feeds.items() if name in names})[0]


TOKENS_FIRST = step("Transpose", perm=[1, 0, 2])
ONES = np.ones(CHANNELS)
FIRST_AXIS = np.array([0])


def reduction(op: str, **attributes: Any) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    return [step(op, FIRST_AXIS, keepdims=0, **attributes)]


OVER_TOKENS = {
    **{op: reduction(op) for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2")},
    **{op: reduction(op) for op in ("ReduceSumSquare", "ReduceLogSumExp")},
    "Softmax": [step("Softmax", axis=0), step("Transpose", perm=[1, 0, 2])],
    "LogSoftmax": [step("LogSoftmax", axis=-3), step("Transpose", perm=[1, 0, 2])],
    "CumSum": [step("CumSum", np.array(0)), step("Transpose", perm=[1, 0, 2])],
    "LpNormalization": [step("LpNormalization", axis=0), step("Transpose", perm=[1, 0, 2])],
    "LayerNormalization": [step("LayerNormalization", ONES, axis=-1), step("ReduceMean", FIRST_AXIS, keepdims=0)],
}


@pytest.mark.parametrize("steps", OVER_TOKENS.values(), ids=OVER_TOKENS)
def test_the_axis_in_front_of_the_batch_may_be_reduced(steps: list) -> None:
    """Tokens first, (T, N, C), as in nn.Transformer: central differences, and M = 3 classes of one image."""
    plain, exact = chain([TOKENS_FIRST, *steps], (TOKENS, CHANNELS), TensorProto.DOUBLE)
    forward, backward = evaluator(plain), evaluator(exact)
    x = RNG.permutation(np.linspace(-2, 2, 2 * TOKENS * CHANNELS)).reshape(2, TOKENS, CHANNELS)
    dy, direction = RNG.standard_normal(forward.run(None, {"x": x})[0].shape), RNG.standard_normal(x.shape)
    (dx,) = backward.run(None, {"x": x, "dy": dy})
    high, low = (forward.run(None, {"x": x + eps * direction})[0] for eps in (1e-6, -1e-6))
    scale = float((np.abs(dx) * np.abs(direction)).sum())
    assert abs(float((dx * direction).sum()) - float((dy * (high - low)).sum()) / 2e-6) <= 1e-6 * scale
    classes = RNG.standard_normal((3, *dy.shape[1:]))
    expected = np.concatenate([backward.run(None, {"x": x[:1], "dy": dy})[0] for dy in np.split(classes, 3)])
    _, single = chain([TOKENS_FIRST, *steps], (TOKENS, CHANNELS))
    dx = run(single, x=x[:1].astype(np.float32), dy=classes.astype(np.float32))
    np.testing.assert_allclose(dx, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


ALONG_THE_BATCH = {
    **{op: [step(op, np.array([1]))] for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2")},
    **{op: [step(op, axis=-2)] for op in ("Softmax", "LogSoftmax", "LpNormalization")},
    "CumSum": [step("CumSum", np.array(1))],
    "LayerNormalization": [step("LayerNormalization", ONES, axis=1)],
    "InstanceNormalization": [step("Transpose", perm=[0, 2, 1]), step("InstanceNormalization", ONES, ONES)],
    "GlobalAveragePool": [step("Transpose", perm=[0, 2, 1]), step("GlobalAveragePool")],
    "GlobalMaxPool": [step("Transpose", perm=[0, 2, 1]), step("GlobalMaxPool")],
    "AveragePool": [step("Transpose", perm=[0, 2, 1]), step("AveragePool", kernel_shape=[2])],
    "Conv": [step("Transpose", perm=[0, 2, 1]), step("Conv", np.ones((3, CHANNELS, 1)))],
    "MatMul": [step("Transpose", perm=[0, 2, 1]), step("MatMul", np.ones((2, 3)))],
}


@pytest.mark.parametrize(("op", "steps"), ALONG_THE_BATCH.items(), ids=ALONG_THE_BATCH)
def test_the_batch_is_refused_wherever_it_is(op: str, steps: list) -> None:
    with pytest.raises(UnsupportedOpError, match="along the batch axis") as caught:
        chain([TOKENS_FIRST, *steps], (TOKENS, CHANNELS))
    assert caught.value.op_type == op


def pooled(x: torch.Tensor, **window: Any) -> torch.Tensor:
    return torch.nn.functional.max_pool2d(torch.relu(x), **window)


HALF, ZERO, SIX = np.float64(0.5), np.float64(0), np.float64(6)
RELU, SQRT = step("Relu"), step("Sqrt")
WEIGHT = RNG.uniform(0.1, 1, (2, 2, 1, 1))
WIDE = RNG.uniform(0.1, 1, (260, 2, 1, 1))
STEEP: dict[str, tuple[list, Callable[[torch.Tensor], torch.Tensor]]] = {
    "sqrt": ([RELU, SQRT], lambda x: torch.relu(x).sqrt()),
    "power": ([RELU, step("Pow", HALF)], lambda x: torch.relu(x) ** 0.5),
    "log": ([RELU, step("Log")], lambda x: torch.relu(x).log()),
    "reciprocal": ([RELU, step("Reciprocal")], lambda x: torch.relu(x).reciprocal()),
    "clip": ([step("Clip", ZERO, SIX), SQRT], lambda x: x.clamp(0, 6).sqrt()),
    "hard sigmoid": ([step("HardSigmoid", alpha=1 / 6), SQRT], lambda x: torch.nn.functional.hardsigmoid(x).sqrt()),
    "threshold": (
        [step("ThresholdedRelu", alpha=1.0), SQRT],
        lambda x: torch.nn.functional.threshold(x, 1, 0).sqrt(),
    ),
    "maximum": ([step("Max", ZERO), SQRT], lambda x: torch.maximum(x, torch.zeros(())).sqrt()),
    "reshaped": ([RELU, step("Flatten"), SQRT], lambda x: torch.relu(x).flatten(1).sqrt()),
    "mean": ([RELU, step("GlobalAveragePool"), SQRT], lambda x: torch.relu(x).mean((2, 3), keepdim=True).sqrt()),
    "largest": (
        [RELU, step("GlobalMaxPool"), SQRT],
        lambda x: torch.nn.functional.adaptive_max_pool2d(torch.relu(x), 1).sqrt(),
    ),
    "tiles": (
        [RELU, step("MaxPool", kernel_shape=[2, 2], strides=[2, 2]), SQRT],
        lambda x: pooled(x, kernel_size=2).sqrt(),
    ),
    "overlapping": (
        [RELU, step("MaxPool", kernel_shape=[3, 3], strides=[2, 2]), SQRT],
        lambda x: pooled(x, kernel_size=3, stride=2).sqrt(),
    ),
    "gaps": (
        [RELU, step("MaxPool", kernel_shape=[1, 1], strides=[2, 2]), SQRT],
        lambda x: pooled(x, kernel_size=1, stride=2).sqrt(),
    ),
    "floor": ([RELU, step("Floor"), SQRT], lambda x: torch.relu(x).floor().sqrt()),
    "power of nothing": ([RELU, step("Pow", ZERO), SQRT], lambda x: (torch.relu(x) ** 0).sqrt()),
    "convolved": (
        [RELU, step("Conv", WEIGHT, strides=[2, 2]), SQRT],
        lambda x: torch.conv2d(torch.relu(x), torch.tensor(WEIGHT).float(), stride=2).sqrt(),
    ),
    "convolved widely": (
        [RELU, step("Conv", WIDE, strides=[2, 2]), SQRT],
        lambda x: torch.conv2d(torch.relu(x), torch.tensor(WIDE).float(), stride=2).sqrt(),
    ),
}


@pytest.mark.parametrize("lowering", [True, False])
@pytest.mark.parametrize(("steps", "oracle"), STEEP.values(), ids=STEEP)
def test_a_mask_hides_infinities_as_in_pytorch(steps: list, oracle: Callable, lowering: bool) -> None:
    x = RNG.uniform(0.2, 5, (1, 2, 6, 6)).astype(np.float32) * np.where(RNG.random((1, 2, 6, 6)) < 0.5, -1, 1)
    x[:, :, :4, :4], x[:, 1] = -np.abs(x[:, :, :4, :4]), -np.abs(x[:, 1])
    x = x.astype(np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    y = oracle(leaf)
    dy = RNG.standard_normal(y.shape).astype(np.float32)
    (expected,) = torch.autograd.grad(y, leaf, torch.tensor(dy))
    assert torch.isfinite(expected).all()
    _, model = chain(steps, x.shape[1:], lowering=lowering)
    np.testing.assert_allclose(run(model, x=x, dy=dy), expected, rtol=1e-5, atol=1e-5)


def test_hard_swish_has_no_slope_where_it_is_zero() -> None:
    _, model = chain([step("HardSwish"), SQRT], (2,))
    (dx,) = run(model, x=np.array([[-4, 5]], np.float32), dy=np.ones((1, 2), np.float32))
    np.testing.assert_allclose(dx, [0, 0.5 / np.sqrt(5)], rtol=1e-6)


def masks(*steps: tuple[str, tuple[Any, ...], dict[str, Any]]) -> Counter[str]:
    """How often the backward part chooses, and how often it multiplies by a mask."""
    _, model = chain(steps, (2, 6, 6))
    added = Counter(node.op_type for node in model.graph.node if node.name.startswith("camrt/"))
    return Counter({name: added[name] for name in ("Where", "Cast") if added[name]})


def test_masks_are_products_where_nothing_can_be_infinite() -> None:
    convolution = step("Conv", WEIGHT)
    assert masks(RELU, convolution, RELU, step("Div", SIX), step("Softmax", axis=1)) == {"Cast": 2}
    assert masks(RELU, convolution, RELU, step("Pow", np.float64(3)), step("Tanh")) == {"Cast": 2}
    assert masks(RELU, convolution, RELU, SQRT) == {"Where": 1, "Cast": 1}
    assert masks(RELU, SQRT, convolution, RELU) == {"Where": 1, "Cast": 1}


@pytest.mark.parametrize("axis", [1, -3])
def test_a_quantisation_by_channel(axis: int) -> None:
    scale, zero = np.array([0.01, 0.02]), np.array([0, 5], np.int8)
    steps = [step(op, scale, zero, axis=axis) for op in ("QuantizeLinear", "DequantizeLinear")]
    _, model = chain(steps, (2, 2, 2))
    x = np.full((1, 2, 2, 2), 2.0, np.float32)
    x[:, :, 0] = 1.0
    dx = run(model, x=x, dy=np.ones_like(x))
    np.testing.assert_array_equal(dx[0], [[[1, 1], [0, 0]], [[1, 1], [1, 1]]])
