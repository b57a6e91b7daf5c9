"""Random small networks against central differences, and random damage to files: never anything but a typed error."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

import camrt
from camrt.errors import CamrtError
from camrt.runtime import open_session
from tests.exporter.graphs import GraphWriter
from tests.exporter.tensorrt_operators import forbidden_operators
from tests.formats.checks import check_gradients, check_outputs

QUICK, LONG = 25, 400
_SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": [Phase.explicit, Phase.generate],  # shrinking a network takes minutes; the note shows it whole
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


@dataclass
class Growing:
    """A network while it is drawn: the last value and its shape (C, h, w)."""

    writer: GraphWriter
    value: str
    shape: tuple[int, int, int]
    earlier: list[tuple[str, tuple[int, int, int]]] = field(default_factory=list)
    count: int = 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind.lower()}{self.count}"

    def put(self, op: str, *inputs: str, shape: tuple[int, int, int] | None = None, **attributes: Any) -> None:
        self.earlier.append((self.value, self.shape))
        self.value = self.writer.add(op, self.name(op), *(inputs or (self.value,)), **attributes)
        self.shape = shape or self.shape

    def constant(self, array: np.ndarray) -> str:
        return self.writer.constant(self.name("constant"), array)


# Smooth or kinked elsewhere than at zero, where ReLUs in front would put many values
ELEMENTWISE = (
    "Tanh",
    "Sigmoid",
    "Softplus",
    "Elu",
    "LeakyRelu",
    "Selu",
    "Softsign",
    "Erf",
    "Mish",
    "Celu",
    "HardSwish",
)


def elementwise(draw: st.DrawFn, net: Growing) -> None:
    net.put(draw(st.sampled_from(ELEMENTWISE)))


def convolution(draw: st.DrawFn, net: Growing) -> None:
    c, h, w = net.shape
    group = draw(st.sampled_from([g for g in (1, 2, c) if c % g == 0]))
    out = group * draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, min(3, h))), draw(st.integers(1, min(3, w)))]
    strides = [draw(st.integers(1, 2)), draw(st.integers(1, 2))]
    pads = [draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1))] * 2
    size = [(side + 2 * pad - k) // s + 1 for side, pad, k, s in zip((h, w), pads, kernel, strides, strict=False)]
    weight = net.writer.weight(net.name("weight"), out, c // group, *kernel)
    net.put("Conv", net.value, weight, shape=(out, size[0], size[1]), kernel_shape=kernel, strides=strides, pads=pads,
            group=group)  # fmt: skip


def pooling(draw: st.DrawFn, net: Growing) -> None:
    c, h, w = net.shape
    op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    kernel = [draw(st.integers(1, min(3, h))), draw(st.integers(1, min(3, w)))]
    strides = [draw(st.integers(1, 2)), draw(st.integers(1, 2))]
    size = [(side - k) // s + 1 for side, k, s in zip((h, w), kernel, strides, strict=True)]
    net.put(op, shape=(c, size[0], size[1]), kernel_shape=kernel, strides=strides)


def resize(draw: st.DrawFn, net: Growing) -> None:
    c, h, w = net.shape
    if h * w > 100:
        return
    factors = (draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 3])))
    scales = net.constant(np.array([1, 1, *factors], np.float32))
    mode = draw(st.sampled_from(["nearest", "linear"]))
    coordinates = draw(st.sampled_from(["half_pixel", "asymmetric", "align_corners"]))
    net.put("Resize", net.value, "", scales, shape=(c, h * factors[0], w * factors[1]), mode=mode,
            coordinate_transformation_mode="asymmetric" if mode == "nearest" else coordinates)  # fmt: skip


def join(draw: st.DrawFn, net: Growing) -> None:
    partners = [value for value, shape in net.earlier if shape == net.shape and value != "image"]
    if not partners:
        return elementwise(draw, net)
    other = draw(st.sampled_from(partners))
    op = draw(st.sampled_from(["Add", "Sub", "Mul", "Concat", "Mean", "Max"]))
    if op != "Concat":
        return net.put(op, net.value, other)
    c, h, w = net.shape
    return net.put(op, net.value, other, shape=(2 * c, h, w), axis=1) if c <= 8 else net.put("Add", net.value, other)


def gate(draw: st.DrawFn, net: Growing) -> None:
    """Squeeze and excitation."""
    value, c = net.value, net.shape[0]
    pooled = net.writer.add(draw(st.sampled_from(["GlobalAveragePool", "GlobalMaxPool"])), net.name("squeeze"), value)
    weight = net.writer.weight(net.name("weight"), c, c, 1, 1)
    inner = net.writer.add("Conv", net.name("excite"), pooled, weight, kernel_shape=[1, 1])
    net.put("Mul", value, net.writer.add("Sigmoid", net.name("gate"), inner))


def normalise(draw: st.DrawFn, net: Growing) -> None:
    c = net.shape[0]
    if draw(st.booleans()):
        return net.put("LRN", size=draw(st.sampled_from([1, 3, 5])), alpha=0.3)
    rng = net.writer.rng
    rows = (rng.uniform(0.5, 1.5, c), rng.standard_normal(c), rng.standard_normal(c), rng.uniform(0.5, 1.5, c))
    return net.put("BatchNormalization", net.value, *(net.constant(row.astype(np.float32)) for row in rows))


def rearrange(draw: st.DrawFn, net: Growing) -> None:
    c, h, w = net.shape
    kind = draw(st.sampled_from(["slice", "pad", "transpose", "shuffle"]))
    if kind == "slice" and c > 1:
        start = draw(st.integers(0, c - 2))
        net.put("Slice", net.value, net.constant(np.array([start])), net.constant(np.array([c])),
                net.constant(np.array([1])), shape=(c - start, h, w))  # fmt: skip
    elif kind == "pad":
        net.put("Pad", net.value, net.constant(np.array([0, 0, 1, 0, 0, 0, 0, 2])), shape=(c, h + 1, w + 2))
    elif kind == "transpose":
        net.put("Transpose", shape=(c, w, h), perm=[0, 1, 3, 2])
    elif c % 2 == 0:
        five = net.constant(np.array([-1, 2, c // 2, h, w]))
        groups = net.writer.add("Reshape", net.name("groups"), net.value, five)
        turned = net.writer.add("Transpose", net.name("turned"), groups, perm=[0, 2, 1, 3, 4])
        net.put("Reshape", turned, net.constant(np.array([-1, c, h, w])))


STEPS = [elementwise, convolution, convolution, pooling, resize, join, gate, normalise, rearrange]


@st.composite
def networks(draw: st.DrawFn, longest: int = 8) -> tuple[GraphWriter, str]:
    """A network, and the value that differences start from."""
    w = GraphWriter(seed=draw(st.integers(0, 2**16)))
    net = Growing(w, "image", (3, 9, 8))
    net.put("Conv", "image", w.weight("first_weight", 4, 3, 3, 3), shape=(4, 9, 8), kernel_shape=[3, 3], pads=[1] * 4)
    layer = net.value
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=longest)):
        step(draw, net)
    w.classify(net.value, net.shape[0])
    return w, layer


def check_network(network: tuple[GraphWriter, str]) -> None:
    writer, layer = network
    note("\n".join(f"{n.output[0]} = {n.op_type}({', '.join(n.input)})" for n in writer.nodes))
    with tempfile.TemporaryDirectory() as folder:
        source = writer.save(Path(folder) / "source.onnx", ("N", 3, 9, 8))
        bundle = camrt.export(source, Path(folder) / "bundle.onnx", [layer])
        assert forbidden_operators(bundle.path) == []
        check_outputs(source, bundle)
        outputs = open_session(bundle.path, threads=1).run(
            np.random.default_rng(0).standard_normal((1, 3, 9, 8)).astype(np.float32), np.array([0]), [layer]
        )
        if np.abs(outputs.layers[0].gradients).max() > 1e-6:
            check_gradients(source, bundle)


@settings(max_examples=QUICK, **_SETTINGS)
@given(networks())
def test_random_networks(network: tuple[GraphWriter, str]) -> None:
    check_network(network)


@pytest.mark.slow
@settings(max_examples=LONG, **_SETTINGS)
@given(networks(20))
def test_many_long_random_networks(network: tuple[GraphWriter, str]) -> None:
    check_network(network)


# Damaged files


def original() -> onnx.ModelProto:
    w = GraphWriter()
    value = w.add("Relu", "r1", w.conv("c1", "image", (3, 4), 3, 2))
    value = w.add("MaxPool", "p1", w.conv("c2", value, (4, 4)), kernel_shape=[2, 2], strides=[2, 2])
    value = w.add("Resize", "up", value, "", w.constant("scales", np.array([1, 1, 2, 2], np.float32)), mode="linear")
    value = w.add("LRN", "lrn", value, size=3)
    w.classify(w.add("Transpose", "t", value, perm=[0, 1, 3, 2]), 4)
    with tempfile.TemporaryDirectory() as folder:
        return onnx.load(w.save(Path(folder) / "source.onnx", (1, 3, 16, 16)))


ORIGINAL = original()
BYTES = ORIGINAL.SerializeToString()
NUMBERS = st.sampled_from([-(2**62), -3, -1, 0, 1, 2, 5, 2**31, 2**40])


def survives(content: bytes) -> None:
    """A result, or a typed error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.onnx"
        path.write_bytes(content)
        try:
            bundle = camrt.export(path, Path(folder) / "bundle.onnx")
            if np.prod(bundle.manifest.input_shape) < 1_000_000:
                inputs = np.zeros((1, *bundle.manifest.input_shape), np.float32)
                open_session(bundle.path, threads=1).run(inputs, np.array([-1]), bundle.manifest.layer_names)
        except CamrtError:
            pass


def flipped(content: bytes, bits: list[int]) -> bytes:
    array = bytearray(content)
    for bit in bits:
        array[bit // 8 % len(array)] ^= 1 << (bit % 8)
    return bytes(array)


_BITS = st.lists(st.integers(0, 8 * len(BYTES) - 1), min_size=1, max_size=4)


@settings(max_examples=60, **_SETTINGS)
@given(_BITS)
def test_flipped_bits(bits: list[int]) -> None:
    survives(flipped(BYTES, bits))


@settings(max_examples=25, **_SETTINGS)
@given(st.integers(0, len(BYTES) - 1))
def test_cut_off_files(length: int) -> None:
    survives(BYTES[:length])


@st.composite
def edits(draw: st.DrawFn) -> bytes:
    """One to three fields of nodes, tensors and values set to something else."""
    proto = onnx.ModelProto()
    proto.CopyFrom(ORIGINAL)
    graph = proto.graph
    names = ["", "image", "logits", "nowhere", *(node.output[0] for node in graph.node)]
    for _ in range(draw(st.integers(1, 3))):
        node = draw(st.sampled_from(list(graph.node)))
        match draw(st.integers(0, 6)):
            case 0:
                node.input[draw(st.integers(0, len(node.input) - 1))] = draw(st.sampled_from(names))
            case 1:
                node.output[0] = draw(st.sampled_from(names))
            case 2 if node.attribute:
                attribute = draw(st.sampled_from(list(node.attribute)))
                attribute.ints[:] = draw(st.lists(NUMBERS, max_size=5))
                attribute.i = draw(NUMBERS)
            case 3:
                tensor = draw(st.sampled_from(list(graph.initializer)))
                tensor.dims[:] = draw(st.lists(NUMBERS, max_size=4))
            case 4:
                axis = draw(st.integers(0, 3))
                graph.input[0].type.tensor_type.shape.dim[axis].dim_value = draw(NUMBERS)
            case 5:
                node.op_type = draw(st.sampled_from(sorted(camrt.exporter.vjp.VJP_RULES)))
            case _:
                proto.opset_import[0].version = draw(st.integers(5, 26))
    content: bytes = proto.SerializeToString()
    return content


@settings(max_examples=80, **_SETTINGS)
@given(edits())
@pytest.mark.timeout(120)
def test_edited_fields(content: bytes) -> None:
    survives(content)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=3000, **_SETTINGS)
@given(edits())
def test_many_edited_fields(content: bytes) -> None:
    survives(content)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=3000, **_SETTINGS)
@given(_BITS)
def test_many_flipped_bits(bits: list[int]) -> None:
    survives(flipped(BYTES, bits))
