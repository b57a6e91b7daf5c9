"""Every vjp rule against central differences in float64, and the same graph in float32 on ONNX Runtime."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference.op_run import OpRun

from camrt.errors import UnsupportedOpError
from camrt.exporter.backward import append_backward
from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.vjp import MULTI_OUTPUT_RULES, VJP_RULES
from tests.exporter.graphs import model_proto
from tests.exporter.reference_ops import LRN, ConvTranspose
from tests.exporter.vjp_cases_architectures import ROWS as ARCHITECTURE_ROWS
from tests.exporter.vjp_cases_formats import REFUSED, ROWS

BATCH = 2


class Erf(OpRun):
    """The reference evaluator's own Erf rounds to float32."""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


class Gelu(OpRun):
    """The reference evaluator expands Gelu with its own Erf."""

    def _run(self, x: np.ndarray, approximate: str = "none") -> tuple[np.ndarray]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x * math.sqrt(0.5))),)


class GroupNormalization(OpRun):
    """The reference evaluator's own computes in float32 (stash_type)."""

    def _run(self, x: np.ndarray, scale: np.ndarray, bias: np.ndarray, **attributes: Any) -> tuple[np.ndarray]:
        groups = x.reshape(len(x), attributes["num_groups"], -1)
        centred = groups - groups.mean(-1, keepdims=True)
        deviation = np.sqrt(groups.var(-1, keepdims=True) + (attributes.get("epsilon") or 1e-5))
        per_channel = [np.repeat(v, x.shape[1] // len(v))[:, None, None] for v in (scale, bias)]
        return ((centred / deviation).reshape(x.shape) * per_channel[0] + per_channel[1],)


def evaluator(model: onnx.ModelProto) -> onnx.reference.ReferenceEvaluator:
    return onnx.reference.ReferenceEvaluator(model, new_ops=[Erf, Gelu, GroupNormalization, LRN, ConvTranspose])


@dataclass(frozen=True)
class Case:
    """y = op(x, constants); x is (N, *shape)."""

    op: str
    shape: tuple[int, ...] = (3, 5, 4)
    constants: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("x",)
    outputs: tuple[str, ...] = ("y",)
    low: float = -2.0
    high: float = 2.0
    opset: int = 18
    name: str = ""

    def id(self) -> str:
        return f"{self.op}-{self.name}" if self.name else self.op


def conv(name: str, shape: tuple[int, ...], weight: tuple[int, ...], **attributes: Any) -> Case:
    return Case(
        "Conv", shape, {"w": np.random.default_rng(1).standard_normal(weight)}, attributes, ("x", "w"), name=name
    )


def pool(op: str, name: str, shape: tuple[int, ...], **attributes: Any) -> Case:
    return Case(op, shape, attributes=attributes, name=name)


RNG = np.random.default_rng(7)
CASES = [
    *[Case(op) for op in ("Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Softplus", "Elu", "Exp", "Neg")],
    Case("HardSwish", low=-5, high=5),
    Case("LeakyRelu", attributes={"alpha": 0.3}, name="alpha"),
    Case("HardSigmoid", attributes={"alpha": 1 / 6, "beta": 0.5}, low=-5, high=5, name="mobilenet"),
    Case("Abs"),
    Case("Log", low=0.5),
    Case("Sqrt", low=0.5),
    Case("Reciprocal", low=0.5),
    Case("Identity"),
    Case("Dropout"),
    Case("Gelu", opset=20),
    Case("Gelu", attributes={"approximate": "tanh"}, opset=20, name="tanh"),
    Case("Clip", constants={"lo": np.float64(-1), "hi": np.float64(1)}, inputs=("x", "lo", "hi")),
    Case("Clip", constants={"lo": np.float64(0)}, inputs=("x", "lo"), name="low-only"),
    Case("Clip", constants={"hi": np.float64(0.5)}, inputs=("x", "", "hi"), name="high-only"),
    Case("Clip", name="open"),
    Case("Softmax", shape=(7,), attributes={"axis": 1}),
    Case("Softmax", attributes={"axis": -1}, name="last"),
    Case("LogSoftmax", shape=(7,), attributes={"axis": 1}),
    Case("Cast", attributes={"to": TensorProto.DOUBLE}),
    Case("Add", constants={"c": RNG.standard_normal((3, 1, 1))}, inputs=("x", "c"), name="bias"),
    Case("Add", inputs=("x", "x"), name="twice"),
    Case("Add", shape=(3, 1, 4), constants={"c": RNG.standard_normal((3, 5, 4))}, inputs=("x", "c"), name="broadcast"),
    Case("Sum", inputs=("x", "x", "x")),
    Case("Sub", constants={"c": RNG.standard_normal((3, 5, 4))}, inputs=("c", "x"), name="right"),
    Case("Sub", shape=(3, 1, 1), constants={"c": RNG.standard_normal((1, 3, 5, 4))}, inputs=("x", "c"), name="left"),
    Case("Mul", constants={"c": RNG.standard_normal((3, 1, 1))}, inputs=("x", "c"), name="scale"),
    Case("Mul", shape=(3, 1, 1), constants={"c": RNG.standard_normal((1, 3, 5, 4))}, inputs=("x", "c"), name="gate"),
    Case("Mul", inputs=("x", "x"), name="square"),
    Case("Div", constants={"c": RNG.uniform(1, 2, (3, 1, 1))}, inputs=("x", "c"), name="by-constant"),
    Case("Div", constants={"c": RNG.uniform(1, 2, (3, 5, 4))}, inputs=("c", "x"), low=1.0, name="of-constant"),
    Case("Pow", constants={"n": np.float64(2)}, inputs=("x", "n"), name="square"),
    Case("Pow", constants={"n": np.float64(2.5)}, inputs=("x", "n"), low=0.5, name="fraction"),
    Case("Max", constants={"c": RNG.standard_normal((3, 5, 4))}, inputs=("x", "c")),
    Case("Min", constants={"c": RNG.standard_normal((3, 5, 4))}, inputs=("c", "x")),
    Case("Where", constants={"m": RNG.random((3, 5, 4)) > 0.5, "c": np.float64(3)}, inputs=("m", "x", "c")),
    Case("Where", constants={"m": RNG.random((3, 5, 4)) > 0.5, "c": np.float64(3)}, inputs=("m", "c", "x"), name="else"),
    Case("Gemm", (6,), {"w": RNG.standard_normal((4, 6)), "b": RNG.standard_normal(4)}, {"transB": 1}, ("x", "w", "b")),
    Case("Gemm", (6,), {"w": RNG.standard_normal((6, 4))}, {"alpha": 0.5}, ("x", "w"), name="alpha"),
    Case("Gemm", (4,), {"a": RNG.standard_normal((BATCH, 6)), "w": RNG.standard_normal((6, 4))}, {"beta": 2.0},
         ("a", "w", "x"), name="added"),
    Case("MatMul", (6,), {"w": RNG.standard_normal((6, 4))}, inputs=("x", "w")),
    Case("MatMul", (5, 6), {"w": RNG.standard_normal((6, 4))}, inputs=("x", "w"), name="tokens"),
    Case("MatMul", (3, 5, 6), {"w": RNG.standard_normal((3, 6, 4))}, inputs=("x", "w"), name="heads"),
    Case("BatchNormalization", constants={
        "s": RNG.uniform(0.5, 2, 3), "b": RNG.standard_normal(3), "m": RNG.standard_normal(3), "v": RNG.uniform(0.5, 2, 3),
    }, inputs=("x", "s", "b", "m", "v")),
    Case("LayerNormalization", (5, 6), {"s": RNG.uniform(0.5, 2, 6), "b": RNG.standard_normal(6)}, {"axis": -1},
         ("x", "s", "b")),
    Case("LayerNormalization", (5, 6), {"s": RNG.uniform(0.5, 2, (5, 6))}, {"axis": 1}, ("x", "s"), name="two-axes"),
    Case("LayerNormalization", (5, 6), {"s": RNG.uniform(0.5, 2, 6)}, {"axis": -1}, ("x", "s"), opset=17, name="opset17"),
    Case("Reshape", constants={"to": np.array([-1, 60])}, inputs=("x", "to")),
    Case("Reshape", constants={"to": np.array([0, 5, 3, -1])}, inputs=("x", "to"), name="split"),
    Case("Flatten"),
    Case("Squeeze", (3, 1, 1), {"axes": np.array([2, 3])}, inputs=("x", "axes")),
    Case("Unsqueeze", (3,), {"axes": np.array([2, 3])}, inputs=("x", "axes")),
    Case("Transpose", attributes={"perm": [0, 2, 3, 1]}),
    Case("Transpose", attributes={"perm": [0, 3, 1, 2]}, name="back"),
    Case("Expand", (3, 1, 1), {"to": np.array([1, 3, 5, 4])}, inputs=("x", "to")),
    Case("Concat", constants={"c": RNG.standard_normal((BATCH, 2, 5, 4))}, attributes={"axis": 1}, inputs=("c", "x")),
    Case("Concat", attributes={"axis": -1}, inputs=("x", "x"), name="twice"),
    Case("Split", (6, 5, 4), {"n": np.array([1, 2, 3])}, {"axis": 1}, ("x", "n"), ("y0", "y", "y2")),
    Case("Slice", constants={"s": np.array([1, -3]), "e": np.array([3, 4]), "a": np.array([2, 3])}, inputs=("x", "s", "e", "a")),
    Case("Slice", constants={"s": np.array([0]), "e": np.array([2]), "a": np.array([1]), "t": np.array([1])},
         inputs=("x", "s", "e", "a", "t"), name="channels"),
    Case("Pad", constants={"p": np.array([0, 1, 2, 0, 0, 0, 1, 3])}, inputs=("x", "p")),
    Case("GlobalAveragePool"),
    Case("GlobalMaxPool"),
    Case("ReduceMean", constants={"a": np.array([2, 3])}, inputs=("x", "a")),
    Case("ReduceMean", constants={"a": np.array([-1, -2])}, attributes={"keepdims": 0}, inputs=("x", "a"), name="flat"),
    Case("ReduceMean", attributes={"axes": [2, 3]}, opset=17, name="opset17"),
    Case("ReduceSum", constants={"a": np.array([2])}, inputs=("x", "a")),
    Case("ReduceMax", constants={"a": np.array([2, 3])}, inputs=("x", "a")),
    conv("1x1", (3, 5, 4), (6, 3, 1, 1)),
    conv("3x3", (3, 6, 7), (4, 3, 3, 3), pads=[1, 1, 1, 1]),
    conv("3x3-bare", (3, 6, 7), (4, 3, 3, 3)),
    conv("asymmetric-pads", (3, 6, 7), (4, 3, 3, 2), pads=[0, 1, 2, 0]),
    conv("wide-pads", (2, 4, 5), (3, 2, 2, 2), pads=[2, 3, 2, 3]),
    conv("5x1", (3, 6, 7), (4, 3, 5, 1), pads=[2, 0, 2, 0]),
    conv("groups", (6, 5, 4), (4, 3, 3, 3), pads=[1, 1, 1, 1], group=2),
    conv("depthwise", (4, 5, 6), (4, 1, 3, 3), pads=[1, 1, 1, 1], group=4),
    conv("depthwise-multiplier", (4, 5, 6), (8, 1, 3, 3), pads=[1, 1, 1, 1], group=4),
    conv("dilated", (3, 9, 8), (4, 3, 3, 3), pads=[2, 2, 2, 2], dilations=[2, 2]),
    conv("dilated-strided", (3, 9, 8), (4, 3, 3, 3), pads=[2, 2, 2, 2], dilations=[2, 2], strides=[2, 2]),
    conv("stride2-even", (3, 8, 6), (4, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]),
    conv("stride2-odd", (3, 7, 9), (4, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]),
    conv("stride2-bare", (3, 8, 7), (4, 3, 3, 3), strides=[2, 2]),
    conv("stride2-1x1", (3, 8, 7), (4, 3, 1, 1), strides=[2, 2]),
    conv("stride2-2x2", (3, 8, 6), (4, 3, 2, 2), strides=[2, 2]),
    conv("stride2-2x2-odd", (3, 7, 9), (4, 3, 2, 2), strides=[2, 2]),
    conv("stride4-4x4", (3, 8, 12), (4, 3, 4, 4), strides=[4, 4]),
    conv("stride2-5x5-depthwise", (4, 9, 10), (4, 1, 5, 5), pads=[2, 2, 2, 2], strides=[2, 2], group=4),
    conv("stride2-groups", (6, 8, 7), (4, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2], group=2),
    conv("stride2-7x7", (3, 13, 12), (4, 3, 7, 7), pads=[3, 3, 3, 3], strides=[2, 2]),
    conv("stride3-2x2", (3, 10, 11), (4, 3, 2, 2), strides=[3, 3]),
    conv("stride-2-by-1", (3, 8, 7), (4, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 1]),
    conv("stride-1-by-3", (3, 8, 9), (4, 3, 3, 3), pads=[1, 1, 1, 1], strides=[1, 3]),
    conv("same-upper", (3, 8, 7), (4, 3, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    conv("same-lower", (3, 8, 7), (4, 3, 4, 4), auto_pad="SAME_LOWER", strides=[2, 2]),
    conv("valid", (3, 8, 7), (4, 3, 3, 3), auto_pad="VALID"),
    pool("MaxPool", "2x2", (3, 6, 8), kernel_shape=[2, 2], strides=[2, 2]),
    pool("MaxPool", "2x2-odd", (3, 7, 9), kernel_shape=[2, 2], strides=[2, 2]),
    pool("MaxPool", "3x3-stride2", (3, 8, 7), kernel_shape=[3, 3], strides=[2, 2]),
    pool("MaxPool", "3x3-pads", (3, 8, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    pool("MaxPool", "ceil", (3, 8, 7), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    pool("MaxPool", "3x3-stride1", (3, 6, 5), kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]),
    pool("MaxPool", "2x3", (3, 6, 9), kernel_shape=[2, 3], strides=[2, 3]),
    pool("MaxPool", "1x1-stride2", (3, 6, 7), kernel_shape=[1, 1], strides=[2, 2]),
    pool("AveragePool", "2x2", (3, 6, 8), kernel_shape=[2, 2], strides=[2, 2]),
    pool("AveragePool", "2x2-odd", (3, 7, 9), kernel_shape=[2, 2], strides=[2, 2]),
    pool("AveragePool", "1x1", (3, 7, 9), kernel_shape=[1, 1], strides=[1, 1]),
    pool("AveragePool", "3x3-pads", (3, 8, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    pool("AveragePool", "3x3-include", (3, 8, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1],
         count_include_pad=1),
    pool("AveragePool", "ceil", (3, 7, 8), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
]  # fmt: skip
CASES += [Case(**fields) for fields in (*ROWS, *ARCHITECTURE_ROWS)]


def gradient_model(case: Case, dtype: int, lowering: bool = True) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The forward model, and one that returns the gradient of x for a cotangent dy."""
    real = helper.tensor_dtype_to_np_dtype(dtype)
    constants = {
        name: np.asarray(value).astype(real) if np.asarray(value).dtype == np.float64 else np.asarray(value)
        for name, value in case.constants.items()
    }
    attributes = dict(case.attributes)
    if case.op == "Cast":
        attributes["to"] = dtype
    node = helper.make_node(case.op, list(case.inputs), list(case.outputs), "node", **attributes)
    outputs = dict.fromkeys(case.outputs, ())
    plain = model_proto([node], {"x": ["N", *case.shape]}, {}, constants, case.opset, dtype)
    plain.graph.output.extend(helper.make_tensor_value_info(name, dtype, None) for name in outputs)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(plain, data_prop=True))
    graph = model.graph
    produced = {value.name: value for item in graph for value in item.outputs}
    if case.op == "GroupNormalization":  # ONNX does not infer its shape; FoldShapesPass does
        produced["y"].shape, produced["y"].type = graph.inputs[0].shape, graph.inputs[0].type
    dy = ir.Value(
        name="dy", type=ir.TensorType(ir.DataType(dtype)), shape=ir.Shape(["M", *list(produced["y"].shape)[1:]])
    )
    graph.inputs.append(dy)
    op = OpBuilder(graph, ir.DataType(dtype), lowering=lowering)
    gradient = append_backward(op, produced["y"], dy, {"x": graph.inputs[0]})["x"]
    gradient.type, gradient.shape = ir.TensorType(ir.DataType(dtype)), ir.Shape(["M", *case.shape])
    graph.outputs.clear()
    graph.outputs.append(op.identity(gradient))
    graph.outputs[0].name, graph.outputs[0].type = "dx", ir.TensorType(ir.DataType(dtype))
    return plain, ir.to_proto(model)


def sample(case: Case, batch: int) -> np.ndarray:
    """x away from kinks: all values differ by 0.01 and none is within 0.004 of an integer or a half."""
    rng = np.random.default_rng(3)
    count = batch * int(np.prod(case.shape))
    grid = np.linspace(case.low, case.high, count) if count > 1 else np.array([case.low])
    return rng.permutation(grid + 1e-3 * np.sqrt(2)).reshape(batch, *case.shape)


@pytest.mark.parametrize("case", CASES, ids=Case.id)
def test_gradient_equals_central_differences(case: Case) -> None:
    plain, backward = gradient_model(case, TensorProto.DOUBLE)
    forward = evaluator(plain)
    index = list(case.outputs).index("y")
    x = sample(case, BATCH)
    y = forward.run(None, {"x": x})[index]
    rng = np.random.default_rng(4)
    dy = rng.standard_normal(y.shape)
    (dx,) = evaluator(backward).run(None, {"x": x, "dy": dy})
    assert dx.shape == x.shape
    for _ in range(3):
        direction = rng.standard_normal(x.shape)
        eps = 1e-6
        high = forward.run(None, {"x": x + eps * direction})[index]
        low = forward.run(None, {"x": x - eps * direction})[index]
        numeric = float((dy * (high - low)).sum() / (2 * eps))
        scale = float((np.abs(dx) * np.abs(direction)).sum()) + 1e-12
        assert abs(float((dx * direction).sum()) - numeric) <= 1e-6 * scale


@pytest.mark.parametrize("case", [case for case in CASES if BATCH not in [
    np.asarray(value).shape[0] for value in case.constants.values() if np.asarray(value).ndim > 1 and case.op in ("Concat", "Gemm")
]], ids=Case.id)  # fmt: skip
def test_several_cotangents_of_one_image_on_onnx_runtime(case: Case) -> None:
    """N = 1, M = 3 in float32 on ONNX Runtime equals three float64 runs of M = 1."""
    _, exact = gradient_model(case, TensorProto.DOUBLE)
    plain, single = gradient_model(case, TensorProto.FLOAT)
    x = sample(case, 1)
    y = evaluator(plain).run(None, {"x": x.astype(np.float32)})[list(case.outputs).index("y")]
    dy = np.random.default_rng(5).standard_normal((3, *y.shape[1:]))
    oracle = evaluator(exact)
    expected = np.concatenate([oracle.run(None, {"x": x, "dy": dy[m : m + 1]})[0] for m in range(3)])
    session = onnxruntime.InferenceSession(single.SerializeToString(), providers=["CPUExecutionProvider"])
    (dx,) = session.run(None, {"x": x.astype(np.float32), "dy": dy.astype(np.float32)})
    assert np.broadcast_shapes(dx.shape, expected.shape) == expected.shape
    np.testing.assert_allclose(dx, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1e-30))


def test_every_rule_has_a_row() -> None:
    staircases = {"QuantizeLinear", "DequantizeLinear"}  # see tests/formats/test_quantized.py
    assert {case.op for case in CASES} | staircases == VJP_RULES.keys() | MULTI_OUTPUT_RULES.keys()


def test_max_pool_gives_ties_to_the_first_maximum() -> None:
    case = pool("MaxPool", "ties", (1, 4, 4), kernel_shape=[2, 2], strides=[2, 2])
    _, backward = gradient_model(case, TensorProto.DOUBLE)
    (dx,) = evaluator(backward).run(None, {"x": np.zeros((1, 1, 4, 4)), "dy": np.arange(1.0, 5.0).reshape(1, 1, 2, 2)})
    assert dx[0, 0].tolist() == [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]]


def test_relu_has_no_gradient_at_zero() -> None:
    _, backward = gradient_model(Case("Relu", (3,)), TensorProto.DOUBLE)
    (dx,) = evaluator(backward).run(None, {"x": np.array([[-1.0, 0.0, 1.0]]), "dy": np.ones((1, 3))})
    assert dx.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (pool("MaxPool", "dilated", (3, 8, 7), kernel_shape=[2, 2], dilations=[2, 2]), "dilated"),
        (Case("Gemm", (6,), {"w": np.ones((2, 4))}, {"transA": 1}, ("x", "w")), "transA"),
        (Case("Pad", constants={"p": np.array([1, 0, 1, 1, 0, 0, 1, 1])}, inputs=("x", "p")), "batch"),
        (Case("Slice", constants={"s": np.array([0]), "e": np.array([1]), "a": np.array([0])},
              inputs=("x", "s", "e", "a")), "batch"),
        (Case("Gather", constants={"i": np.array(0)}, attributes={"axis": 0}, inputs=("x", "i")), "batch"),
        (Case("Tile", constants={"r": np.array([2, 1, 1, 1])}, inputs=("x", "r")), "batch"),
        (Case("Reshape", (3, 4), {"to": np.array([3, -1])}, inputs=("x", "to")), "batch"),
        (Case("Einsum", (3, 3), attributes={"equation": "nii->ni"}), "equation"),
        (Case("Pow", constants={"n": np.array([1.0, 2.0, 3.0, 4.0])}, inputs=("x", "n")), "numbers"),
        (Case("Concat", attributes={"axis": 0}, inputs=("x", "x")), "batch"),
        *[(Case(**fields), reason) for fields, reason in REFUSED],
        (Case("ReduceSum", constants={"a": np.array([0])}, attributes={"keepdims": 1}, inputs=("x", "a")), "batch"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.id(),
)  # fmt: skip
def test_uncovered_forms_are_refused_with_the_reason(case: Case, reason: str) -> None:
    with pytest.raises(UnsupportedOpError, match=reason) as caught:
        gradient_model(case, TensorProto.DOUBLE)
    assert caught.value.op_type == case.op
    assert caught.value.node_name == "node"


def test_max_shares_ties() -> None:
    case = Case("Max", (3,), {"c": np.array([[0.0, 1.0, 2.0]])}, inputs=("x", "c"))
    _, backward = gradient_model(case, TensorProto.DOUBLE)
    (dx,) = evaluator(backward).run(None, {"x": np.array([[1.0, 1.0, 1.0]]), "dy": np.ones((1, 3))})
    assert dx.tolist() == [[1, 0.5, 0]]
    _, backward = gradient_model(Case("Max", (3,), inputs=("x", "x")), TensorProto.DOUBLE)
    (dx,) = evaluator(backward).run(None, {"x": np.array([[1.0, 2.0, 3.0]]), "dy": np.ones((1, 3))})
    assert dx.tolist() == [[1, 1, 1]]


def test_layer_normalization_of_half_squares_in_single() -> None:
    rng = np.random.default_rng(0)
    case = Case("LayerNormalization", (64,), {"s": np.ones(64)}, {"axis": -1}, ("x", "s"), name="half")
    x, dy = 1000 * rng.standard_normal((3, 64)), rng.standard_normal((3, 64))
    (exact,) = evaluator(gradient_model(case, TensorProto.DOUBLE)[1]).run(None, {"x": x, "dy": dy})
    half = {"x": x.astype(np.float16), "dy": dy.astype(np.float16)}
    with np.errstate(over="ignore"):  # the reference's forward LayerNormalization squares in half
        (found,) = evaluator(gradient_model(case, TensorProto.FLOAT16)[1]).run(None, half)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, exact, rtol=0, atol=5e-3 * np.abs(exact).max())
