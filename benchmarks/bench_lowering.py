"""Forms of the operators that the backward part is made of, in ONNX Runtime: why the exporter writes what it writes.

    python -m benchmarks.bench_lowering

Each group computes one thing in several forms, on the same inputs, in turns, and checks that the results are equal.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from camrt.exporter import lowering
from camrt.exporter.lowering import WindowAxis, conv_input_gradient
from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.vjp.pool import max_pool
from camrt.types import AnyArray, FloatArray

node = helper.make_node
IN_A_ROW = 10


@dataclass(frozen=True)
class Form:
    """One way to compute ``out`` from the group's inputs."""

    label: str
    nodes: Sequence[onnx.NodeProto]
    constants: dict[str, AnyArray] = field(default_factory=dict)

    def model(self, inputs: dict[str, FloatArray]) -> onnx.ModelProto:
        graph = helper.make_graph(
            list(self.nodes),
            "form",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in inputs.items()],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def masks() -> tuple[str, dict[str, FloatArray], list[tuple[str, onnx.ModelProto]]]:
    inputs = arrays(y=(1, 64, 56, 56), dy=(1, 64, 56, 56))
    zero = {"zero": np.float32(0)}
    greater = node("Greater", ["y", "zero"], ["m"])
    forms = [
        Form(
            "Greater, Cast, Mul", [greater, node("Cast", ["m"], ["f"], to=1), node("Mul", ["dy", "f"], ["out"])], zero
        ),
        Form("Greater, Where", [greater, node("Where", ["m", "dy", "zero"], ["out"])], zero),
        Form(
            "Cast to bool and back, Mul (y >= 0)",
            [node("Cast", ["y"], ["m"], to=9), node("Cast", ["m"], ["f"], to=1), node("Mul", ["dy", "f"], ["out"])],
        ),
        Form("Sign, Mul (y >= 0)", [node("Sign", ["y"], ["f"]), node("Mul", ["dy", "f"], ["out"])]),
    ]
    inputs["y"] = np.maximum(inputs["y"], 0)
    return "ReLU, 64x56x56", inputs, [(form.label, form.model(inputs)) for form in forms]


def silu() -> tuple[str, dict[str, FloatArray], list[tuple[str, onnx.ModelProto]]]:
    """Between 1x1 convolutions, forward and back: which layout the arrays are in is part of the time."""
    inputs = arrays(x=(1, 40, 28, 28), dy=(1, 40, 28, 28))
    rng = np.random.default_rng(1)
    constants: dict[str, AnyArray] = {
        "wide": rng.standard_normal((240, 40, 1, 1)).astype(np.float32),
        "narrow": rng.standard_normal((40, 240, 1, 1)).astype(np.float32),
        "one": np.float32(1),
    }
    start = [
        node("Conv", ["x", "wide"], ["a"]),
        node("Sigmoid", ["a"], ["s"]),
        node("Mul", ["a", "s"], ["y"]),
        node("Conv", ["y", "narrow"], ["z"]),
        node("Conv", ["dy", "wide"], ["g"]),
    ]
    end = [node("Conv", ["da", "narrow"], ["dx"]), node("Add", ["dx", "z"], ["out"])]
    rest = {
        "HardSigmoid": node("HardSigmoid", ["s"], ["rest"], alpha=-1.0, beta=1.0),
        "Sub": node("Sub", ["one", "s"], ["rest"]),
    }
    whole = [
        node("Mul", ["y", "rest"], ["rise"]),
        node("Add", ["s", "rise"], ["slope"]),
        node("Mul", ["g", "slope"], ["da"]),
    ]
    by_node = [
        node("Mul", ["s", "rest"], ["ds"]),
        node("Mul", ["g", "a"], ["ga"]),
        node("Mul", ["ga", "ds"], ["right"]),
        node("Mul", ["g", "s"], ["left"]),
        node("Add", ["left", "right"], ["da"]),
    ]
    forms = [
        Form("s + y (1 - s)", [*start, rest["Sub"], *whole, *end], constants),
        Form("s + y (1 - s), 1 - s by HardSigmoid", [*start, rest["HardSigmoid"], *whole, *end], constants),
        Form("node by node", [*start, rest["Sub"], *by_node, *end], constants),
    ]
    return "SiLU between 1x1 Convs, 240x28x28", inputs, [(form.label, form.model(inputs)) for form in forms]


def interleaving() -> tuple[str, dict[str, FloatArray], list[tuple[str, onnx.ModelProto]]]:
    inputs = arrays(**dict.fromkeys("abcd", (1, 128, 28, 28)))
    concats = [
        *[node("Unsqueeze", [name, "last"], [f"{name}1"]) for name in "abcd"],
        node("Concat", ["a1", "b1"], ["ab"], axis=4),
        node("Concat", ["c1", "d1"], ["cd"], axis=4),
        node("Reshape", ["ab", "band"], ["ab2"]),
        node("Reshape", ["cd", "band"], ["cd2"]),
        node("Concat", ["ab2", "cd2"], ["rows"], axis=3),
        node("Reshape", ["rows", "whole"], ["out"]),
    ]
    shapes = {"last": np.array([4]), "band": np.array([-1, 128, 28, 1, 56]), "whole": np.array([-1, 128, 56, 56])}
    depth = [
        node("Concat", list("abcd"), ["stacked"], axis=1),
        node("DepthToSpace", ["stacked"], ["out"], blocksize=2, mode="DCR"),
    ]
    forms = [Form("two Concats", concats, shapes), Form("Concat, DepthToSpace", depth)]
    return "interleaving four phases, 128x28x28", inputs, [(form.label, form.model(inputs)) for form in forms]


def zero_interleaving() -> tuple[str, dict[str, FloatArray], list[tuple[str, onnx.ModelProto]]]:
    inputs = arrays(a=(1, 128, 28, 28))
    mask = np.zeros((1, 1, 56, 56), np.float32)
    mask[..., ::2, ::2] = 1
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    enlarge = [node("Resize", ["a", "", "scales"], ["r"], **nearest), node("Mul", ["r", "mask"], ["out"])]
    pad = [
        node("Reshape", ["a", "apart"], ["r"]),
        node("Pad", ["r", "pads"], ["p"]),
        node("Reshape", ["p", "whole"], ["out"]),
    ]
    forms = [
        Form("Resize, Mul", enlarge, {"scales": np.array([1, 1, 2, 2], np.float32), "mask": mask}),
        Form(
            "Reshape, Pad, Reshape",
            pad,
            {
                "apart": np.array([-1, 128, 28, 1, 28, 1]),
                "pads": np.array([0] * 9 + [1, 0, 1]),
                "whole": np.array([-1, 128, 56, 56]),
            },
        ),
    ]
    return "zeros between, 128x28x28", inputs, [(form.label, form.model(inputs)) for form in forms]


def convolution(
    c_out: int, c_in: int, kernel: int, stride: int, size: int, group: int = 1
) -> tuple[str, dict[str, FloatArray], list[tuple[str, onnx.ModelProto]]]:
    """Both forms that the exporter knows, the one that it takes first."""
    pad, output = kernel // 2, (size + 2 * (kernel // 2) - kernel) // stride + 1
    inputs = arrays(dy=(1, c_out, output, output))
    weight = np.random.default_rng(1).standard_normal((c_out, c_in // group, kernel, kernel)).astype(np.float32)
    axis = WindowAxis(size, output, kernel, stride, 1, pad)

    def write(op: OpBuilder, cotangent: ir.Value) -> ir.Value:
        return conv_input_gradient(op, cotangent, op.constant(weight), weight.shape, (axis, axis), group)

    with patch.multiple(lowering, _FEW_GROUPED=0, _FEW_POINTWISE=0):
        convolved = "Conv", built(inputs, write)
    transposed = "ConvTranspose", built(inputs, write, lowered=False)
    takes_conv = all(item.op_type != "ConvTranspose" for item in built(inputs, write).graph.node)
    what = f"{kernel}x{kernel} Conv, stride {stride}, {c_in}-{c_out}, {size}x{size}" + (
        f" / {group}" if group > 1 else ""
    )
    return what, inputs, [convolved, transposed] if takes_conv else [transposed, convolved]


def max_pooling(channels: int, size: int) -> tuple[str, dict[str, FloatArray], list[tuple[str, onnx.ModelProto]]]:
    inputs = arrays(x=(1, channels, size, size), dy=(1, channels, size // 2, size // 2))
    inputs["x"] = np.maximum(inputs["x"], 0)
    inputs["y"] = inputs["x"].reshape(1, channels, size // 2, 2, size // 2, 2).max((3, 5))
    window = {"kernel_shape": [2, 2], "strides": [2, 2]}

    def write(op: OpBuilder, x: ir.Value, dy: ir.Value, y: ir.Value) -> ir.Value:
        (gradient,) = max_pool(op, ir.node("MaxPool", [x], window, outputs=[y]), dy)
        assert gradient is not None
        return gradient

    forms = [("ranks", built(inputs, write)), ("a Slice an offset", built(inputs, write, lowered=False))]
    return f"2x2 MaxPool, {channels}x{size}x{size}", inputs, forms


def last_layer() -> tuple[str, dict[str, FloatArray], list[tuple[str, onnx.ModelProto]]]:
    weight = np.random.default_rng(1).standard_normal((1000, 1024)).astype(np.float32)
    inputs = arrays(dy=(1, 1000))
    inputs["dy"] = np.eye(1000, dtype=np.float32)[[7]]
    one = {"w": weight, "index": np.array([7])}
    forms = [
        Form("Gather", [node("Gather", ["w", "index"], ["row"]), node("Identity", ["row"], ["out"])], one),
        Form("Gemm", [node("Gemm", ["dy", "w"], ["out"])], {"w": weight}),
    ]
    return "layer from 1024 to 1000 logits", inputs, [(f.label, f.model(inputs)) for f in forms]


def built(inputs: dict[str, FloatArray], write: Callable[..., ir.Value], lowered: bool = True) -> onnx.ModelProto:
    """A graph that is nothing but what ``write`` appends for its inputs."""
    values = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(array.shape))
        for name, array in inputs.items()
    ]
    graph = ir.Graph(values, [], nodes=[], opset_imports={"": 18}, name="built")
    op = OpBuilder(graph, ir.DataType.FLOAT, lowering=lowered)
    out = write(op, *values)
    out.name, out.type = "out", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(out)
    return ir.to_proto(ir.Model(graph, ir_version=9))


def arrays(**shapes: tuple[int, ...]) -> dict[str, FloatArray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def measure(
    inputs: dict[str, FloatArray], forms: Sequence[tuple[str, onnx.ModelProto]], threads: int, rounds: int
) -> list[float]:
    """Median seconds of each form: turns of some runs in a row, as other forms' arrays drive it out of the caches."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    sessions = [ort.InferenceSession(model.SerializeToString(), options) for _, model in forms]
    first, *others = (session.run(None, inputs)[0] for session in sessions)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=0, atol=1e-4 * np.abs(first).max())
    seconds = np.empty((len(sessions), -(-rounds // IN_A_ROW), IN_A_ROW))
    for turn in range(seconds.shape[1]):
        for index, session in enumerate(sessions):
            session.run(None, inputs)
            for again in range(IN_A_ROW):
                started = time.perf_counter()
                session.run(None, inputs)
                seconds[index, turn, again] = time.perf_counter() - started
    return [float(median) for median in np.median(seconds, axis=(1, 2))]


def groups() -> Iterator[tuple[str, dict[str, FloatArray], list[tuple[str, onnx.ModelProto]]]]:
    """Every comparison; the form in use comes first."""
    yield from (masks(), silu(), interleaving(), zero_interleaving())
    for shape in ((64, 64, 3, 1, 56), (128, 64, 3, 2, 56), (512, 256, 3, 2, 14)):
        yield convolution(*shape)
    for shape in ((128, 64, 1, 2, 56), (512, 256, 1, 2, 56), (1024, 512, 1, 2, 28), (2048, 1024, 1, 2, 14)):
        yield convolution(*shape)
    for channels, kernel, stride, size in ((72, 3, 2, 56), (96, 5, 2, 28), (240, 5, 1, 14)):
        yield convolution(channels, channels, kernel, stride, size, channels)
    for channels, stride, size in ((128, 1, 28), (256, 2, 28), (512, 1, 14), (1024, 1, 7)):
        yield convolution(channels, channels, 3, stride, size, 32)
    yield from (max_pooling(128, 112), max_pooling(256, 56), max_pooling(512, 14), last_layer())


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    table = Table("what", "form", "median us", "x the first")
    for what, inputs, forms in groups():
        medians = measure(inputs, forms, arguments.threads, arguments.rounds)
        for (label, _), median in zip(forms, medians, strict=True):
            table.add_row(what, label, f"{median * 1e6:.0f}", f"{median / medians[0]:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
